"""The takedown ledger at 10^4 entries: `python -m tests.bench.ledger`.

Seconds of this process's CPU, so that a machine shared with others counts less: to append, to read from as many files,
to read from one pack; and what it costs a manifest of 50,000 rows to ask who is revoked. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from curation.takedowns import Ledger, Selector
from curation.takedowns.revocation import Revocations
from tests.curation.takedowns.manifests import published


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=50_000)
    arguments = parser.parse_args()
    found: dict[str, float] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        found[name] = round(time.process_time() - start, 3)
        print(f"{name:>24} {found[name]:8.3f} s", flush=True)

    chance = np.random.default_rng(0)
    hashes: Callable[[], int] = lambda: int(chance.integers(2**63))  # noqa: E731
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.open(f"{folder}/ledger")
        with timed("append"):
            for number in range(arguments.entries):
                picture = Selector(
                    kind="picture",
                    value=f"{number:064x}",
                    pixel_hash=f"{number:064x}",
                    phash=hashes(),
                    colour_layout=bytes(48),
                )
                chosen = [picture, Selector.of("domain", f"e{number}.org")]
                ledger.append_entry(requester="bench", ground="x", selectors=chosen, reference=str(number))
        with timed("read_singles"):
            state = Ledger.open(ledger.uri).read()
        with timed("pack"):
            Ledger.open(ledger.uri).pack()
        with timed("read_pack"):
            assert Ledger.open(ledger.uri).read() == state
        row = {"decision": "kept", "reason": "passed", "colour_layout": bytes(48)}
        rows = [
            row
            | {"id": f"{2**200 + i:064x}", "uri": f"https://h{i % 999}.com/{i}", "host": f"h{i % 999}.com"}
            | {"pixel_hash": f"{2**200 + i:064x}", "phash": hashes()}
            for i in range(arguments.rows)
        ]
        rows[7] |= {"id": f"{7:064x}"}
        manifest = published(Path(folder) / "manifests", rows)
        for name, entries in (
            ("revoked_by_none", []),
            ("revoked_by_one", state.entries[7:8]),
            ("revoked", state.entries),
        ):
            with timed(name):
                assert len(Revocations(entries).of_manifest(manifest)) == (1 if entries else 0)
    print(json.dumps({"seconds": found, "ratios": {"singles_over_pack": found["read_singles"] / found["read_pack"]}}))


if __name__ == "__main__":
    main()
