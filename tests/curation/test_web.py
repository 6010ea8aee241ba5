"""The web fetcher against a server that misbehaves: each URL's row says what happened, and nobody is asked too much."""

from __future__ import annotations

import socket
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.addresses import public_address
from curation.fetch import FetchConfig, Fetched
from curation.manifest import Reason, now
from curation.web import Web
from tests.curation.faults import PICTURE, Faults, bomb


@pytest.fixture
def site() -> Iterator[Faults]:
    with Faults() as server:
        yield server


class Names(AbstractResolver):
    """A name service: every name is 127.0.0.1 but those that are given; counts what it is asked."""

    def __init__(self, **addresses: list[str]) -> None:
        self.asked: Counter[str] = Counter()
        self._addresses = addresses

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_INET) -> list[ResolveResult]:
        self.asked[host] += 1
        found = self._addresses.get(host.partition(".")[0], ["127.0.0.1"])
        if not found:
            raise OSError("no such name")
        address = found.pop(0) if len(found) > 1 else found[0]
        return [ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        pass


def web(resolver: AbstractResolver | None = None, is_public: Any = None, **fields: Any) -> Web:
    defaults = {"allow_private": is_public is None, "timeout_s": 0.3, "retries": 1, "backoff_s": 0.01}
    return Web(FetchConfig.model_validate(defaults | {"total_timeout_s": 5} | fields), resolver, is_public)


def fetch(site: Faults, *paths: str, **fields: Any) -> list[Fetched]:
    client = web(**fields)
    try:
        return list(client.fetch([site.url(path) for path in paths]))
    finally:
        client.close()


@pytest.mark.parametrize(
    ("path", "reason", "asked"),
    [
        ("/ok", None, 1),
        ("/chunked", None, 1),
        ("/html", None, 1),  # what it is, decoding finds out
        ("/empty", None, 1),
        ("/gzip", None, 1),
        # Failures that may pass are asked again, as often as `retries` says.
        ("/silent", Reason.TIMEOUT, 2),
        ("/stall", Reason.TIMEOUT, 2),
        ("/reset", Reason.CONNECTION, 2),
        ("/reset?times=1", None, 2),
        ("/too-short", Reason.WRONG_LENGTH, 2),
        ("/too-short?times=1", None, 2),
        ("/gzip-short", Reason.WRONG_LENGTH, 2),
        ("/garbage", Reason.CONNECTION, 2),
        ("/hang-up", Reason.CONNECTION, 4),  # aiohttp itself takes it for a kept connection gone stale, and asks again
        ("/500", "http_500", 2),
        ("/busy?status=503&times=1", None, 2),
        ("/busy?times=1&after=0", None, 2),
        ("/busy", "http_429", 2),
        # Refusals and what will not change are not.
        ("/401", "http_401", 1),
        ("/403", "http_403", 1),
        ("/404", "http_404", 1),
        ("/410", "http_410", 1),
        ("/418", "http_418", 1),
        ("/451", "http_451", 1),
        ("/206", "http_206", 1),
        ("/busy?after=1000", "http_429", 1),
        ("/endless", Reason.TOO_LARGE, 1),
        ("/announced", Reason.TOO_LARGE, 1),
        ("/ok?size=100001", Reason.TOO_LARGE, 1),
        ("/loop", Reason.TOO_MANY_REDIRECTS, 2),
        ("/chain?left=6", Reason.TOO_MANY_REDIRECTS, 6),
        ("/chain?left=5", None, 6),
        ("/to?url=ftp://127.0.0.1/x", Reason.BAD_URL, 1),
        ("/to?url=http://[x", Reason.BAD_URL, 1),
        ("/gzip-broken", Reason.CORRUPT, 1),
        ("/brotli", Reason.UNSUPPORTED_FORMAT, 1),
    ],
)
def test_each_fault_is_a_row_with_its_reason(site: Faults, path: str, reason: str | None, asked: int) -> None:
    (found,) = fetch(site, path, max_bytes=100_000)
    assert found.reason == reason
    assert (found.data is None) == (reason is not None)
    assert (found.detail is None) == (reason is None)
    assert site.asked[path.partition("?")[0]] == asked


def test_a_body_that_only_drips_ends_by_the_total_timeout(site: Faults) -> None:
    (found,) = fetch(site, "/drip", total_timeout_s=0.5)
    assert (found.reason, site.asked["/drip"]) == (Reason.TIMEOUT, 1)


def test_a_gzip_bomb_is_not_expanded_in_memory(site: Faults) -> None:
    assert len(bomb()) < 8 * 2**20
    tracemalloc.start()
    try:
        (found,) = fetch(site, "/bomb", max_bytes=8 * 2**20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.reason == Reason.TOO_LARGE
    assert peak < 40 * 2**20  # of 4 GiB: the server's own copies of the bomb, and the 8 MiB that are allowed


def test_a_body_longer_than_announced_does_not_leak_into_the_next_answer(site: Faults) -> None:
    found = fetch(site, *["/too-long"] * 3, "/ok", "/ok", connections=1)
    assert [f.data for f in found] == [PICTURE] * 5


def test_results_stand_in_the_order_of_the_urls(site: Faults) -> None:
    sizes = [(7 * i) % 40 for i in range(40)]
    paths = [f"/ok?size={size}&wait={size / 1000}" for size in sizes]
    assert [len(f.data or b"") for f in fetch(site, *paths, per_host=16)] == sizes


def test_the_caller_works_while_later_urls_are_on_their_way(site: Faults) -> None:
    client = web(timeout_s=5, per_host=4)
    results = client.fetch([site.url("/ok"), *[site.url("/held")] * 3])
    assert next(results).data == PICTURE
    _until(lambda: site.asked["/held"] == 3)  # before the caller asked for them
    site.release.set()
    assert [f.data for f in results] == [PICTURE] * 3
    client.close()


def test_what_a_response_said_is_kept(site: Faults) -> None:
    (found,) = fetch(site, "/ok")
    assert dict(found.headers) == {
        "etag": '"e1"',
        "last-modified": "Mon, 01 Jan 2024 00:00:00 GMT",
        "content-type": "image/jpeg",
        "x-robots-tag": "noai, noimageai",
        "tdm-reservation": "1",
    }
    assert found.at is not None
    assert abs((found.at - now()).total_seconds()) < 60
    (odd, refused) = fetch(site, "/odd-headers", "/403")
    assert odd.headers["link"] == "</caf�>; rel=license"
    assert refused.headers["x-robots-tag"] == "noai"


def test_redirects_are_on_record_in_order(site: Faults) -> None:
    direct, moved, gone, odd = fetch(site, "/ok", "/chain?left=2", "/to?url=/404", "/to-bytes")
    assert (direct.redirects, direct.final_uri) == ((), None)
    assert moved.redirects == (site.url("/chain?left=1"), site.url("/chain?left=0"))
    assert moved.final_uri == site.url("/chain?left=0")
    assert (gone.reason, gone.redirects) == ("http_404", (site.url("/404"),))
    assert odd.final_uri == site.url("/caf%E9%20au%20lait")


def test_a_host_that_asks_for_rest_gets_it(site: Faults) -> None:
    found = fetch(site, "/busy?times=1&after=1", "/ok", "/ok", per_host=1)
    assert [f.reason for f in found] == [None] * 3
    first, *others = site.starts["127.0.0.1"]
    assert min(others) - first >= 0.99


def test_a_host_that_asks_for_a_long_rest_is_not_asked_again(site: Faults) -> None:
    until = format_datetime(now().replace(year=now().year + 1), usegmt=True).replace(" ", "%20")
    found = fetch(site, f"/busy?after={until}", "/ok", "/ok", per_host=1)
    assert [f.reason for f in found] == ["http_429"] * 3
    assert site.asked == {"/busy": 1}


def test_a_host_where_nothing_works_is_let_alone(site: Faults) -> None:
    found = fetch(site, *["/busy"] * 50, retries=0, per_host=1)
    assert [f.reason for f in found] == ["http_429"] * 50
    assert site.asked["/busy"] == 16
    found = fetch(site, *["/busy?times=0", "/404"] * 20, retries=0)
    assert [f.reason for f in found] == [None, "http_404"] * 20


def test_requests_to_one_host_at_a_time(site: Faults) -> None:
    names = Names()
    client = web(names, per_host=3, connections=64)
    hosts = ["a.example", "b.example"]
    urls = [site.url("/ok?wait=0.03", host) for _ in range(15) for host in hosts]
    assert {f.reason for f in client.fetch(urls)} == {None}
    assert {host: site.most[host] for host in hosts} == dict.fromkeys(hosts, 3)
    assert names.asked == dict.fromkeys(hosts, 1)  # the answers of the name service are remembered
    client.close()


def test_connections_of_a_worker(site: Faults) -> None:
    client = web(Names(), connections=4)
    urls = [site.url("/ok?wait=0.02", f"h{i}.example") for i in range(20)]
    assert {f.reason for f in client.fetch(urls)} == {None}
    assert site.most["*"] == 4
    client.close()


def test_a_delay_between_the_starts_of_requests_to_one_host(site: Faults) -> None:
    client = web(Names(), delay_s=0.1, per_host=4)
    urls = [site.url("/ok?wait=0.05", host) for host in ["a.example"] * 4 + ["b.example"] * 4]
    assert {f.reason for f in client.fetch(urls)} == {None}
    for starts in site.starts.values():
        assert min(b - a for a, b in pairwise(starts)) > 0.05
    assert max(starts[0] for starts in site.starts.values()) < min(starts[-1] for starts in site.starts.values()), (
        "hosts do not wait for each other"
    )
    client.close()


def test_waiting_for_a_turn_does_not_count_as_time_of_the_url(site: Faults) -> None:
    found = fetch(site, *["/ok?wait=0.1"] * 8, per_host=1, total_timeout_s=0.4, timeout_s=0.4)
    assert [f.reason for f in found] == [None] * 8


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 3000), max_size=30),
    budget=st.integers(1, 8000),
    connections=st.integers(1, 8),
    length=st.booleans(),
)
def test_bytes_held_are_bounded_and_nothing_stops(
    sizes: list[int], budget: int, connections: int, length: bool
) -> None:
    with Faults() as site:
        client = web(bytes_in_flight=budget, connections=connections, per_host=3, timeout_s=5)
        path = "/ok" if length else "/chunked"
        found = [len(f.data or b"") for f in client.fetch([site.url(f"{path}?size={size}") for size in sizes])]
        assert found == sizes
        assert client.held.peak <= budget + max(sizes, default=0)
        _until(lambda: client.held.now == 0)
        client.close()


