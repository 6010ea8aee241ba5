"""What curating 10^6, 10^8 and 10^9 pictures takes, and what breaks first: `python -m tests.bench.planning`.

Measured figures come from `rates.json` (`tests.bench.rates`), those of other benches from `MEASURED`, with the command;
whatever nobody measured here is in `Guesses`, with where it comes from, and can be set: `--set gpu_eur_h=2.5`. Nothing
is run: the model is arithmetic, and `simulator.simulate` for the queue of units. `docs/planning.md` holds its output.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from tests.bench.breaks import bottlenecks
from tests.bench.rates import FILE
from tests.bench.simulator import Rates, simulate

HOUR, GIB = 3600.0, 2**30
FACTS = 203  # bytes of a row in `decide.Facts`, without turned hashes, embeddings and frames


@dataclass(frozen=True)
class Size:
    """A job, and the cluster that somebody would give it."""

    n: int
    nodes: int
    unit_size: int


SIZES = (Size(10**6, 1, 256), Size(10**8, 16, 1_024), Size(10**9, 64, 8_192))


def _guess(value: float, source: str) -> Any:
    return field(default=value, metadata={"source": source})


@dataclass(frozen=True)
class Guesses:
    """What was not measured here. Prices are round numbers after public price lists, to be replaced by one's own."""

    node_cores: float = _guess(32, "cores of a node that curates; a common size")
    node_eur_h: float = _guess(1.5, "such a node on demand; order of magnitude of public clouds")
    head_gib: float = _guess(256, "memory of the driver's node; a common size")
    gpu_eur_h: float = _guess(3.0, "an H100 on demand; order of magnitude")
    gpu_flops: float = _guess(989e12, "H100's dense bf16 peak, by its vendor")
    gpu_share: float = _guess(0.3, "of that peak that training reaches; a usual figure for networks of convolutions")
    put_eur: float = _guess(5e-6, "a PUT, COPY or LIST; S3 standard's list price")
    get_eur: float = _guess(4e-7, "a GET; S3 standard's list price")
    gib_month_eur: float = _guess(0.023, "a GiB stored for a month; S3 standard's list price")
    request_s: float = _guess(0.03, "a round trip to the bucket within its region")
    kept: float = _guess(0.6, "of the inputs, that are kept with their picture")
    distinct: float = _guess(0.9, "of the pictures, that have a perceptual hash of their own")
    fetch_s: float = _guess(4e-4, "CPU to fetch a picture by HTTPS")
    hosts: float = _guess(20_000, "hosts among 10^6 pictures; of n they are n^0.7 times as many (Heaps' law)")
    largest_host: float = _guess(0.01, "of the pictures, that lie on the host that has most")
    crawl_delay_s: float = _guess(0.5, "between two requests to a host; jobs/web-curate.yaml")
    site_files: float = _guess(4, "requests that a site gets before its pictures: robots.txt, tdmrep.json, ai.txt, RSL")
    site_s: float = _guess(0.2, "for one of them")
    entries: float = _guess(10_000, "takedowns in the ledger")


MEASURED = {
    "copies_s": (2.7e-6, "CPU to find and choose among copies, for each of 10^7 rows", "make bench-duplicates"),
    "rights_s": (75e-6, "CPU of every rights signal for a picture", "make bench-rights"),
    "before_driver_rule_s": (94.5e-6, "CPU to decide on a row, all in the driver, at 33f2475", "tests.bench.driver"),
    "before_driver_listing_s": (14.2e-6, "CPU to list a row, at 33f2475", "tests.bench.driver"),
    "before_driver_decide_bytes": (900.0, "memory to decide on a row, at 33f2475", "tests.bench.driver"),
}
"""Of RESULTS.md: value, what it is, command."""


