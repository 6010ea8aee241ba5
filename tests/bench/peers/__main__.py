"""Images/s of cleanplate beside img2dataset, Data-Juicer and imagededup: `python -m tests.bench.peers`.

Every tool is run on a small and a large folder of the same pictures, in alternating rounds. Its rate is the difference
of the pictures over the difference of the median seconds, so that what a tool takes to start counts for none; the plain
rate, start included, and the CPU seconds, which other work on the machine changes least, are printed beside it. After
the rounds every tool is given a folder of difficult files, to see what each of them leaves out, and is killed half-way
and run again. The last line is one JSON object with the ratios.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.peers import leaves_out, sides
from tests.bench.peers.corpus import Corpus, difficult, photographs
from tests.bench.peers.environments import REQUIREMENTS, environment
from tests.bench.peers.sides import Run, Side

Pairs = dict[str, tuple[Side, Side]]
SIDES = ("peer", "ours")
WORK = {
    "img2dataset": "resize to 256, encode, Parquet",
    "data_juicer": "size filter, perceptual copies",
    "imagededup": "hash, pairs within 3 bits",
}


@dataclass
class Runs:
    """The runs of one side, two for every round."""

    small: list[Run] = field(default_factory=list)
    large: list[Run] = field(default_factory=list)

    def rate(self, corpus: Corpus) -> float:
        """Images/s without the start, from the medians of both sizes; NaN when those cannot tell."""
        more = corpus.large_count - corpus.small_count
        seconds = _median(self.large, "seconds") - _median(self.small, "seconds")
        return more / seconds if seconds > 0 else math.nan  # noise: too few rounds or too few pictures

    def cpu(self, corpus: Corpus) -> float:
        """CPU seconds of 1,000 images without the start, likewise."""
        more = corpus.large_count - corpus.small_count
        return 1000 * (_median(self.large, "cpu") - _median(self.small, "cpu")) / more

    def plain(self, corpus: Corpus) -> float:
        """Images/s of the large folder, start included."""
        return corpus.large_count / _median(self.large, "seconds")


def _median(runs: list[Run], what: str) -> float:
    return float(statistics.median(getattr(run, what) for run in runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/cleanplate-bench"))
    parser.add_argument("--small", type=int, default=2000, help="pictures in the small folder")
    parser.add_argument("--large", type=int, default=10_000, help="pictures in the large folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", action="append", choices=tuple(REQUIREMENTS), help="only this peer; may be repeated")
    options = parser.parse_args()
    cache = options.cache.expanduser().resolve()
    corpus = photographs(cache, options.small, options.large)
    for peer in options.peer or REQUIREMENTS:
        environment(cache, peer)
    resize, copies = sides.cleanplate(sides.cleanplate_resize), sides.cleanplate(sides.cleanplate_copies)
    pairs = {
        "img2dataset": (sides.img2dataset(cache), resize),
        "data_juicer": (sides.data_juicer(cache), copies),
        "imagededup": (sides.imagededup(cache), copies),
    }
    pairs = {name: pair for name, pair in pairs.items() if name in (options.peer or REQUIREMENTS)}
    # Our runs of the same work are counted together, whichever peer stood beside them.
    of_work = {side: Runs() for pair in pairs.values() for side in pair}
    runs = {
        (name, which): of_work[side] for name, pair in pairs.items() for which, side in zip(SIDES, pair, strict=True)
    }
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        for number in range(options.rounds):
            for name, (peer, ours) in pairs.items():
                turn = list(zip(SIDES, (peer, ours), strict=True))
                for which, side in turn if number % 2 == 0 else reversed(turn):
                    _both(side, corpus, Path(scratch), runs[name, which])
            print(f"round {number + 1} of {options.rounds}", flush=True)
        ratios = report(corpus, pairs, runs)
        left_out(cache, corpus, pairs, runs, Path(scratch))
    print(json.dumps({"ratios": {name: None if math.isnan(ratio) else ratio for name, ratio in ratios.items()}}))


def _both(side: Side, corpus: Corpus, scratch: Path, runs: Runs) -> None:
    for pictures, done in ((corpus.small, runs.small), (corpus.large, runs.large)):
        with tempfile.TemporaryDirectory(dir=scratch) as empty:
            done.append(side.run(pictures, Path(empty)))
        print(f"  {side.name} {pictures.name}: {done[-1].seconds:.1f} s, {done[-1].found}", flush=True)


def report(corpus: Corpus, pairs: Pairs, runs: dict[tuple[str, str], Runs]) -> dict[str, float]:
    """Prints what was measured; the ratios by name."""
    title = f"{corpus.small_count:,} and {corpus.large_count:,} JPEGs of 512 pixels, two cores, medians of the rounds"
    table = Table(title=title)
    for column in ("work", "tool", "images/s", "with its start", "CPU s/1,000", "s small", "s large", "pictures"):
        table.add_column(column)
    table.add_column(f"copies ({corpus.copies(corpus.large)} planted)")
    lines: dict[str, dict[str, float]] = {"without start": {}, "with start": {}, "by CPU seconds": {}}
    for name, both in pairs.items():
        for which, side in zip(SIDES, both, strict=True):
            run = runs[name, which]
            found = run.large[-1].found
            rates = (f"{run.rate(corpus):.0f}", f"{run.plain(corpus):.0f}", f"{run.cpu(corpus):.2f}")
            seconds = [" ".join(f"{one.seconds:.1f}" for one in size) for size in (run.small, run.large)]
            copies = "" if found.copies is None else str(found.copies)
            table.add_row(WORK[name], side.name, *rates, *seconds, f"{found.pictures:,}", copies)
        peer, ours = runs[name, "peer"], runs[name, "ours"]
        lines["without start"][f"over_{name}"] = round(ours.rate(corpus) / peer.rate(corpus), 2)
        lines["with start"][f"over_{name}"] = round(ours.plain(corpus) / peer.plain(corpus), 2)
        lines["by CPU seconds"][f"over_{name}"] = round(peer.cpu(corpus) / ours.cpu(corpus), 2)
    _print(table)
    print(f"load of the machine over the last 15 minutes: {os.getloadavg()[2]:.1f}, of which the bench is about two")
    for kind, ratios in lines.items():
        print(f"{kind:16}" + "  ".join(f"{name} {ratio}" for name, ratio in ratios.items()))
    return lines["without start"]


def left_out(cache: Path, corpus: Corpus, pairs: Pairs, runs: dict[tuple[str, str], Runs], scratch: Path) -> None:
    """Prints what came of difficult files, and what a second run costs after the first was killed."""
    readers = {
        "img2dataset": (sides.img2dataset(cache), leaves_out.read_img2dataset),
        "data_juicer": (sides.data_juicer(cache, turbo=False), leaves_out.read_data_juicer),
        "imagededup": (sides.imagededup(cache), leaves_out.read_imagededup),
    }
    ours = sides.cleanplate(sides.cleanplate_resize)
    asked = {"cleanplate": (ours, leaves_out.read_cleanplate), **{name: readers[name] for name in pairs}}
    found = {name: leaves_out.outcomes(side, read, scratch) for name, (side, read) in asked.items()}
    table = Table(title="difficult files, in the tools' own words")
    for column in ("file", *found):
        table.add_column(column)
    for file in difficult():
        if file.what:
            table.add_row(file.what, *(tool[file.text] for tool in found.values()))
    shares = []
    for name, pair in pairs.items():
        for which, side in zip(SIDES, pair, strict=True):
            whole = _median(runs[name, which].large, "cpu")
            if which == "peer" or name == "img2dataset":
                shares.append(f"{side.name} {leaves_out.rerun_share(side, corpus.large, whole, scratch):.0%}")
    _print(table)
    print(
        "killed half-way and run again, CPU seconds of the second run as a share of a whole one: " + ", ".join(shares)
    )


def _print(table: Table) -> None:
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