def test_a_full_budget_holds_up_neither_retries_nor_redirects(site: Faults) -> None:
    """Bodies that wait for room have no connection in hand that the first in line could want."""
    first = ["/busy?status=503&times=1", "/to?url=/ok?size=900", "/chain?left=3"]
    found = fetch(site, *first, *["/ok?size=900"] * 20, bytes_in_flight=1000, connections=2, per_host=1)
    assert [f.reason for f in found] == [None] * 23


def test_an_iterator_that_is_closed_lets_go_of_everything(site: Faults) -> None:
    client = web(timeout_s=30)
    results = client.fetch([site.url("/ok"), *[site.url("/held")] * 10])
    next(results)
    _until(lambda: site.asked["/held"] > 0)
    results.close()
    _until(lambda: client.held.now == 0)
    assert next(client.fetch([site.url("/ok")])).data == PICTURE  # and goes on working
    client.close()


def test_closing_the_fetcher_ends_a_waiting_caller(site: Faults) -> None:
    client = web(timeout_s=30)
    with ThreadPoolExecutor(1) as thread:
        caller = thread.submit(list, client.fetch([site.url("/held")]))
        _until(lambda: site.asked["/held"] > 0)
        client.close()
        assert isinstance(caller.exception(10), CancelledError)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0x7f000001", "0177.0.0.1"),
        *("10.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "[fe80::1]", "[fd00::1]", "[64:ff9b::7f00:1]"),
        *("2130706433", "127.1", "0"),
    ],
)
def test_private_addresses_are_refused_however_they_are_spelled(site: Faults, host: str) -> None:
    client = web(allow_private=False)
    (found,) = client.fetch([site.url("/ok", host)])
    assert found.reason in (Reason.REFUSED_ADDRESS, Reason.BAD_URL)
    assert site.connections == 0
    client.close()