@dataclass(frozen=True)
class Plan:
    """Curating `size.n` pictures.

    Args:
        size: how many, on what, in which units.
        r: `rates.json`, flat.
        g: what was not measured.
        web: whether the pictures are fetched from sites; otherwise they lie in a bucket.
        before: as it was before workers ruled on rows (`curation.ruling`).
    """

    size: Size
    r: Mapping[str, float]
    g: Guesses
    web: bool
    before: bool = False

    @property
    def units(self) -> int:
        return math.ceil(self.size.n / self.size.unit_size)

    @property
    def workers(self) -> int:
        return int(self.size.nodes * self.g.node_cores)

    @property
    def hosts(self) -> float:
        return self.g.hosts * (self.size.n / 1e6) ** 0.7 if self.web else 0.0

    @property
    def row_s(self) -> float:
        """A worker's CPU to measure a picture."""
        return self.r["worker_clip_s"] + (self.g.fetch_s + MEASURED["rights_s"][0] if self.web else 0.0)

    @property
    def ruling_s(self) -> float:
        """Seconds until all rows are ruled on, with two reads of each unit."""
        reads = 2 * self.units * self.g.request_s
        if self.before:
            return self.size.n * MEASURED["before_driver_rule_s"][0] + reads
        return (self.size.n * self.r["driver_rule_s"] + reads) / self.workers

    @property
    def serial_s(self) -> float:
        """Seconds of the driver alone, while no worker has anything to do."""
        listing = MEASURED["before_driver_listing_s"][0] if self.before else self.r["driver_listing_s"]
        rows = listing + self.r["driver_inputs_s"] + self.r["driver_ship_s"] + MEASURED["copies_s"][0]
        alone = self.size.n * rows + self.units * self.r["manifest_part_s"]
        return alone + (self.ruling_s if self.before else 0.0)

    @property
    def busy_s(self) -> float:
        """Core seconds of workers."""
        ruling = 0.0 if self.before else self.size.n * self.r["driver_rule_s"]
        return self.size.n * (self.row_s + self.r["publish_s"]) + self.units * self.r["ray_unit_s"] + ruling

    @cached_property
    def parallel_s(self) -> float:
        """Seconds that the workers take, by the simulator."""
        rates = Rates(self.row_s, self.r["ray_unit_s"], 0.0, 0.0, 0.0, self.r["publish_s"])
        return simulate([self.size.unit_size] * self.units, self.workers, self.workers, rates)

    @property
    def polite_s(self) -> float:
        """Seconds that the largest host's pictures take, one after another with its delay."""
        return self.size.n * self.g.largest_host * self.g.crawl_delay_s if self.web else 0.0

    @property
    def hours(self) -> float:
        """From start to manifest."""
        ruling = 0.0 if self.before else self.ruling_s
        return (max(self.parallel_s, self.polite_s) + ruling + self.serial_s) / HOUR

    @property
    def node_hours(self) -> float:
        """Of nodes that go when they have nothing to do, and of the head, which stays."""
        return self.busy_s / HOUR / self.g.node_cores + self.hours

    @property
    def requests(self) -> tuple[int, int]:
        """PUT, COPY and LIST; GET. Of a unit: two stages are written, read to rule and read to publish, a part is
        written and copied. A Parquet file read in part takes two GETs at least."""
        return 4 * self.units + 3 * math.ceil(self.units / 1000), 8 * self.units

    @property
    def stored_bytes(self) -> float:
        """Units as they were measured, and kept rows once more in the parts of the manifest."""
        return self.size.n * self.r["stored_clip_bytes"] * (1 + self.g.kept)

    @property
    def shuffled_bytes(self) -> float:
        """What moves to tell copies: facts to the driver, and buckets of hashes beyond one node."""
        facts = self.size.n * FACTS
        if self.size.n <= 200_000_000:  # `duplicates.ray_above`
            return facts
        tables = 4  # of `hamming.plan` at radius 3
        bucketed = 2 * 40 + self.g.distinct * (16 + 8 * tables)  # ids and pixels (row, hash); hashes; each table's
        return facts + 2 * self.size.n * bucketed  # written and read

    @property
    def driver_bytes(self) -> float:
        """The driver's memory at its highest: with all units handed out, or while it settles."""
        handed_out = 2 * self.r["driver_input_bytes"]  # as rows, and in the object store
        decided = MEASURED["before_driver_decide_bytes"][0]
        if not self.before:
            decided = self.r["driver_rule_bytes"] + self.r["driver_settle_bytes"]
        return self.size.n * (self.r["driver_kept_bytes"] + max(handed_out, decided))

    @property
    def euros(self) -> tuple[float, float, float]:
        """Nodes, requests, a month of storage."""
        puts, gets = self.requests
        requests = puts * self.g.put_eur + gets * self.g.get_eur
        return self.node_hours * self.g.node_eur_h, requests, self.stored_bytes / GIB * self.g.gib_month_eur


def rates() -> dict[str, float]:
    """`rates.json`, flat."""
    return {name: value for one in json.loads(FILE.read_text()).values() for name, value in one["figures"].items()}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _power(n: int) -> str:
    return f"10^{len(str(n)) - 1}"


