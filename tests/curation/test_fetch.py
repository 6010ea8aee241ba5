"""Fetching: every kind of location in one stream, in order, and what a job must say before it may ask strangers."""

from __future__ import annotations

import os
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from curation import storage
from curation.containers import tar_member
from curation.errors import UserError
from curation.fetch import PASSING, FetchConfig, Fetcher
from curation.manifest import Reason
from curation.places import host_and_domain
from tests.curation.faults import PICTURE, Faults
from tests.curation.seaweed import seaweed


def fetcher(**fields: Any) -> Fetcher:
    return Fetcher(FetchConfig.model_validate({"allow_private": True, "max_bytes": 1000, "retries": 0} | fields))


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"picture")
    (tmp_path / "large").write_bytes(b"x" * 1001)
    os.mkfifo(tmp_path / "pipe")
    names = ("a", "large", "absent", "", "pipe", "a/b")
    found = list(fetcher()([str(tmp_path / name) for name in names] + ["", "ftp://x/y", "nul\0"]))
    assert [f.reason for f in found] == [
        *(None, Reason.TOO_LARGE, Reason.NOT_FOUND, Reason.NOT_A_FILE, Reason.NOT_A_FILE, Reason.NOT_FOUND),
        *(Reason.NOT_FOUND, Reason.UNREADABLE, Reason.UNREADABLE),
    ]
    assert found[0].at is not None
    assert found[0].at.timestamp() == pytest.approx((tmp_path / "a").stat().st_mtime, abs=1e-3)


