"""House lists of opt-outs: whoever is on one is out, whatever else says otherwise."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from curation import storage
from curation.errors import UserError
from curation.manifest import RightsSource, Verdict, now, texts
from curation.places import host_and_domain, same_url
from curation.rights.verdict import Observation
from curation.sources import read_table

SELECTORS = ("uri", "domain", "creator", "sha256")


class OptOutList(BaseModel):
    """A CSV or Parquet table with any of the columns uri, domain, creator, sha256; a cell is one selector.

    A domain also covers its subdomains; creators are compared without regard to case and surrounding space.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["list"] = "list"
    path: str = Field(description="the table, local or s3://")


class OptOuts:
    """All opt-out lists of a job, ready to be asked about a row."""

    def __init__(self, selectors: Mapping[str, Mapping[str, str]], sources: Sequence[RightsSource]) -> None:
        self._selectors = selectors
        self.sources = list(sources)

    @classmethod
    def read(cls, lists: Sequence[OptOutList]) -> OptOuts:
        """Reads every list whole. A list that cannot be read stops the job: it could hold anybody's name.

        Raises:
            UserError: when a list is absent, unreadable or has none of the selector columns.
        """
        selectors: dict[str, dict[str, str]] = {name: {} for name in SELECTORS}
        sources = []
        for index, config in enumerate(lists):
            field = f"optout[{index}].path"
            table = read_table(config.path, field)
            table = table.rename_columns([name.strip().lower() for name in table.column_names])
            columns = [c for c in table.column_names if c in SELECTORS]
            if not columns:
                raise UserError(
                    f"{config.path} has none of the columns {', '.join(SELECTORS)}",
                    field=field,
                    remedy="name at least one column after what its cells select",
                )
            where = config.path.rsplit("/", 1)[-1]
            entries = 0
            for column in columns:
                for row, value in enumerate(table[column].to_pylist()):
                    if value is None or not str(value).strip():
                        continue
                    selector = _normal(column, str(value))
                    if not _FORMS.get(column, _ANYTHING).fullmatch(selector):
                        raise UserError(
                            f"row {row + 1} of {config.path} has {value!r} under {column}, which would match nothing",
                            field=field,
                            remedy=f"write {_EXAMPLES[column]}",
                        )
                    selectors[column].setdefault(selector, where)
                    entries += 1
            digest = hashlib.sha256(storage.read_bytes(config.path)).hexdigest()
            sources.append(
                RightsSource(kind=config.kind, path=config.path, sha256=digest, entries=entries, read_at=now())
            )
        return cls(selectors, sources)

    def observe(self, row: Mapping[str, Any]) -> list[Observation]:
        """What the lists say about a row with `id`, `uri`, `host`, `creator`; an empty list when nothing."""
        candidates = [("uri", row["uri"]), ("sha256", row["id"])]
        if row["creator"]:
            candidates.append(("creator", row["creator"]))
        hosts = [row["host"]]
        # A redirect by way of somebody who opted out leads to a picture of theirs.
        for place in (row.get("source_url"), row.get("final_uri"), *(row.get("redirects") or ())):
            if place:
                candidates.append(("uri", place))
                hosts.append(host_and_domain(place)[0])
        for creator in re.split(r"[;,\n]", texts(row.get("embedded")).get("creator", "")):
            if creator.strip():
                candidates.append(("creator", creator))
        for host in filter(None, hosts):
            labels = host.split(".")
            candidates += [("domain", ".".join(labels[i:])) for i in range(len(labels))]
        found = []
        for selector, value in candidates:
            where = self._selectors[selector].get(_normal(selector, value))
            if where is not None:
                found.append(Observation("optout_list", f"{selector}={value}", where, Verdict.DENY))
        return found

    def denies_location(self, uri: str, host: str | None) -> bool:
        """Whether a list names the place itself, so that its bytes need not even be fetched."""
        return bool(self.observe({"uri": uri, "id": "", "creator": None, "host": host}))


_FORMS = {"domain": re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*"), "sha256": re.compile(r"[0-9a-f]{64}")}
_ANYTHING = re.compile(r".+", re.DOTALL)
_EXAMPLES = {"domain": "a domain such as example.com", "sha256": "64 hexadecimal digits"}


def _normal(selector: str, value: str) -> str:
    """A selector as it is compared. Domains may be given as URLs or with a `*.`, as people write them."""
    value = value.strip()
    if selector == "uri":
        return same_url(value)
    value = value.casefold()
    if selector == "domain":
        url = value if "://" in value else f"http://{value.removeprefix('*.')}"
        value = host_and_domain(url)[0] or value
    return value