def test_no_redirect_and_no_name_leads_to_a_refused_address(site: Faults) -> None:
    with Faults("127.0.0.2") as inside:
        names = Names(inner=["127.0.0.2"], turning=["127.0.0.1", "127.0.0.2"])
        client = web(names, is_public=lambda address: address == "127.0.0.1", dns_ttl_s=0)
        urls = [
            site.url(f"/to?url={inside.url('/ok')}"),
            site.url(f"/to?url={inside.url('/ok', 'inner.example')}"),
            inside.url("/ok", "inner.example"),
            inside.url("/ok"),
        ]
        assert [f.reason for f in client.fetch(urls)] == [Reason.REFUSED_ADDRESS] * 4
        # A name that turns: what was a stranger's at the first look is inside at the second.
        (turned,) = client.fetch([site.url("/hang-up", "turning.example")])
        assert (turned.reason, site.asked["/hang-up"]) == (Reason.REFUSED_ADDRESS, 1)
        client.close()
        assert inside.connections == 0


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *(("93.184.216.34", True), ("2606:2800:220:1::1", True), ("::ffff:8.8.8.8", True), ("64:ff9b::808:808", True)),
        *(("192.168.1.1", False), ("224.0.0.1", False), ("240.0.0.1", False), ("ff02::1", False), ("::", False)),
        *(("2002:7f00:1::1", False), ("fe80::1%eth0", False), ("198.18.0.1", False), ("2130706433", False)),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert public_address(address) is public


