"""All that is said about a URL, put together: by its site, by the answers on the way to it, by the page it stands on.

Every statement is an observation and stays one. Only inside a protocol does an order count (TDMRep's later steps
override its earlier ones); what several protocols add up to is `verdict`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from curation.manifest import Verdict
from curation.rights import aipref, c2pa, content_signals, robots_tags, rsl, tdmrep
from curation.rights.ai_txt import AiTxt
from curation.rights.config import RightsConfig
from curation.rights.evidence import SiteFile
from curation.rights.page import Page
from curation.rights.robots import Robots
from curation.rights.rsl import Rsl, joined, links_of_headers, links_of_page
from curation.rights.tdmrep import TdmRep
from curation.rights.verdict import Observation

_SAID_KEPT = 4096

Headers = Mapping[str, Sequence[str]]


class Stated(NamedTuple):
    """A page that was read, and where it stood."""

    url: str
    page: Page


class Site:
    """A site's files, parsed once, ready to be asked about its URLs.

    Args:
        files: by name, as in `site_files.SiteRecord`.
        config: which signals are read.
        product: our product token.
    """

    def __init__(self, files: Mapping[str, SiteFile], config: RightsConfig, product: str) -> None:
        wanted, self._product = set(config.signals), product
        self._wanted = wanted
        self._robots = Robots(files["robots"], product) if "robots" in files else None
        self._tdmrep = TdmRep(files["tdmrep"]) if "tdmrep" in files and "tdmrep" in wanted else None
        self._ai_txt = AiTxt(files["ai_txt"], product) if "ai_txt" in files and "ai_txt" in wanted else None
        self._said: dict[str, list[Observation]] = {}  # a URL is asked about before it is fetched, and once more after
        self._documents: list[Rsl] = []
        self._unread: list[Observation] = []  # RSL documents that are named and were not asked for
        if "rsl" in wanted and self._robots is not None:
            robots = files["robots"]
            named = dict.fromkeys(joined(robots.url, url) for _, url in self._robots.licences())
            self._documents = [Rsl(files[url]) for url in named if url in files]
            if len(named) > len(self._documents):
                told = f"{len(named)} licences are named, {len(self._documents)} were read"
                self._unread = [Observation(rsl.SIGNAL, told, robots.url, Verdict.ERROR, robots.observed_at)]
        self.unreachable = files["robots"].detail if "robots" in files and not _answered(files["robots"]) else None

    def observe(self, url: str) -> list[Observation]:
        """What the site's files say about a URL, TDMRep's left out."""
        found = self._said.get(url)
        if found is None:
            if len(self._said) >= _SAID_KEPT:
                self._said.clear()
            found = self._said[url] = self._observe(url)
        return found

    def _observe(self, url: str) -> list[Observation]:
        found: list[Observation] = []
        if self._robots is not None:
            if "robots" in self._wanted:
                found += self._robots.observe(url)
            if "aipref" in self._wanted:
                found += aipref.observe_robots(self._robots, url)
            if "content_signal" in self._wanted:
                found += content_signals.observe(self._robots, url)
        if self._ai_txt is not None:
            found += self._ai_txt.observe(url)
        for document in self._documents:
            found += document.observe(url)
        return found + self._unread

    def tdmrep(self, url: str) -> list[Observation]:
        """What the site's tdmrep.json says about a URL."""
        return [] if self._tdmrep is None else self._tdmrep.observe(url)

    def refusal(self, url: str, advisory: Sequence[str]) -> Observation | None:
        """Why a URL must not even be asked for, if the site's files say so.

        A reservation in tdmrep.json is not among the reasons: the answer's own header may take it back.
        """
        return next((o for o in self.observe(url) if o.verdict == Verdict.DENY and o.signal not in advisory), None)


def _answered(file: SiteFile) -> bool:
    return file.status == 200 or file.is_absent


def of_answer(
    url: str,
    headers: Headers,
    config: RightsConfig,
    product: str,
    *,
    site: Site | None = None,
    stated: Stated | None = None,
    documents: Mapping[str, SiteFile] | None = None,
) -> list[Observation]:
    """What is said about a URL by its site, the headers of its answer, and a page.

    Args:
        url: what was asked for.
        headers: of the answer, by lower-case name, a value for each line.
        site: of the URL.
        stated: the page that shows the picture, or the answer itself where it is a page.
        documents: RSL documents that headers and page link to (`rsl_links`), by URL.
    """
    wanted = set(config.signals)
    found = [] if site is None else list(site.observe(url))
    if "aipref" in wanted:
        found += aipref.observe_headers(headers.get("content-usage", ()), url)
    if "content_signal" in wanted:
        found += content_signals.observe_headers(headers.get("content-signal", ()), url)
    if "tdmrep" in wanted:
        found += tdmrep.resolve(
            [] if site is None else site.tdmrep(url),
            tdmrep.observe_headers(headers, url),
            [] if stated is None else tdmrep.observe_page(stated.page, stated.url),
            of_page=stated is not None and stated.url == url,
        )
    if "robots_tags" in wanted:
        found += robots_tags.observe_headers(headers.get("x-robots-tag", ()), url, product, config.indexing)
        if stated is not None:
            found += robots_tags.observe_page(stated.page, stated.url, product, config.indexing)
    if "rsl" in wanted:
        for document in (documents or {}).values():
            found += Rsl(document).observe(url)
        if stated is not None:
            found += rsl.observe_page(stated.page, stated.url)
    return list(dict.fromkeys(found))


def rsl_links(url: str, headers: Headers, stated: Stated | None) -> list[str]:
    """URLs of the RSL documents that an answer or a page links to."""
    links = [joined(url, link) for link in links_of_headers(headers.get("link", ()))]
    if stated is not None:
        links += links_of_page(stated.page, stated.url)
    return list(dict.fromkeys(links))


def of_file(data: bytes, config: RightsConfig) -> list[Observation]:
    """What a file's C2PA manifest says. (Its XMP is read by `metadata`, and weighed by `embedded`.)"""
    if "c2pa" not in config.signals:
        return []
    return c2pa.observe(data, trusted_only=config.trusted_only, anchors=config.anchors or "")