def show_curation(r: Mapping[str, float], g: Guesses) -> None:
    """What each size takes, from a bucket and from the web."""
    rows = []
    for size in SIZES:
        for web in (False, True):
            plan = Plan(size, r, g, web)
            puts, gets = plan.requests
            nodes, requests, storage = plan.euros
            where = "the web" if web else "a bucket"
            first = [_power(size.n), where, f"{size.nodes} × {g.node_cores:.0f} cores", f"{plan.units:,}"]
            took = [f"{plan.hours:,.1f}", f"{plan.node_hours:,.0f}", f"{plan.shuffled_bytes / GIB:,.1f}"]
            paid = [f"{puts:,}", f"{gets:,}", f"{nodes:,.0f} + {requests:,.2f}", f"{storage:,.0f}"]
            rows.append([*first, *took, *paid])
    head = ["pictures", "from", "nodes", "units", "hours", "node-hours", "shuffled GiB", "PUT, COPY, LIST", "GET"]
    _table([*head, "€: nodes + requests", "€ a month for storage"], rows)


def show_first(r: Mapping[str, float], g: Guesses) -> None:
    """What breaks first at each size: before workers ruled on rows, and now."""
    rows = []
    for size in SIZES:
        for web in (False, True):
            cells = []
            for before in (True, False):
                first = bottlenecks(Plan(size, r, g, web, before), g, r)[0]
                needed = f"{_short(first.needed)} {first.unit}, where {_short(first.limit)} are {first.what}"
                cells.append(f"{first.name}: {needed}" if first.strain > 1 else "nothing")
            rows.append([_power(size.n), "the web" if web else "a bucket", *cells])
    _table(["pictures", "from", "broke first, at 33f2475", "breaks first now"], rows)


def show_breaks(r: Mapping[str, float], g: Guesses) -> None:
    """Everything that may break, at all sizes, with its strain: what is needed over what there is."""
    found = [bottlenecks(Plan(size, r, g, web=True), g, r) for size in SIZES]
    rows = []
    for one in found[-1]:
        row = [one.name]
        for size in found:
            here = next(b for b in size if b.name == one.name)
            row.append(f"{_short(here.needed)} ({_short(here.strain)})")
        rows.append([*row, f"{one.unit}, {one.what}", one.answer])
    _table(["needed (strain)", *(_power(size.n) for size in SIZES), "of what", "what was done, or would be"], rows)


def show_training(r: Mapping[str, float], g: Guesses) -> None:
    """The 256-pixel model: the job as it stands, and one pass over each size."""
    per_s = g.gpu_flops * g.gpu_share / r["train_flops"]
    rows = []
    seen = [("the job's own", r["train_images"]), *((f"{_power(s.n)} once", s.n * g.kept) for s in SIZES)]
    for name, images in seen:
        hours = images / per_s / HOUR
        read = images * r["stored_clip_bytes"] / GIB
        rows.append(
            [
                name,
                f"{images:,.0f}",
                f"{hours:,.1f}",
                f"{hours / 8:,.1f}",
                f"{hours * g.gpu_eur_h:,.0f}",
                f"{read:,.0f}",
            ]
        )
    print(
        f"{r['train_parameters'] / 1e6:.0f} million parameters, {r['train_flops'] / 1e9:.0f} GFLOP a picture, "
        f"{r['train_device_bytes'] / GIB:.1f} GiB on a device; {per_s:,.0f} pictures/s on a GPU are "
        f"{g.gpu_share:.0%} of its peak.\n"
    )
    _table(["pictures", "seen", "GPU-hours", "hours on 8", "€", "GiB read"], rows)


def show_assumptions(g: Guesses) -> None:
    """Every figure that went in, and where it is from."""
    rows = []
    for name, one in json.loads(FILE.read_text()).items():
        for key, value in one["figures"].items():
            rows.append(
                [key, f"{value:.4g}", f"measured {one['measured']}: tests.bench.rates --only {name} ({one['on']})"]
            )
    rows += [[key, f"{value:.4g}", f"measured: {what}; {command}"] for key, (value, what, command) in MEASURED.items()]
    rows += [[f.name, f"{getattr(g, f.name):.4g}", f"a guess: {f.metadata['source']}"] for f in fields(g)]
    _table(["figure", "value", "where it is from"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another guess")
    options = parser.parse_args(arguments)
    changed = {name: float(value) for name, value in (given.split("=", 1) for given in options.set)}
    r, g = rates(), replace(Guesses(), **changed)
    show_curation(r, g)
    show_first(r, g)
    show_breaks(r, g)
    show_training(r, g)
    show_assumptions(g)


if __name__ == "__main__":
    main()
