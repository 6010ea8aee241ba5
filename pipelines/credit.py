"""`cleanplate report --attribution`: what a server's attribution log adds up to, by creator and by licence.

A unit is a served picture, shared among the training pictures that were named for it. What was taken down since is
named as revoked here: it was served before, and whoever pays has to know.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from curation import storage
from curation.errors import UserError
from curation.manifest import Manifest

if TYPE_CHECKING:
    import pyarrow as pa

    from curation.cards.document import Document

UNSTATED = "unstated"
_SHOWN = 20


class Share(BaseModel):
    """What is due to a creator, or to pictures of a licence."""

    name: str
    pictures: int  # training pictures
    named: int  # times that any of them was named
    weight: float  # in served pictures
    share: float  # of all that is shared out
    near_copies: int
    revoked: float  # of the weight, what goes to pictures that were taken down since


class Credited(BaseModel):
    """A training picture."""

    sha256: str
    creator: str | None
    licence: str | None
    uri: str | None
    named: int
    weight: float
    near_copies: int
    revoked: str | None  # the entry of the takedown ledger, shortened


class Credit(BaseModel):
    """All of a log."""

    folder: str
    first: str | None  # day
    last: str | None
    served: dict[str, int]  # pictures that left, by model version
    weight: float
    creators: list[Share]
    licences: list[Share]
    pictures: list[Credited]
    ledgers: list[str]
    page: str | None = None


def run(folder: str, *, manifest: str | None = None, ledger: str | None = None, out: str | None = None) -> Credit:
    """Adds up a log.

    Args:
        folder: a serve job's `attribution.log`.
        manifest: what was trained on. With it a takedown reaches near copies, too; without, what the log tells of a
            picture is asked: its sha256, its place and its creator.
        ledger: takedown ledger; None: $CLEANPLATE_LEDGER and those that the server asked.
        out: a file for a page, local or in a bucket.

    Raises:
        UserError: no such log, a damaged one, a ledger that cannot be read, or a page that cannot be written.
    """
    from serving.credit import read

    rows, told = read(folder)
    revoked, ledgers = _revoked(rows, manifest, ledger, told)
    counted = rows.filter(rows["sha256"].is_null()).to_pylist()
    served: dict[str, int] = {}
    for row in counted:
        name = f"{row['model']} version {row['version']}"
        served[name] = served.get(name, 0) + row["pictures"]
    pictures = _pictures(rows.filter(rows["sha256"].is_valid()).to_pylist(), revoked)
    total = sum(picture.weight for picture in pictures)
    days = sorted(row["day"].isoformat() for row in counted)
    made = Credit(
        folder=folder,
        first=days[0] if days else None,
        last=days[-1] if days else None,
        served=served,
        weight=total,
        creators=_shares(pictures, total, lambda picture: picture.creator),
        licences=_shares(pictures, total, lambda picture: picture.licence),
        pictures=pictures,
        ledgers=ledgers,
    )
    return made if out is None else _with_page(made, out)


def _revoked(
    rows: pa.Table, manifest: str | None, ledger: str | None, told: list[str]
) -> tuple[dict[str, str], list[str]]:
    """The entry by which each picture is revoked, and the ledgers that were asked."""
    import pyarrow as pa

    from curation.takedowns import Ledger, of_place, refuse_vanished
    from curation.takedowns.ledger import VARIABLE
    from curation.takedowns.revocation import Revocations

    opened = None if manifest is None else Manifest.open(manifest)
    own = None if opened is None or opened.info.ledger is None else opened.info.ledger.uri
    places = [ledger] if ledger else [*filter(None, [os.environ.get(VARIABLE)]), *told]
    found: dict[str, str] = {}
    uris = list(dict.fromkeys([*map(of_place, places), *filter(None, [own])]))
    known = rows.filter(rows["sha256"].is_valid()).select(["sha256", "uri", "creator"])
    hosts = [urlsplit(uri).hostname if uri else None for uri in known["uri"].to_pylist()]
    asked = known.rename_columns(["id", "uri", "creator"]).append_column("host", pa.array(hosts, pa.string()))
    for uri in uris:
        state = Ledger.open(uri).read()
        if opened is not None and uri == own:
            refuse_vanished(uri, state, [opened])
        revocations = Revocations(state.in_force)
        if opened is not None:
            reached = revocations.of_manifest(opened)
            found = {id_: why.entry for id_, why in reached.items()} | found
        direct = zip(asked["id"].to_pylist(), revocations.direct(asked), strict=True)
        found = {id_: entry for id_, entry in direct if entry is not None} | found
    return found, uris


def _pictures(rows: list[dict[str, Any]], revoked: Mapping[str, str]) -> list[Credited]:
    """Each training picture, those with the largest shares first."""
    found: dict[str, Credited] = {}
    for row in rows:
        id_ = row["sha256"]
        before = found.get(id_)
        entry = revoked.get(id_)
        found[id_] = Credited(
            sha256=id_,
            creator=row["creator"],
            licence=row["licence"],
            uri=row["uri"],
            named=row["pictures"] + (before.named if before else 0),
            weight=row["weight"] + (before.weight if before else 0.0),
            near_copies=row["near_copies"] + (before.near_copies if before else 0),
            revoked=None if entry is None else entry[:12],
        )
    return sorted(found.values(), key=lambda picture: (-picture.weight, picture.sha256))


def _shares(pictures: list[Credited], total: float, of: Callable[[Credited], str | None]) -> list[Share]:
    by_name: dict[str, list[Credited]] = {}
    for picture in pictures:
        by_name.setdefault(of(picture) or UNSTATED, []).append(picture)
    made = [
        Share(
            name=name,
            pictures=len(some),
            named=sum(picture.named for picture in some),
            weight=sum(picture.weight for picture in some),
            share=sum(picture.weight for picture in some) / total if total else 0.0,
            near_copies=sum(picture.near_copies for picture in some),
            revoked=sum(picture.weight for picture in some if picture.revoked),
        )
        for name, some in by_name.items()
    ]
    return sorted(made, key=lambda share: (-share.weight, share.name))


def _with_page(made: Credit, out: str) -> Credit:
    from curation.cards.html import render

    try:
        storage.write_bytes(out, render(_document(made)).encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error}", field="--out", remedy="name a file that can be written"
        ) from None
    return made.model_copy(update={"page": out})


def _document(made: Credit) -> Document:
    from curation.cards.document import Cell, Document, Section, Table

    columns = ("", "training pictures", "named", "served pictures", "share", "of revoked", "flagged as copies")

    def table(title: str, shares: list[Share]) -> Table:
        rows: list[tuple[Cell, ...]] = [
            (s.name, s.pictures, s.named, f"{s.weight:,.2f}", f"{s.share:.1%}", f"{s.revoked:,.2f}", s.near_copies)
            for s in shares
        ]
        return Table(title, columns, tuple(rows))

    pictures: list[tuple[Cell, ...]] = [
        (p.sha256[:12], p.creator, p.licence, p.uri, p.named, f"{p.weight:,.2f}", p.revoked and f"revoked: {p.revoked}")
        for p in made.pictures[:_SHOWN]
    ]
    largest = Table(
        f"The {len(pictures)} largest of {len(made.pictures)}",
        ("sha256", "creator", "licence", "uri", "named", "served pictures", ""),
        tuple(pictures),
    )
    return Document(
        kind="credit",
        title="Attribution of what was served",
        about="Each served picture is shared among the training pictures nearest to it, in proportion to their "
        "similarity. That they are alike does not say that one caused the other.",
        basis=(
            ("Log", made.folder),
            ("Days", f"{made.first or '–'} to {made.last or '–'}"),
            *((model, f"{count:,} pictures served") for model, count in made.served.items()),
            ("Takedown ledgers", ", ".join(made.ledgers) or "none is named"),
        ),
        sections=(
            Section("", "By creator", (table("Creators", made.creators),)),
            Section("", "By licence", (table("Licences", made.licences),)),
            Section("", "By picture", (largest,)),
        ),
    )


def show(made: Credit) -> None:
    """Prints the sums as tables."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for title, shares in (("creator", made.creators), ("licence", made.licences)):
        table = Table(title, "training pictures", "named", "served pictures", "share", "of revoked", "copies")
        for s in shares:
            cells = (f"{s.pictures:,}", f"{s.named:,}", f"{s.weight:,.2f}", f"{s.share:.1%}", f"{s.revoked:,.2f}")
            table.add_row(Text(s.name), *cells, f"{s.near_copies:,}")
        console.print(table)
    for picture in made.pictures:
        if picture.revoked is not None:
            line = f"revoked {picture.sha256[:12]} ({picture.creator or UNSTATED}), entry {picture.revoked}"
            console.print(f"{line}: {picture.weight:,.2f} served before", markup=False, highlight=False)


def summary(made: Credit) -> list[str]:
    """The result for a person."""
    served = sum(made.served.values())
    lines = [
        f"{served:,} pictures served, {made.weight:,.2f} of them shared among {len(made.pictures):,} training pictures "
        f"of {len(made.creators):,} creators"
    ]
    return lines if made.page is None else [*lines, f"page     {made.page}"]