def test_a_name_that_does_not_exist_is_asked_for_once(site: Faults) -> None:
    names = Names(gone=[])
    client = web(names, per_host=1)
    found = list(client.fetch([site.url(f"/{i}", "gone.example") for i in range(20)]))
    assert [f.reason for f in found] == [Reason.DNS] * 20
    assert names.asked["gone.example"] == 1
    client.close()


@pytest.mark.parametrize("url", ["http:///x", "http://[bad/x", "http://a:b@[bad/x", "http://x:99999/", "http://x:0/"])
def test_what_is_no_url(site: Faults, url: str) -> None:
    client = web()
    (found,) = client.fetch([url])
    assert (found.reason, found.detail) == (Reason.BAD_URL, "not an http(s) URL")
    client.close()


def test_a_url_is_asked_for_as_it_is_spelled(site: Faults) -> None:
    spelled = ["/a%2Fb%7Ec+d?x=%41&sig=a%2Bb%3D", "/with space/ü"]
    fetch(site, *spelled)
    assert set(site.asked) == {"/a%2Fb%7Ec+d", "/with%20space/%C3%BC"}


def test_who_is_asking(site: Faults) -> None:
    fetch(site, "/ok", contact="https://example.org/bot")
    (head,) = site.heads["/ok"]
    assert head["user-agent"] == "cleanplate/0.1 (+https://example.org/bot)"
    assert head["accept-encoding"] == "identity"
    assert "authorization" not in head


def test_credentials_go_to_their_host_and_are_never_shown(site: Faults) -> None:
    client = web(Names())
    secret = "user:s3cret@"
    urls = [
        f"http://{secret}a.example:{site.port}{path}"
        for path in ("/ok", "/404", "/to?url=/204x", f"/to?url={site.url('/html', 'b.example')}", "/reset", "/loop")
    ]
    urls.append(site.url(f"/to?url=http://{secret}b.example:{site.port}/empty"))
    found = list(client.fetch(urls))
    client.close()
    shown = [replace(one, answers=()) for one in found]  # an answer's URL is as it was asked for, its query too
    assert "s3cret" not in repr(shown)
    assert not any("@" in answer.url.partition("?")[0] for one in found for answer in one.answers)
    sent = {path: {"authorization" in head for head in heads} for path, heads in site.heads.items()}
    assert sent["/ok"] == sent["/404"] == sent["/204x"] == sent["/empty"] == {True}
    assert sent["/html"] == {False}
    assert found[3].final_uri == site.url("/html", "b.example")


def _until(ready: Any) -> None:
    deadline = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.005)
