"""Whether a version may be served: tags, ledgers that moved on, ledgers that cannot be read, and what is on record."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.clip import ClipConfig
from curation.errors import UserError
from curation.takedowns import Entry, Ledger, LedgerState, Selector
from serving.generator import load
from serving.job import ServeJob
from serving.ledgers import Ledgers
from serving.safety import OutputSafety
from serving.standing import TakedownStanding
from serving.takedowns import Behind, check, heed, standing
from tests.curation.pictures import encoded, noise
from tests.curation.takedowns.manifests import published, row_of
from training.bundle import INFO_FILE
from training.dependencies import MOST
from training.tracking import ModelVersion

Versions = Callable[..., ModelVersion]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(str(tmp_path / "takedowns"))


def ask(ledger: Ledger, domain: str) -> Entry:
    return ledger.append_entry(requester="Jane", ground="copyright", selectors=[Selector.of("domain", domain)])


def tag(entry: Entry, value: str = "affected") -> dict[str, str]:
    return {f"takedown.{entry.id[:12]}": value}


@pytest.fixture
def versions(bundle: Path, tmp_path: Path) -> Versions:
    """Versions of a bundle whose training heeded a ledger."""

    def make(ledger: Ledger | None, version: str | None = None, tags: dict[str, str] | None = None) -> ModelVersion:
        folder = tmp_path / f"bundle-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(bundle, folder)
        info = json.loads((folder / INFO_FILE).read_text())
        if ledger is not None:
            info |= {"ledger_uri": ledger.uri, "takedown_ledger_version": version or ledger.read().version}
        (folder / INFO_FILE).write_text(json.dumps(info))
        return ModelVersion(
            name="tiny", version="3", alias="champion", model_id=None, run_id=None, tags=tags or {}, bundle=str(folder)
        )

    return make


def of_a_student(
    version: ModelVersion, tmp_path: Path, ledger: Ledger | None, heeded: str | None = None, **changes: Any
) -> ModelVersion:
    """The version as one that was distilled from a teacher whose training heeded a ledger as it was then."""
    told = {"kind": "teacher", "name": "mentor", "sha256": "a" * 64, **changes}
    if ledger is not None:
        told |= {"ledger_uri": ledger.uri, "ledger_version": heeded}
    folder = tmp_path / f"student-{len(list(tmp_path.iterdir()))}"
    shutil.copytree(version.bundle, folder)
    info = json.loads((folder / INFO_FILE).read_text())
    (folder / INFO_FILE).write_text(json.dumps(info | {"depends_on": [*info["depends_on"], told]}))
    return version.model_copy(update={"bundle": str(folder)})


def job(policy: str, **changes: Any) -> ServeJob:
    return ServeJob(model="models:/tiny@champion", takedowns=policy, **changes)


def refused(version: ModelVersion, **changes: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        heed(job("refuse", **changes), version)
    return caught.value


def test_a_version_that_heeded_all_there_is_may_be_served(versions: Versions, ledger: Ledger) -> None:
    ask(ledger, "a.example")
    version = versions(ledger)
    for policy in ("warn", "refuse"):
        found = heed(job(policy), version)
        assert found is not None
        assert found.clear
    assert heed(job("refuse"), versions(None)) is not None  # it names no ledger, and no tag speaks against it
    assert heed(job("ignore"), versions(ledger, tags=tag(ask(ledger, "b.example")))) is None


def test_an_affected_version_is_refused_or_warned_about(
    versions: Versions, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    before = versions(ledger)
    entry = ask(ledger, "a.example")
    version = before.model_copy(update={"tags": tag(entry)})
    error = refused(version)
    assert "tiny version 3" in error.message
    assert entry.id[:12] in error.message
    assert error.remedy is not None
    assert "promote a version without them" in error.remedy
    assert "cleanplate takedown status" in error.remedy
    actions = [(a.what, a.subject, a.entry) for a in ledger.read().actions]
    assert actions == [("version_refused", "models:/tiny/3", entry.id)]
    refused(version)
    assert len(ledger.read().actions) == 1  # a replica that is started again adds nothing
    with caplog.at_level(logging.WARNING):
        found = heed(job("warn"), version)
    assert found is not None
    assert found.affected == (entry.id[:12],)
    assert "tiny version 3 is served although" in caplog.text
    assert entry.id[:12] in caplog.text
    # what cannot be told counts like what is affected, and so does a tag without any ledger to ask
    assert entry.id[:12] in refused(before.model_copy(update={"tags": tag(entry, "unknown")})).message
    assert entry.id[:12] in refused(versions(None, tags=tag(entry))).message


@pytest.fixture
def empty_store(tmp_path: Path) -> str:
    """Where there is no tracking server: nothing but the bundle is on record."""
    return f"sqlite:///{tmp_path}/nowhere/mlflow.db"


def test_what_a_student_heeded_its_teacher_must_have_heeded_too(
    versions: Versions, ledger: Ledger, tmp_path: Path, empty_store: str
) -> None:
    before = ledger.read().version
    entry = ask(ledger, "a.example")
    version = versions(ledger)  # a student whose own training left out what was asked
    at = {"tracking_uri": empty_store}
    assert heed(job("refuse", **at), of_a_student(version, tmp_path, ledger, ledger.read().version)) is not None
    student = of_a_student(version, tmp_path, ledger, before)
    error = refused(student, **at)
    assert entry.id[:12] in error.message
    assert "what it was made from (its teacher mentor)" in error.message
    assert [action.what for action in ledger.read().actions] == ["version_refused"]
    # once the student was examined, its teacher was
    examined = student.model_copy(update={"tags": tag(entry, "unaffected")})
    found = heed(job("refuse", **at), examined)
    assert found is not None
    assert found.clear
    assert "was trained on pictures" in refused(student.model_copy(update={"tags": tag(entry)}), **at).message
    assert not (tmp_path / "nowhere").exists()
    # a teacher of whom nothing is known heeded nothing
    unknown = of_a_student(version, tmp_path, None)
    assert entry.id[:12] in refused(unknown, **at).message
    warned = heed(job("warn", **at), unknown)
    assert warned is not None
    assert (warned.unexamined, warned.through) == ((entry.id[:12],), ("its teacher mentor",))


def test_a_statement_stands_in_for_an_examination_of_what_nobody_can_look_up(
    versions: Versions, ledger: Ledger, tmp_path: Path, empty_store: str
) -> None:
    entry = ask(ledger, "a.example")
    version, at = versions(ledger), {"tracking_uri": empty_store}
    foreign: dict[str, Any] = {"kind": "autoencoder", "name": "from elsewhere"}
    assert entry.id[:12] in refused(of_a_student(version, tmp_path, None, **foreign), **at).message
    word = {"by": "Jane", "ground": "its data card", "date": "2026-01-02"}
    vouched = of_a_student(version, tmp_path, None, **foreign, statement=word)
    found = heed(job("refuse", **at), vouched)
    assert found is not None
    assert found.clear
    (stated,) = found.stated
    assert stated.startswith("its autoencoder from elsewhere: Jane stated on 2026-01-02")
    assert stated.endswith("a statement, not a proof")
    # it says nothing of the version's own pictures, nor where there is a record of the other's
    later = ask(ledger, "b.example")
    assert later.id[:12] in refused(vouched, **at).message
    recorded = of_a_student(version, tmp_path, None, **foreign, statement=word, training_set_digest="c" * 64)
    assert entry.id[:12] in refused(recorded, **at).message


def test_every_model_behind_is_asked_and_its_ledgers(
    versions: Versions, ledger: Ledger, tmp_path: Path, empty_store: str
) -> None:
    other = Ledger.open(str(tmp_path / "elsewhere"))
    before = other.read().version
    version = versions(ledger)
    for sha256, ledger_of, heeded in (("b", ledger, ledger.read().version), ("c", other, before)):
        version = of_a_student(version, tmp_path, ledger_of, heeded, sha256=sha256 * 64)  # of one name, all of them
    found = heed(job("refuse", tracking_uri=empty_store), version)
    assert found is not None
    assert found.clear
    entry = ask(other, "a.example")  # in a ledger that only the second one names
    assert entry.id[:12] in refused(version, tracking_uri=empty_store).message
    assert [action.what for action in other.read().actions] == ["version_refused"]
    for event in (Path(other.uri) / "events").glob("*.parquet"):
        event.write_bytes(b"torn")
    found = heed(job("warn", tracking_uri=empty_store), version)
    assert found is not None
    assert found.problem is not None


@pytest.fixture(scope="module")
def two_asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ledger, list[str], list[str]]:
    """A ledger, its entries by their short names, and its versions: empty, after one, after both."""
    ledger = Ledger.open(str(tmp_path_factory.mktemp("asked")))
    ages, entries = [ledger.read().version], []
    for domain in ("a.example", "b.example"):
        entries.append(ask(ledger, domain).id[:12])
        ages.append(ledger.read().version)
    return ledger, entries, ages


ANSWERS = st.dictionaries(st.sampled_from([0, 1]), st.sampled_from(["affected", "unaffected", "unknown"]))
MODELS = st.lists(st.tuples(ANSWERS, st.sampled_from([0, 1, 2])), max_size=3)


@settings(deadline=None, max_examples=60)
@given(own=ANSWERS, age=st.sampled_from([0, 1, 2]), models=MODELS)
def test_no_model_behind_makes_a_version_clear(
    two_asked: tuple[Ledger, list[str], list[str]],
    own: dict[int, str],
    age: int,
    models: list[tuple[dict[int, str], int]],
) -> None:
    ledger, entries, ages = two_asked

    def tags(answers: dict[int, str]) -> dict[str, str]:
        return {f"takedown.{entries[i]}": answer for i, answer in answers.items()}

    behind = [Behind("its teacher x", (tags(found),), (ledger.uri,), (ages[when],)) for found, when in models]
    found = standing(tags(own), [ledger.uri], [ages[age]], behind)
    for i, entry in enumerate(entries):
        answers = [own, *(answers for answers, _ in models)]
        assert (entry in found.affected) == any(a.get(i, "unaffected") != "unaffected" for a in answers)
        # one that did not heed it yet, and that was not asked about, itself or with the version
        heard = [(own, age), *(({**own, **answers}, when) for answers, when in models)]
        assert (entry in found.unexamined) == any(when <= i and i not in answers for answers, when in heard)


def test_too_many_models_behind_are_no_permission(versions: Versions, tmp_path: Path, empty_store: str) -> None:
    version = versions(None)
    for i in range(MOST + 1):
        version = of_a_student(version, tmp_path, None, sha256=f"{i:064x}")
    assert f"more than {MOST}" in refused(version, tracking_uri=empty_store).message


def test_a_newer_entry_must_have_been_examined(versions: Versions, ledger: Ledger) -> None:
    ask(ledger, "old.example")
    version = versions(ledger)
    newer = ask(ledger, "new.example")
    error = refused(version)
    assert newer.id[:12] in error.message
    assert error.remedy is not None
    assert f"takedown plan {newer.id[:12]}" in error.remedy
    examined = version.model_copy(update={"tags": tag(newer, "unaffected")})
    found = heed(job("refuse"), examined)
    assert found is not None
    assert found.clear
    newest = ask(ledger, "newest.example")
    assert newest.id[:12] in refused(examined).message
    assert newer.id[:12] not in refused(examined).message
    ledger.withdraw(newest.id, by="Jane", why="mistake")
    found = heed(job("refuse"), examined)
    assert found is not None
    assert found.clear


def test_a_tag_of_an_entry_that_was_taken_back_counts_no_more(versions: Versions, ledger: Ledger) -> None:
    version = versions(ledger)
    entry = ask(ledger, "a.example")
    tagged = version.model_copy(update={"tags": tag(entry)})
    refused(tagged)
    ledger.withdraw(entry.id, by="Jane", why="mistake")
    found = heed(job("refuse"), tagged)
    assert found is not None
    assert found.clear


def test_a_ledger_that_cannot_be_read_is_no_permission(versions: Versions, ledger: Ledger, tmp_path: Path) -> None:
    ask(ledger, "a.example")
    version = versions(ledger)
    events = Path(ledger.uri) / "events"
    (event,) = events.glob("*.parquet")
    whole = event.read_bytes()
    event.write_bytes(b"torn")
    assert "damaged" in refused(version).message
    found = heed(job("warn"), version)
    assert found is not None
    assert found.problem is not None
    # a ledger that is gone reads as an empty one: it must not pass for one in which nothing was ever asked
    event.unlink()
    assert "holds nothing" in refused(version).message
    # where it was moved to can be said
    moved = tmp_path / "moved"
    (moved / "events").mkdir(parents=True)
    (moved / "events" / event.name).write_bytes(whole)
    found = heed(job("refuse", ledger=str(moved)), version)
    assert found is not None
    assert found.clear


def test_who_looks_again_reads_what_is_new_alone(versions: Versions, ledger: Ledger) -> None:
    ask(ledger, "a.example")
    version, opened = versions(ledger), Ledgers()

    def look() -> TakedownStanding:
        found = heed(job("warn"), version, None, opened)
        assert found is not None
        return found

    assert look().clear
    folder = Path(ledger.uri) / "events"
    (event,) = folder.glob("*.parquet")
    event.write_bytes(b"torn")  # who read it would be told
    assert look().clear
    newer = ask(ledger, "b.example")
    assert look().unexamined == (newer.id[:12],)
    for file in folder.glob("*.parquet"):
        file.unlink()
    assert "holds nothing" in str(look().problem)


def test_a_ledger_version_that_never_was_heeds_nothing(versions: Versions, ledger: Ledger) -> None:
    entry = ask(ledger, "a.example")
    assert entry.id[:12] in refused(versions(ledger, "0" * 64)).message
    assert heed(job("refuse"), versions(ledger, "0" * 64, tag(entry, "unaffected"))) is not None


def test_several_ledgers_are_asked(tmp_path: Path) -> None:
    first, second = Ledger.open(str(tmp_path / "1")), Ledger.open(str(tmp_path / "2"))
    ask(first, "a.example")
    uris, heeded = [first.uri, second.uri], [first.read().version, second.read().version]
    assert heeded[1] == LedgerState.of(()).version
    assert standing({}, uris, heeded).clear
    newer = ask(second, "b.example")
    assert standing({}, uris, heeded).unexamined == (newer.id[:12],)
    assert standing(tag(newer, "unaffected"), uris, heeded).clear


def test_heeded_versions_are_found_at_every_age(ledger: Ledger) -> None:
    ages = [ledger.read().version]
    entries = [ask(ledger, f"{n}.example") for n in range(6)]
    for n in range(6):
        held = sorted(entries, key=lambda e: (e.recorded_at, e.id))[: n + 1]
        ages.append(LedgerState.of(held).version)
    ordered = [e.id[:12] for e in sorted(entries, key=lambda e: (e.recorded_at, e.id))]
    for n, version in enumerate(ages):
        assert set(standing({}, [ledger.uri], [version]).unexamined) == set(ordered[n:])


def test_the_policy_holds_where_a_model_is_loaded(versions: Versions, ledger: Ledger, tiny_clip: ClipConfig) -> None:
    version = versions(ledger)
    newer = ask(ledger, "new.example")
    settings: dict[str, Any] = {"model": version.bundle, "safety": OutputSafety(concepts={}), "clip": tiny_clip}
    for stop in (load, check):
        with pytest.raises(UserError, match=newer.id[:12]):
            stop(ServeJob(**settings, takedowns="refuse"))
    generator = load(ServeJob(**settings))  # warn
    entry = generator.card.entry()
    assert entry.takedowns is not None
    assert entry.takedowns.unexamined == (newer.id[:12],)
    assert load(ServeJob(**settings, takedowns="ignore")).card.entry().takedowns is None


def test_a_manifest_that_names_its_ledger_may_stand_for_it(versions: Versions, ledger: Ledger, tmp_path: Path) -> None:
    version = versions(ledger)
    named = published(tmp_path / "m", [row_of(encoded(noise(1)), "a.png")], ledger=ledger.read().info(ledger.uri))
    ask(ledger, "a.example")
    found = heed(job("warn", ledger=named.uri), version)
    assert found is not None
    assert len(found.unexamined) == 1
    refused(version, ledger=named.uri)
    assert [action.what for action in ledger.read().actions] == ["version_refused"]


def test_requests_that_go_where_the_environment_says_are_heeded(
    versions: Versions, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = versions(ledger)
    monkeypatch.setenv("CLEANPLATE_LEDGER", str(tmp_path / "other"))
    newer = ask(Ledger.open(str(tmp_path / "other")), "a.example")
    assert newer.id[:12] in refused(version).message