def test_files_are_read_one_at_a_time_as_they_are_asked_for(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(b"before")
    results = fetcher()([str(path) for path in paths])
    assert next(results).data == b"before"
    paths[1].write_bytes(b"after")
    assert next(results).data == b"after"


def test_all_kinds_of_locations_come_in_order(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a file")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        member = tarfile.TarInfo("a.jpg")
        member.size = 8
        tar.addfile(member, BytesIO(b"a member"))
    inside = tar_member(str(tmp_path / "x.tar"), 512, 8)
    with Faults() as site:
        kinds = {
            str(tmp_path / "file"): (b"a file", None),
            inside: (b"a member", None),
            site.url("/ok?wait=0.05"): (PICTURE, None),
            site.url("/404"): (None, "http_404"),
            "ftp://x/y": (None, Reason.UNREADABLE),
            tar_member(str(tmp_path / "none.tar"), 512, 8): (None, Reason.NOT_FOUND),
        }
        once = list(kinds)
        locations = [*once, *once[::-1], *once[::2], *once[2:4] * 3, once[1], once[1]]
        fetch = fetcher()
        assert [(f.data, f.reason) for f in fetch(locations)] == [kinds[location] for location in locations]
        fetch.close()
        assert [f.data for f in fetch(once[:3])] == [kinds[location][0] for location in once[:3]]  # it opens anew
        fetch.close()


def test_urls_are_on_their_way_while_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"a file")
    with Faults() as site:
        fetch = fetcher()
        results = fetch([site.url("/ok"), *[str(tmp_path / "file")] * 3, site.url("/404")])
        assert next(results).data == PICTURE
        assert [next(results).data for _ in range(3)] == [b"a file"] * 3
        assert next(results).reason == "http_404"
        assert list(results) == []
        fetch.close()


@pytest.mark.slow
def test_objects_of_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with seaweed(tmp_path) as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        storage._s3.cache_clear()
        for i in range(30):
            store.put("bucket", f"{i}.jpg", b"%d" % i * (i + 1))
        store.put("bucket", "large", b"x" * 1001)
        names = [f"{i}.jpg" for i in range(30)] + ["large", "absent"]
        for budget in (1, 100, 10**6):
            found = list(fetcher(bytes_in_flight=budget)([f"s3://bucket/{name}" for name in names]))
            assert [f.data for f in found[:30]] == [b"%d" % i * (i + 1) for i in range(30)]
            assert [f.reason for f in found[30:]] == [Reason.TOO_LARGE, Reason.NOT_FOUND]
            assert found[0].at is not None
    storage._s3.cache_clear()


def test_only_the_public_web_asks_for_a_contact() -> None:
    FetchConfig().check(has_urls=False)
    FetchConfig(allow_private=True).check(has_urls=True)
    FetchConfig(contact="mailto:me@example.org").check(has_urls=True)
    with pytest.raises(UserError) as error:
        FetchConfig().check(has_urls=True)
    assert error.value.field == "fetch.contact"
    assert error.value.remedy


@pytest.mark.parametrize("contact", ["me@example.org", "https://x/\r\nX-Evil: 1", "javascript:x", "https://x y", ""])
def test_what_is_no_contact(contact: str) -> None:
    with pytest.raises(ValidationError):
        FetchConfig(contact=contact)


@pytest.mark.parametrize("agent", ["", " ", "a\nb", "bücher/1"])
def test_what_is_no_user_agent(agent: str) -> None:
    with pytest.raises(ValidationError):
        FetchConfig(user_agent=agent)


def test_more_workers_than_requests_a_host_may_get_are_refused() -> None:
    config = FetchConfig(contact="https://example.org", per_host=4, connections=8)
    config.check(has_urls=True, workers=4)
    config.check(has_urls=False, workers=99)
    for fields, workers, field in [({}, 5, "fetch.per_host"), ({"per_host": 99}, 9, "fetch.connections")]:
        with pytest.raises(UserError) as error:
            config.model_copy(update=fields).check(has_urls=True, workers=workers)
        assert error.value.field == field
        assert str(workers) in (error.value.remedy or "")


@given(
    connections=st.integers(1, 1000),
    per_host=st.integers(1, 100),
    size=st.integers(1, 2**40),
    delay=st.floats(0, 100),
    data=st.data(),
)
def test_the_shares_of_all_workers_keep_the_jobs_limits(
    connections: int, per_host: int, size: int, delay: float, data: st.DataObject
) -> None:
    job = FetchConfig(
        connections=connections, per_host=per_host, bytes_in_flight=size, delay_s=delay, contact="https://example.org"
    )
    workers = data.draw(st.integers(1, min(connections, per_host, size)))
    job.check(has_urls=True, workers=workers)
    share = job.share(workers)
    assert 1 <= share.connections <= connections / workers
    assert 1 <= share.per_host <= per_host / workers
    assert 1 <= share.bytes_in_flight <= size / workers
    assert share.delay_s == delay * workers
    assert job.share(1) == job


def test_refusals_do_not_pass() -> None:
    refusals = {f"http_{status}" for status in range(400, 500)} - {"http_429"}
    refusals |= {Reason.REFUSED_ADDRESS, Reason.TOO_LARGE, Reason.TOO_MANY_REDIRECTS, Reason.BAD_URL, Reason.NOT_FOUND}
    assert not PASSING & refusals
    assert {"http_503", "http_429", Reason.WRONG_LENGTH, Reason.DNS, Reason.TIMEOUT, Reason.CONNECTION} <= PASSING


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://img.shop.example.co.uk/x.png", ("img.shop.example.co.uk", "example.co.uk")),
        ("http://example.com:8080/", ("example.com", "example.com")),
        ("http://example.com./", ("example.com", "example.com")),
        ("http://bücher.example/", ("xn--bcher-kva.example", "xn--bcher-kva.example")),
        ("http://127.0.0.1/x", ("127.0.0.1", "127.0.0.1")),
        ("a/b.png", (None, None)),
        ("s3://bucket/key", (None, None)),
        ("http://[broken/x", (None, None)),
    ],
)
def test_registrable_domains(uri: str, expected: tuple[str | None, str | None]) -> None:
    assert host_and_domain(uri) == expected
