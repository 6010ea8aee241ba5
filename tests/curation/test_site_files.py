"""Sites are asked once, for as long as a day, and what they could not be asked is not taken for an answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from curation.fetch import FetchConfig, Fetcher, FetchError
from curation.manifest import Verdict, now
from curation.rights.config import SIGNALS, RightsConfig
from curation.rights.evidence import BODY_LIMIT, SiteFile
from curation.rights.statements import Site
from curation.rights.verdict import verdict
from curation.site_files import Sites, ask_file
from curation.site_rights import SiteRights, own_records
from tests.curation.hosts import Answer, Hosts
from tests.curation.pictures import encoded, noise

DAY = timedelta(days=1)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with Hosts() as server:
        yield server


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    client = Fetcher(FetchConfig(allow_private=True, timeout_s=2, retries=0))
    yield client
    client.close()


class Asked:
    """Answers every file with one status, and counts."""

    def __init__(self, status: int | None = 404, body: bytes = b"") -> None:
        self.status, self.body, self.count = status, body, Counter[str]()

    async def __call__(self, url: str) -> SiteFile:
        self.count[url] += 1
        await asyncio.sleep(0)
        return SiteFile(url=url, status=self.status, body=self.body, observed_at=now())


def test_two_who_ask_at_once_wait_for_one_answer() -> None:
    ask = Asked()

    async def both() -> None:
        sites = Sites(ask, SIGNALS, None, DAY)
        await asyncio.gather(*(sites.of("https://a.example") for _ in range(10)))

    asyncio.run(both())
    assert set(ask.count.values()) == {1}
    assert set(ask.count) == {
        f"https://a.example{path}" for path in ("/robots.txt", "/.well-known/tdmrep.json", "/ai.txt")
    }


def test_a_record_is_kept_for_its_time_and_only_if_it_is_whole(tmp_path: Path) -> None:
    def ask(asked: Asked, age: timedelta = DAY) -> int:
        asyncio.run(Sites(asked, SIGNALS, str(tmp_path), age).of("https://a.example"))
        return asked.count["https://a.example/robots.txt"]

    for status in (None, 500, 429):
        assert ask(Asked(status)) == 1, "what could not be asked is asked again"
    assert ask(Asked(200, b"User-agent: *\nDisallow: /\n")) == 1
    assert ask(Asked()) == 0
    assert ask(Asked(), timedelta(0)) == 1
    for file in tmp_path.iterdir():
        file.write_bytes(b"{ half a record")
    assert ask(Asked()) == 1


def test_only_what_signals_read_is_asked_for() -> None:
    ask = Asked()
    asyncio.run(Sites(ask, ("tdmrep", "c2pa"), None, DAY).of("https://a.example"))
    assert set(ask.count) == {"https://a.example/.well-known/tdmrep.json"}


def test_a_site_that_does_not_answer_is_not_asked_for_more() -> None:
    ask = Asked(None)
    asyncio.run(Sites(ask, SIGNALS, None, DAY).of("https://a.example"))
    assert set(ask.count) == {"https://a.example/robots.txt"}


def test_files_of_a_site_as_they_are_answered(hosts: Hosts, fetcher: Fetcher) -> None:
    site = hosts.add(
        robots__txt=Answer(b"x" * (BODY_LIMIT + 1)),
        gone=Answer(status=410),
        ill=Answer(status=503),
        moved=Answer(status=301, headers=[("Location", "/small")]),
        small=Answer(b"here", headers=[("Content-Type", "text/plain")]),
        round=Answer(status=302, headers=[("Location", "/round")]),
        bomb=Answer(b"\x1f\x8bbroken", headers=[("Content-Encoding", "gzip")]),
    )

    def ask(url: str) -> SiteFile:
        found: SiteFile = fetcher.soon(ask_file(fetcher.web, url)).result()
        return found

    long = ask(f"{site}/robots.txt")
    assert (len(long.body), long.truncated) == (BODY_LIMIT, True)
    assert ask(f"{site}/gone").is_absent
    assert (ask(f"{site}/ill").status, ask(f"{site}/ill").body) == (503, b"")
    moved = ask(f"{site}/moved")
    assert (moved.status, moved.body, moved.url, moved.content_type) == (200, b"here", f"{site}/moved", "text/plain")
    assert (ask(f"{site}/round").status, ask(f"{site}/round").detail) == (None, "too_many_redirects")
    assert ask(f"{site}/bomb").status is None
    assert (ask("http://127.0.0.9:9/robots.txt").detail or "").startswith("connection")
    assert not ask("http://127.0.0.9:9/robots.txt").is_absent


def test_a_private_address_is_not_asked_for_its_robots_txt(hosts: Hosts) -> None:
    client = Fetcher(FetchConfig(retries=0))
    try:
        found = client.soon(ask_file(client.web, f"{hosts.add()}/robots.txt")).result()
        assert (found.status, (found.detail or "").partition(":")[0]) == (None, "refused_address")
        assert not hosts.asked
    finally:
        client.close()


def rights_of(fetcher: Fetcher, **config: Any) -> SiteRights:
    chosen = RightsConfig(**config)
    records = own_records(lambda: fetcher.web, chosen, None)
    return SiteRights(chosen, "cleanplate", records, fetcher.soon)


def test_who_refuses_is_not_asked_and_who_is_ill_may_be_asked_later(hosts: Hosts, fetcher: Fetcher) -> None:
    rights = rights_of(fetcher)
    refuses = hosts.add(robots__txt=Answer(b"User-agent: *\nDisallow: /no/\n"))
    fetcher.soon(rights.admit(f"{refuses}/yes.png")).result()
    for url, reason in (
        (f"{refuses}/no/a.png", "site_refuses"),
        (f"{hosts.add(robots__txt=Answer(status=502))}/a.png", "site_unreachable"),
        ("http://nowhere.invalid/a.png", "dns"),
    ):
        with pytest.raises(FetchError) as caught:
            fetcher.soon(rights.admit(url)).result()
        assert caught.value.reason == reason


def test_what_only_advises_keeps_nobody_out(hosts: Hosts, fetcher: Fetcher) -> None:
    site = hosts.add(ai__txt=Answer(b"User-Agent: *\nDisallow: *.png\n", headers=[("Content-Type", "text/plain")]))
    with pytest.raises(FetchError):
        fetcher.soon(rights_of(fetcher).admit(f"{site}/a.png")).result()
    fetcher.soon(rights_of(fetcher, advisory=("ai_txt",)).admit(f"{site}/a.png")).result()


def test_an_rsl_document_that_a_header_links_to_is_read_once(hosts: Hosts) -> None:
    document = (
        '<rsl xmlns="https://rslstandard.org/rsl"><content url="/"><license>'
        '<prohibits type="usage">ai-all</prohibits></license></content></rsl>'
    )
    site = hosts.add(licence=Answer(document.encode()))
    link = ("Link", f'<{site}/licence>; rel="license"; type="application/rsl+xml"')
    urls = [hosts.put(f"{site}/{i}.png", Answer(encoded(noise(i)), headers=[link])) for i in range(3)]
    client = Fetcher(FetchConfig(allow_private=True, retries=0))
    try:
        rights = rights_of(client)
        for url, fetched in zip(urls, client(urls), strict=True):
            assert [o.signal for o in rights.observe(url, fetched) if o.verdict == Verdict.DENY] == ["rsl"]
    finally:
        client.close()
    host = site.removeprefix("http://").partition(":")[0]
    assert hosts.asked[host, "/licence"] == 1


def rsl(usage: str) -> bytes:
    return (
        f'<rsl xmlns="https://rslstandard.org/rsl"><content url="/"><license><{usage} type="usage">ai-all</{usage}>'
        "</license></content></rsl>"
    ).encode()


def test_a_record_of_a_job_that_read_no_licences_is_none_for_one_that_does(tmp_path: Path) -> None:
    origin = "https://a.example"

    async def ask(url: str) -> SiteFile:
        bodies = {f"{origin}/robots.txt": b"License: /licence.xml\n", f"{origin}/licence.xml": rsl("prohibits")}
        return SiteFile(url=url, status=200 if url in bodies else 404, body=bodies.get(url, b""), observed_at=now())

    def denied(*signals: Any) -> bool:
        record = asyncio.run(Sites(ask, signals, str(tmp_path), DAY).of(origin))
        found = Site(record.files, RightsConfig(signals=signals), "cleanplate").observe(f"{origin}/a.png")
        return any(o.verdict == Verdict.DENY for o in found)

    assert not denied("robots")
    assert denied("robots", "rsl")


def test_licences_beyond_those_that_are_read_are_an_error_and_not_silence() -> None:
    origin, many = "https://a.example", 9

    async def ask(url: str) -> SiteFile:
        if url.endswith(".xml"):
            return SiteFile(url=url, status=200, body=rsl("permits"), observed_at=now())
        body = "".join(f"License: /{i}.xml\n" for i in range(many)).encode()
        return SiteFile(url=url, status=200 if url.endswith("robots.txt") else 404, body=body, observed_at=now())

    record = asyncio.run(Sites(ask, SIGNALS, None, DAY).of(origin))
    found = Site(record.files, RightsConfig(), "cleanplate").observe(f"{origin}/a.png")
    assert verdict(found) == Verdict.ERROR
    assert [o.value for o in found if o.verdict == Verdict.ERROR] == ["9 licences are named, 8 were read"]


def test_a_list_of_millions_of_sites_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.site_files._SITES_KEPT", 2)
    ask = Asked()

    async def all_of_them() -> int:
        sites = Sites(ask, ("ai_txt",), None, DAY)
        for i in range(5):
            await sites.of(f"https://{i}.example")
        return len(sites._known)

    assert asyncio.run(all_of_them()) == 2


def test_what_a_page_permits_is_for_the_page_and_what_it_refuses_for_its_pictures(hosts: Hosts) -> None:
    allows = [("Content-Usage", "train-ai=y"), ("tdm-reservation", "0"), ("Content-Type", "text/html")]
    site = hosts.add(allows=Answer(b"<p>", headers=allows))
    hosts.put(f"{site}/refuses", Answer(b"<meta name=robots content=noai>", headers=[("X-Robots-Tag", "noml")]))
    url = hosts.put(f"{site}/a.png", Answer(encoded(noise(1))))
    client = Fetcher(FetchConfig(allow_private=True, retries=0))
    try:
        rights = rights_of(client)
        picture, *pages = client([url, f"{site}/allows", f"{site}/refuses", f"{site}/gone"])
        permissive, refusing, gone = (
            rights.read(f"{site}/{name}", page) for name, page in zip(("allows", "refuses", "gone"), pages, strict=True)
        )
        said = {name: verdict(rights.observe(url, picture, page)) for name, page in (
            ("none", None), ("permissive", permissive), ("refusing", refusing), ("gone", gone)
        )}  # fmt: skip
        assert said == {
            "none": Verdict.UNKNOWN,
            "permissive": Verdict.UNKNOWN,
            "refusing": Verdict.DENY,
            "gone": Verdict.ERROR,
        }
        assert verdict(rights.observe(f"{site}/allows", pages[0], permissive)) == Verdict.ALLOW, "of itself it counts"
        heard = {o.signal for o in rights.observe(url, picture, refusing) if o.verdict == Verdict.DENY}
        assert heard == {"x_robots_tag", "meta_robots"}
    finally:
        client.close()


@pytest.mark.parametrize("anchors", ["/etc/ssl/roots.pem", "-----BEGIN PUBLIC KEY-----"])
def test_anchors_are_certificates_and_not_their_path(anchors: str) -> None:
    with pytest.raises(ValidationError, match="anchors is no PEM text"):
        RightsConfig(anchors=anchors)
