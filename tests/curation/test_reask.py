"""What is heard again of rows, and what a recheck makes of it: places apart, copies together, nothing forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from curation.errors import UserError
from curation.fetch import FetchConfig
from curation.manifest import Decision, Manifest, Verdict
from curation.reask import Asker, web_rows
from curation.recheck import derive, sources
from curation.rights.config import RightsConfig
from curation.rights.verdict import Observation
from curation.takedowns import Ledger, Selector
from tests.curation.hosts import Answer, Hosts
from tests.curation.pictures import encoded, noise
from tests.curation.takedowns.manifests import published, row_of

HERE, THERE, OTHER = "https://here.example/a.png", "https://there.example/a.png", "https://other.example/b.png"


def manifest(folder: Path, *rows: dict[str, Any], **job: Any) -> Manifest:
    fields = {"source": {"kind": "folder", "path": "."}, "output": str(folder), "clip": None, "captions": []}
    return published(folder, list(rows), job=fields | {"licences": {"unstated": "keep"}} | job)


def kept(uri: str) -> set[str]:
    return set(Manifest.open(uri).table(["uri"], decision=Decision.KEPT)["uri"].to_pylist())


def refusal(uri: str) -> list[Observation]:
    return [Observation("x_robots_tag", "noai", uri, Verdict.DENY)]


@pytest.mark.parametrize("refusing", [HERE, THERE])
def test_the_same_bytes_at_two_places_are_asked_about_apart(tmp_path: Path, refusing: str) -> None:
    picture = encoded(noise(1))
    base = manifest(tmp_path, *(row_of(picture, uri) for uri in (HERE, THERE)), row_of(encoded(noise(2)), OTHER))
    other = THERE if refusing == HERE else HERE
    result = derive(sources(base), {refusing: refusal(refusing), other: [], OTHER: []})
    assert kept(result.manifest) == {OTHER}
    rows = {row["uri"]: row for row in Manifest.open(result.manifest).table().to_pylist()}
    assert (rows[refusing]["reason"], rows[other]["reason"]) == ("opted_out", "opted_out_near_copy")


def test_who_refuses_a_copy_that_was_left_out_refuses_the_picture(tmp_path: Path) -> None:
    picture = encoded(noise(1))
    copy = row_of(picture, THERE, decision="dropped", reason="duplicate_exact")
    small = row_of(encoded(noise(3)), "https://small.example/c.png", decision="dropped", reason="too_small")
    base = manifest(tmp_path, row_of(picture, HERE), copy, small, row_of(encoded(noise(2)), "b.png"))
    assert [[row["uri"] for row in rows] for rows in web_rows(base)] == [[HERE, THERE]]
    result = derive(sources(base), {HERE: [], THERE: refusal(THERE)})
    assert kept(result.manifest) == {"b.png"}
    rows = {row["uri"]: row for row in Manifest.open(result.manifest).table().to_pylist()}
    assert (rows[THERE]["reason"], rows[THERE]["rights_verdict"]) == ("duplicate_exact", "deny")
    assert [o["signal"] for o in rows[THERE]["rights"]] == ["x_robots_tag", "licence"]
    assert rows[THERE]["was_kept"] is None
    unasked = derive(sources(base), {HERE: [], THERE: []}, str(tmp_path / "again"))
    assert kept(unasked.manifest) == {HERE, "b.png"}


def test_a_list_that_a_recheck_was_given_counts_for_what_is_derived_from_it(tmp_path: Path) -> None:
    base = manifest(tmp_path, row_of(encoded(noise(1)), HERE), row_of(encoded(noise(2)), OTHER))
    (tmp_path / "list.csv").write_text("domain\nhere.example\n")
    child = derive(sources(base, optout=[str(tmp_path / "list.csv")]), None)
    assert kept(child.manifest) == {OTHER}
    assert kept(derive(sources(Manifest.open(child.manifest)), None).manifest) == {OTHER}


def test_a_ledger_that_moved_takes_nothing_back(tmp_path: Path) -> None:
    base = manifest(tmp_path / "m", row_of(encoded(noise(1)), HERE), row_of(encoded(noise(2)), OTHER))
    ledger = Ledger.open(str(tmp_path / "m" / "takedowns"))
    ledger.append_entry(requester="A", ground="B", selectors=[Selector.of("uri", HERE)])
    child = Manifest.open(derive(sources(base), None).manifest)
    assert kept(child.uri) == {OTHER}
    assert sources(base, ledger=child.uri).ledger.uri == ledger.uri, "a manifest names its ledger"
    Path(ledger.uri).rename(tmp_path / "moved")
    for given in (None, str(tmp_path / "mistyped")):
        with pytest.raises(UserError, match="has no entries") as caught:
            sources(child, ledger=given)
        assert caught.value.field == "ledger"
    found = sources(child, ledger=str(tmp_path / "moved"))
    assert kept(derive(found, None).manifest) == {OTHER}
    Ledger.open(str(tmp_path / "moved")).withdraw(found.state.entries[0].id, by="A", why="C")
    assert kept(derive(sources(child, ledger=str(tmp_path / "moved")), None).manifest) == {HERE, OTHER}


def test_every_row_is_answered_for_by_its_own_place() -> None:
    with Hosts() as hosts:
        picture = encoded(noise(1))
        allows, refuses = hosts.add(), hosts.add()
        urls = [
            hosts.put(f"{allows}/a.png", Answer(picture)),
            hosts.put(f"{refuses}/a.png", Answer(picture, headers=[("X-Robots-Tag", "noai")])),
        ]
        asker = Asker(FetchConfig(allow_private=True, retries=0), RightsConfig())
        try:
            answers = dict(asker([{"uri": url, "page_url": None} for url in urls]))
        finally:
            asker.close()
    denied = {url: [o.signal for o in found if o.verdict == Verdict.DENY] for url, found in answers.items()}
    assert denied == {urls[0]: [], urls[1]: ["x_robots_tag"]}


@pytest.mark.parametrize("status", [403, 404, 405, 500, 501])
def test_what_a_server_without_head_says_is_heard(status: int) -> None:
    refusing = [("X-Robots-Tag", "noai")]
    with Hosts() as hosts:
        site = hosts.add()
        there = hosts.put(f"{site}/a.png", Answer(encoded(noise(1)), headers=refusing, head=status))
        gone = hosts.put(f"{site}/b.png", Answer(status=410, head=status))
        asker = Asker(FetchConfig(allow_private=True, retries=0), RightsConfig())
        try:
            answers = dict(asker([{"uri": url, "page_url": None} for url in (there, gone)]))
        finally:
            asker.close()
    assert [(o.signal, o.verdict) for o in answers[there]][1:] == [("x_robots_tag", Verdict.DENY)]
    assert [(o.signal, o.verdict) for o in answers[gone]][1:] == [("recheck", Verdict.UNKNOWN)]


def test_an_entry_is_said_to_have_removed_what_was_there(tmp_path: Path) -> None:
    rows = [row_of(encoded(noise(i)), f"{i}.png", creator="Jane") for i in range(3)]
    rows[2] |= {"decision": "dropped", "reason": "too_small"}
    base = manifest(tmp_path, *rows, row_of(encoded(noise(9)), "9.png"))
    entry = Ledger.open(str(tmp_path / "takedowns")).append_entry(
        requester="Jane", ground="B", selectors=[Selector.of("creator", "jane")]
    )
    result = derive(sources(base), None)
    assert result.entries == {entry.id: 2}
    assert result.changes == {"opted_out": 2}


def test_a_folder_that_cannot_be_written_is_a_user_s_mistake(tmp_path: Path) -> None:
    base = manifest(tmp_path, row_of(encoded(noise(1)), "1.png"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be read, or") as caught:
        derive(sources(base), None, str(tmp_path / "file" / "below"))
    assert caught.value.field == "--out"


def test_another_ledger_counts_if_it_has_all_that_was_heeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = manifest(tmp_path / "m", row_of(encoded(noise(1)), HERE), row_of(encoded(noise(2)), OTHER))
    own, other = Ledger.open(str(tmp_path / "m" / "takedowns")), Ledger.open(str(tmp_path / "other"))
    child = Manifest.open(derive(sources(base), None).manifest)  # it names its own, which is empty
    other.append_entry(requester="A", ground="B", selectors=[Selector.of("uri", OTHER)])
    monkeypatch.setenv("CLEANPLATE_LEDGER", other.uri)
    assert kept(derive(sources(child), None).manifest) == {HERE}, "where requests go is where they are read"
    own.append_entry(requester="A", ground="B", selectors=[Selector.of("uri", HERE)])
    with pytest.raises(UserError, match=r"lacks 1 requests that are in force in .*/m/takedowns"):
        sources(child)
    for file in (Path(own.uri) / "events").iterdir():
        (Path(other.uri) / "events" / file.name).write_bytes(file.read_bytes())
    assert kept(derive(sources(child), None).manifest) == set()
