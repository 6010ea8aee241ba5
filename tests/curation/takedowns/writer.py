"""A process that appends entries to a ledger, or packs it, until it is done or killed.

`python -m tests.curation.takedowns.writer add LEDGER NAME COUNT ACKS` goes on behind what its file of acknowledgements
holds: what was being written when it was killed is written again. `... pack LEDGER PACKS` packs for ever.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from curation.takedowns import Entry, Ledger, Selector

THREADS = 4


def append(ledger: Ledger, name: str, number: int) -> Entry:
    return ledger.append_entry(
        requester=name,
        ground="a test",
        selectors=[Selector.of("uri", f"https://{name}.org/{number}.png")],
        reference=f"{name}-{number}",
    )


def acknowledged(acks: Path) -> list[tuple[int, str]]:
    """(number, entry id) of what was surely written: whole lines."""
    if not acks.exists():
        return []
    lines = acks.read_text().split("\n")[:-1]
    return [(int(number), id_) for number, id_ in (line.split() for line in lines)]


def _add(uri: str, name: str, count: int, acks: Path) -> None:
    ledger = Ledger.open(uri)
    done = {number for number, _ in acknowledged(acks)}
    log = os.open(acks, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def one(number: int) -> None:
        os.write(log, f"{number} {append(ledger, name, number).id}\n".encode())

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, (number for number in range(count) if number not in done)))


def _pack(uri: str, packs: Path) -> None:
    while True:
        Ledger.open(uri).pack()
        with open(packs, "a") as log:
            log.write("packed\n")


if __name__ == "__main__":
    if sys.argv[1] == "add":
        _add(sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5]))
    else:
        _pack(sys.argv[2], Path(sys.argv[3]))
