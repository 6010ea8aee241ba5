"""`cleanplate rights check`: everything that is said about the use of one picture, for a person to read."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from curation.errors import UserError

if TYPE_CHECKING:
    from curation.fetch import Fetched
    from curation.job import CurateJob
    from curation.rights.verdict import Observation


class Seen(BaseModel):
    """One observation."""

    signal: str
    value: str | None
    where: str
    observed_at: datetime | None
    verdict: str


class Checked(BaseModel):
    """What is said about a picture, and what it adds up to."""

    subject: str
    verdict: str
    observations: list[Seen]


def run(subject: str, *, job: str | None = None, ledger: str | None = None, allow_private: bool = False) -> Checked:
    """Asks everybody who could have said something about a picture.

    Args:
        subject: a URL (of a picture or of a page) or a file, local or s3://.
        job: a curate job file, whose signals, lists, licences and user agent are used.
        ledger: takedown ledger; None: the job's, or none without a job.
        allow_private: admit private, loopback and link-local addresses.

    Raises:
        UserError: a file that is not there, a URL that is none, a job or a ledger that cannot be read.
    """
    from curation.places import is_url, origin
    from curation.policy import Policy
    from curation.rights.lists import OptOuts
    from curation.rights.verdict import verdict
    from curation.safety import Limits
    from curation.sources.inputs import without_password
    from curation.takedowns import Ledger, location, of_place

    chosen = _job(job, allow_private)
    requests = None
    if ledger is not None:
        requests = Ledger.open(of_place(ledger)).read()
    elif job is not None:
        requests = Ledger.open(of_place(location(chosen.ledger, beside=chosen.output))).read()
    optouts = OptOuts.read(chosen.optout, () if requests is None else requests.in_force)
    if is_url(subject) and origin(subject) is None:
        raise UserError(f"{subject!r} is no URL", field="URL", remedy="give http(s)://host/path, or a file's path")
    found = _of_url(subject, chosen, optouts) if is_url(subject) else _of_file(subject, chosen, optouts)
    decided = verdict(Policy(chosen, optouts, Limits({})).deciding(found))
    return Checked(
        subject=without_password(subject),
        verdict=decided.value,
        observations=[Seen.model_validate(o.row()) for o in found],
    )


def _job(path: str | None, allow_private: bool) -> CurateJob:
    from curation.job import CurateJob
    from pipelines.config import load_job

    if path is None:
        job = CurateJob.model_validate({"source": {"kind": "folder", "path": "."}, "output": "."})
    else:
        job = load_job(path, kind="curate")
    if not allow_private:
        return job
    return job.model_copy(update={"fetch": job.fetch.model_copy(update={"allow_private": True})})


def _of_url(asked: str, job: CurateJob, optouts: Any) -> list[Observation]:
    from curation.fetch import Fetcher, FetchError
    from curation.manifest import Reason, Verdict
    from curation.places import host_and_domain, origin
    from curation.rights.verdict import Observation
    from curation.site_rights import SiteRights, own_records
    from curation.sources.inputs import without_password

    url = without_password(asked)

    def refused(said: Sequence[Observation]) -> bool:
        advisory = job.rights.advisory
        return any(o.signal == "robots" and o.verdict == Verdict.DENY and o.signal not in advisory for o in said)

    async def admit(hop: str) -> None:
        if refused((await rights.site(origin(hop) or "")).observe(hop)):
            raise FetchError(Reason.SITE_REFUSES, hop)

    fetcher = Fetcher(job.fetch, admit)
    records = own_records(lambda: fetcher.web, job.rights, None)
    rights = SiteRights(job.rights, job.fetch.product, records, fetcher.soon)
    try:
        site = fetcher.soon(rights.site(origin(url) or "")).result()
        if (site.unreachable or "").startswith(Reason.REFUSED_ADDRESS):
            raise UserError(
                f"{url} is not an address of the public internet",
                field="URL",
                remedy="add --allow-private if it is yours to ask",
            )
        said = site.observe(url)
        if refused(said):
            # Who may not be asked for is not asked for, also not to see what else would be said.
            return [*_listed(url, {}, job, optouts), *said, *site.tdmrep(url)]
        (fetched,) = fetcher([asked])
        page = rights.read(url, fetched) if _is_page(fetched) else None
        seen = [*rights.observe(url, fetched, page), *rights.registered([url]).values()]
    finally:
        fetcher.close()
    host = host_and_domain(url)[0]
    places = {"host": host, "final_uri": fetched.final_uri, "redirects": list(fetched.redirects)}
    if fetched.data is None:
        failed = Observation("fetch", f"{fetched.reason}: {fetched.detail or ''}", url, Verdict.ERROR, fetched.at)
        return [*_listed(url, places, job, optouts), *seen, failed]
    if page is not None:
        return [*_listed(url, places, job, optouts), *seen]
    return [*_listed(url, places, job, optouts, fetched.data), *seen, *_inside(fetched.data, job)]


def _is_page(fetched: Fetched) -> bool:
    stated = fetched.headers.get("content-type", "").lower()
    return fetched.data is not None and ("html" in stated or fetched.data[:512].lstrip()[:1] == b"<")


def _of_file(path: str, job: CurateJob, optouts: Any) -> list[Observation]:
    from curation.fetch import Fetcher

    (fetched,) = Fetcher(job.fetch)([path])
    if fetched.data is None:
        raise UserError(
            f"{path} cannot be read: {fetched.reason} ({fetched.detail})", field="FILE", remedy="give a URL or a file"
        )
    return [*_listed(path, {}, job, optouts, fetched.data), *_inside(fetched.data, job)]


def _inside(data: bytes, job: CurateJob) -> list[Observation]:
    """What a file says in itself."""
    from curation.metadata import scan
    from curation.rights import embedded
    from curation.rights.statements import of_file

    found = of_file(data, job.rights)
    return [*found, *embedded.observe(scan(data).fields)] if "plus" in job.rights.signals else found


def _listed(
    uri: str, places: dict[str, Any], job: CurateJob, optouts: Any, data: bytes | None = None
) -> list[Observation]:
    """What lists, ledger and the file's own licence say, where a job says what is allowed."""
    import contextlib

    from curation.fetch import row_id
    from curation.hashes import perceptual
    from curation.images import ImageError, decode
    from curation.manifest import named
    from curation.metadata import scan
    from curation.rights.licences import Licences

    about = {} if data is None else scan(data).fields
    row: dict[str, Any] = {"uri": uri, "id": row_id(uri, data), "creator": None, **places, "embedded": named(about)}
    row |= {"licence": about.get("licence"), "licence_url": None}
    if data is not None:
        with contextlib.suppress(ImageError):
            row["phash"] = perceptual(decode(data, job.images)).phash
    listed: list[Observation] = optouts.observe(row)
    return [*listed, Licences(job.licences).observe(row)] if row["licence"] else listed


_STYLES = {"deny": "bold red", "error": "yellow", "allow": "green", "unknown": "dim"}


def show(found: Checked) -> None:
    """Prints a check as a table, the verdict last."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(title=found.subject, title_justify="left")
    for name in ("signal", "verdict", "value", "where"):
        table.add_column(name, overflow="fold")
    for seen in found.observations:
        verdict = Text(seen.verdict, style=_STYLES[seen.verdict])
        table.add_row(seen.signal, verdict, Text(seen.value or ""), Text(seen.where))
    if found.observations:
        console.print(table)
    words = {
        "deny": "refused: it must not be used for training",
        "error": "a check could not be done: hold it until it can",
        "allow": "expressly permitted, and nobody refuses",
        "unknown": "nobody says anything that decides",
    }
    denying = [seen for seen in found.observations if seen.verdict == "deny"]
    if denying and all(seen.signal == "robots" and (seen.value or "").startswith("unreachable") for seen in denying):
        words["deny"] = "its site cannot be asked whether it may be fetched, which refuses until it can"
    console.print(Text(f"{found.verdict}: {words[found.verdict]}", style=_STYLES[found.verdict]))
