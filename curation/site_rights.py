"""What the web says about the pictures that a worker fetches: asked before a request is sent, and kept as evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from curation.fetch import Fetched, FetchError
from curation.manifest import Reason, Verdict
from curation.places import origin
from curation.rights.config import RightsConfig
from curation.rights.evidence import SiteFile
from curation.rights.page import Page
from curation.rights.registry import Registry
from curation.rights.statements import Site, Stated, of_answer, rsl_links
from curation.rights.verdict import Observation
from curation.site_files import SiteRecord, Sites, ask_patiently

if TYPE_CHECKING:
    from curation.web import Web

_MOST_LICENCES = 8  # that an answer and its page may link to
_SITES_KEPT = 10_000  # parsed, in one worker


class Shown(NamedTuple):
    """What a page that shows a picture says, read once for all of its pictures."""

    stated: Stated | None  # None where it did not come
    said: list[Observation]  # in its headers, or why it did not come


class Records(Protocol):
    """Who asks the sites: this worker itself, or one for all of a cluster (`site_desk`)."""

    async def of(self, origin: str) -> SiteRecord: ...

    async def document(self, url: str) -> SiteFile: ...


def own_records(web: Callable[[], Web], config: RightsConfig, folder: str | None) -> Records:
    """Records that this process asks for by its own fetcher."""

    async def ask(url: str) -> SiteFile:
        return await ask_patiently(web(), url)

    return Sites(ask, config.signals, folder, timedelta(hours=config.cache_hours))


class SiteRights:
    """What the web says about URLs, for one worker.

    Args:
        config: which signals are read, and which of them only advise.
        product: our product token.
        records: who asks the sites.
        run: runs a coroutine in the fetcher's loop, from outside of it (`web.Web.soon`).
    """

    def __init__(self, config: RightsConfig, product: str, records: Records, run: Callable[[Any], Any]) -> None:
        self._config, self._product, self._records, self._run = config, product, records, run
        self._registry = None if config.registry is None else Registry(config.registry)
        self._sites: dict[str, Site] = {}

    async def admit(self, url: str) -> None:
        """`web.Admit`: whether the URL's site lets us ask for it.

        Raises:
            FetchError: `site_refuses`; or `site_unreachable` (`dns` where there is no such host), which may pass.
        """
        if (place := origin(url)) is None:
            return
        site = await self.site(place)
        if site.unreachable is not None:
            reason = Reason.SITE_UNREACHABLE
            for known in (Reason.DNS, Reason.REFUSED_ADDRESS):
                if site.unreachable.startswith(known):
                    reason = known
            raise FetchError(reason, f"robots.txt: {site.unreachable}")
        refusal = site.refusal(url, self._config.advisory)
        if refusal is not None:
            raise FetchError(Reason.SITE_REFUSES, f"{refusal.signal}: {refusal.value or ''}"[:200])

    async def site(self, place: str) -> Site:
        """A site by its origin, its files parsed."""
        site = self._sites.get(place)
        if site is None:
            record = await self._records.of(place)
            site = Site(record.files, self._config, self._product)
            self.know(place, site)
        return site

    def know(self, place: str, site: Site) -> None:
        """Keeps a site that was asked."""
        if len(self._sites) >= _SITES_KEPT:
            self._sites.pop(next(iter(self._sites)))
        self._sites[place] = site

    def registered(self, urls: Sequence[str]) -> Mapping[str, Observation]:
        """What the job's registry says about URLs, by URL; nothing where the job has none."""
        return {} if self._registry is None or not urls else self._registry.observe(urls)

    def observe(self, asked: str, fetched: Fetched, page: Shown | None = None) -> list[Observation]:
        """What was said on the way to a picture: by every site, every answer, and the page that shows it.

        Args:
            asked: the URL, without what is secret in it.
            fetched: what came of it.
            page: of `read`; None where none is known.
        """
        # What an error page says is said of no picture.
        answers = {answer.url: answer.headers if answer.status < 400 else {} for answer in fetched.answers}
        hops = list(dict.fromkeys([*answers, *fetched.redirects])) or [asked]
        stated, found = page or (None, [])
        if stated is not None and stated.url in hops:  # it is the page itself that was asked for
            found = []
        for url in hops:
            on_page = stated if url == hops[-1] else None
            place, headers = origin(url), answers.get(url, {})
            links = rsl_links(url, headers, on_page) if "rsl" in self._config.signals else []
            found += of_answer(
                url,
                headers,
                self._config,
                self._product,
                site=None if place is None else self._known(place),
                stated=on_page,
                documents=self._linked(links[:_MOST_LICENCES]),
            )
            if len(links) > _MOST_LICENCES:
                found.append(Observation("rsl", f"{len(links)} licences are linked to", url, Verdict.ERROR))
        return [_at(observation, fetched.at) for observation in dict.fromkeys(found)]

    def _known(self, place: str) -> Site:
        """A site that was asked already, as nearly all are that a picture came from; else asks it, and waits."""
        found: Site = self._sites.get(place) or self._run(self.site(place)).result()
        return found

    def _linked(self, links: Sequence[str]) -> dict[str, SiteFile]:
        return {link: self._run(self._records.document(link)).result() for link in links}

    def read(self, url: str, fetched: Fetched) -> Shown:
        """What a page says. Its headers' permissions are for the page and not for the pictures on it.

        Args:
            url: of the page, as a row names it.
            fetched: what came of it.
        """
        if fetched.data is None:
            reason = f"{fetched.reason}: {fetched.detail or ''}"[:200]
            return Shown(None, [Observation("page", reason, url, Verdict.ERROR, fetched.at)])
        where, found = fetched.final_uri or url, list[Observation]()
        for answer in fetched.answers[-1:]:
            where = answer.url
            found += of_answer(where, answer.headers, self._config, self._product)
        stated = Stated(where, Page(fetched.data, fetched.headers.get("content-type")))
        return Shown(stated, [_of_page_alone(o) if o.verdict == Verdict.ALLOW else o for o in found])


def _of_page_alone(observation: Observation) -> Observation:
    return observation._replace(value=f"of the page alone: {observation.value or ''}", verdict=Verdict.UNKNOWN)


def _at(observation: Observation, at: datetime | None) -> Observation:
    return observation if observation.observed_at is not None else observation._replace(observed_at=at)
