"""House lists of opt-outs, and the takedowns in force: whoever is on one is out, whatever else says otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from curation import storage
from curation.errors import UserError
from curation.manifest import RightsSource, Verdict, now
from curation.rights.verdict import Observation
from curation.selectors import EXAMPLES, KINDS, Selectors, normal, well_formed
from curation.sources import read_table
from curation.takedowns.events import Entry


class OptOutList(BaseModel):
    """A CSV or Parquet table with any of the columns uri, domain, creator, sha256, phash; a cell is one selector.

    A domain also covers its subdomains; creators are compared without regard to case and surrounding space; a
    perceptual hash (`curation.hashes.perceptual`, 16 hexadecimal digits) is met within three bits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["list"] = "list"
    path: str = Field(description="the table, local or s3://")


LISTED, REQUESTED = "optout_list", "takedown"
"""The signals of observations by a house list and by the takedown ledger."""


class OptOuts:
    """All opt-out lists of a job and the takedowns in force, ready to be asked about a row.

    Attributes:
        sources: the lists that were read.
        pictures: selectors of pictures that somebody asked to take down; copies of them are to be found (`decide`).
    """

    def __init__(
        self,
        selectors: Sequence[tuple[str, str, str]],
        sources: Sequence[RightsSource],
        requests: Sequence[Entry] = (),
    ) -> None:
        """Takes (kind, value in normal form, name of the list) of every selector, what was read, and takedowns."""
        given = [(LISTED, *selector) for selector in selectors]
        self.pictures = [s for entry in requests for s in entry.selectors if s.kind == "picture"]
        for entry in requests:
            where = f"takedown {entry.id[:12]}"
            given += [(REQUESTED, "sha256" if s.kind == "picture" else s.kind, s.value, where) for s in entry.selectors]
        self._selectors = Selectors((kind, value) for _, kind, value, _ in given)
        self._given = [(signal, where) for signal, _, _, where in given]
        self.sources = list(sources)

    @classmethod
    def read(cls, lists: Sequence[OptOutList], requests: Sequence[Entry] = ()) -> OptOuts:
        """Reads every list whole. A list that cannot be read stops the job: it could hold anybody's name.

        Raises:
            UserError: when a list is absent, unreadable or has none of the selector columns.
        """
        selectors: list[tuple[str, str, str]] = []
        sources = []
        for index, config in enumerate(lists):
            field = f"optout[{index}].path"
            table = read_table(config.path, field)
            table = table.rename_columns([name.strip().lower() for name in table.column_names])
            columns = [c for c in table.column_names if c in KINDS]
            if not columns:
                raise UserError(
                    f"{config.path} has none of the columns {', '.join(KINDS)}",
                    field=field,
                    remedy="name at least one column after what its cells select",
                )
            where = config.path.rsplit("/", 1)[-1]
            entries = 0
            for column in columns:
                for row, value in enumerate(table[column].to_pylist()):
                    if value is None or not str(value).strip():
                        continue
                    # A manifest's own column of hashes holds numbers.
                    value = f"{value:016x}" if column == "phash" and isinstance(value, int) else value
                    selector = normal(column, str(value))
                    if not well_formed(column, selector):
                        raise UserError(
                            f"row {row + 1} of {config.path} has {value!r} under {column}, which would match nothing",
                            field=field,
                            remedy=f"write {EXAMPLES[column]}",
                        )
                    selectors.append((column, selector, where))
                    entries += 1
            digest = hashlib.sha256(storage.read_bytes(config.path)).hexdigest()
            sources.append(
                RightsSource(kind=config.kind, path=config.path, sha256=digest, entries=entries, read_at=now())
            )
        return cls(selectors, sources, requests)

    def __bool__(self) -> bool:
        """Whether there is anything to ask a row about."""
        return bool(self._selectors)

    def observe(self, row: Mapping[str, Any]) -> list[Observation]:
        """What the lists say about a row with the columns of `Selectors.matches`; an empty list when nothing."""
        found = [(match, *self._given[match.number]) for match in self._selectors.matches(row)]
        return [Observation(signal, f"{m.kind}={m.value}", where, Verdict.DENY) for m, signal, where in found]

    def denies_location(self, uri: str, host: str | None) -> bool:
        """Whether a list names the place itself, so that its bytes need not even be fetched."""
        return bool(self.observe({"uri": uri, "id": "", "creator": None, "host": host}))
