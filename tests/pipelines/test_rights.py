"""`cleanplate rights check`: what a person is shown is what a job would see, and no more is asked than a job would."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from curation.errors import UserError
from curation.takedowns import Ledger, Selector
from pipelines import rights
from tests.curation.hosts import Answer, Hosts
from tests.curation.pictures import encoded, noise

PICTURE = encoded(noise(1))


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with Hosts() as server:
        yield server


def asked(hosts: Hosts, url: str) -> int:
    host, _, path = url.removeprefix("http://").partition("/")
    return hosts.asked[host.partition(":")[0], f"/{path}"]


def job_of(folder: Path, **changes: Any) -> str:
    fields = {"kind": "curate", "source": {"kind": "folder", "path": str(folder)}, "output": str(folder / "out")}
    path = folder / "job.json"
    path.write_text(json.dumps(fields | changes))
    return str(path)


def test_every_observation_is_shown(hosts: Hosts, capsys: pytest.CaptureFixture[str]) -> None:
    site = hosts.add(robots__txt=Answer(b"User-agent: GPTBot\nDisallow: /\nUser-agent: *\nAllow: /\n"))
    url = hosts.put(f"{site}/a.png", Answer(PICTURE, headers=[("X-Robots-Tag", "NoAI")]))
    found = rights.run(url, allow_private=True)
    assert found.verdict == "deny"
    seen = {o.signal: (o.value, o.verdict, o.where) for o in found.observations}
    assert seen == {
        "robots": ("Allow: /", "allow", f"{site}/robots.txt:4"),
        "robots_ai_agents": (seen["robots_ai_agents"][0], "unknown", f"{site}/robots.txt:2"),
        "x_robots_tag": ("NoAI", "deny", url),
    }
    assert set(found.model_dump()["observations"][0]) == {"signal", "value", "where", "observed_at", "verdict"}
    rights.show(found)
    assert "deny: refused" in capsys.readouterr().out


def test_what_only_advises_decides_where_the_job_says_so(hosts: Hosts, tmp_path: Path) -> None:
    site = hosts.add(robots__txt=Answer(b"User-agent: GPTBot\nDisallow: /\n"))
    url = hosts.put(f"{site}/a.png", Answer(PICTURE))
    assert rights.run(url, allow_private=True).verdict == "unknown"
    heeding = job_of(tmp_path, rights={"advisory": []})
    assert rights.run(url, job=heeding, allow_private=True).verdict == "deny"


def test_who_may_not_be_asked_for_is_not_asked_for_also_at_the_end_of_a_redirect(hosts: Hosts) -> None:
    closed = hosts.add(robots__txt=Answer(b"User-agent: *\nDisallow: /\n"))
    url = hosts.put(f"{closed}/a.png", Answer(PICTURE))
    leads = hosts.put(f"{hosts.add()}/a.png", Answer(status=302, headers=[("Location", url)]))
    for subject in (url, leads):
        found = rights.run(subject, allow_private=True)
        assert found.verdict == "deny"
        assert [o.where for o in found.observations if o.verdict == "deny"] == [f"{closed}/robots.txt:2"]
    assert asked(hosts, leads) == 1
    assert asked(hosts, url) == 0


def test_a_password_is_used_and_not_shown(hosts: Hosts, tmp_path: Path) -> None:
    ledger = Ledger.open(str(tmp_path / "takedowns"))
    for name, answer in (("a.png", Answer(PICTURE)), ("b.png", Answer(status=401))):
        url = hosts.put(f"{hosts.add()}/{name}", answer)
        ledger.append_entry(requester="A", ground="B", selectors=[Selector.of("uri", url)])
        found = rights.run(url.replace("//", "//user:s3cret@"), ledger=ledger.uri, allow_private=True)
        assert "s3cret" not in found.model_dump_json()
        assert [o.value for o in found.observations if o.signal == "takedown"] == [f"uri={url}"]


def test_a_file_speaks_for_itself_and_a_request_about_it_counts(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(PICTURE)
    assert rights.run(str(file)).verdict == "unknown"
    ledger = Ledger.open(str(tmp_path / "takedowns"))
    ledger.append_entry(
        requester="A", ground="B", selectors=[Selector.of("sha256", hashlib.sha256(PICTURE).hexdigest())]
    )
    assert rights.run(str(file), ledger=ledger.uri).verdict == "deny"


@pytest.mark.parametrize("subject", ["http://", "nowhere.png", "http://127.0.0.1:9/a.png"])
def test_what_cannot_be_checked_is_a_user_s_mistake(subject: str) -> None:
    with pytest.raises(UserError) as caught:
        rights.run(subject)
    assert caught.value.field in ("URL", "FILE")
    assert caught.value.remedy


def test_a_site_that_is_ill_is_not_said_to_refuse(hosts: Hosts, capsys: pytest.CaptureFixture[str]) -> None:
    site = hosts.add(robots__txt=Answer(status=500))
    found = rights.run(f"{site}/a.png", allow_private=True)
    assert found.verdict == "deny"
    rights.show(found)
    assert "deny: its site cannot be asked" in " ".join(capsys.readouterr().out.split())
