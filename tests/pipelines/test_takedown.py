"""`cleanplate takedown`: from a request to the ledger and back, and every mistake with what to do about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curation.errors import UserError
from curation.manifest import LedgerInfo, Manifest
from curation.takedowns import Ledger, Selector
from curation.takedowns.pictures import of_bytes
from pipelines import report, takedown
from pipelines.takedown_survey import survey
from pipelines.trainings import without_password
from tests.curation.pictures import encoded, noise
from tests.curation.takedowns.manifests import published, row_of
from tests.pipelines.test_cli import Cleanplate, cleanplate

__all__ = ["cleanplate"]

WHO = ("--by", "Jane Doe <jane@x>", "--ground", "[red]my[/red] own work")
PICTURE = encoded(noise(7))


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """An empty one, which the environment names."""
    monkeypatch.setenv("CLEANPLATE_LEDGER", str(tmp_path / "ledger"))
    return Ledger.open(str(tmp_path / "ledger"))


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    info = LedgerInfo(uri=str(tmp_path / "named"), version="0", entries=0)
    return published(tmp_path / "manifests", [row_of(PICTURE, "https://a.org/1.png")], ledger=info)


def test_a_request_goes_in_and_is_shown(cleanplate: Cleanplate, ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(PICTURE)
    done = cleanplate(
        *("takedown", "add", *WHO, "--reference", "T-1", "--requested-at", "2026-03-01"),
        *("--creator", " JANE ", "--domain", "*.X.org", "--domain", "y.org", "--sha256", "AB" * 32),
        *("--uri", "HTTP://Z.org/a", "--picture", str(tmp_path / "mine.png")),
    )
    assert done.returncode == 0, done.stderr
    (entry,) = ledger.read().entries
    assert {(s.kind, s.value) for s in entry.selectors if s.kind != "picture"} == {
        *(("creator", "jane"), ("domain", "x.org"), ("domain", "y.org"), ("sha256", "ab" * 32)),
        ("uri", "http://z.org/a"),
    }
    assert of_bytes(PICTURE) in entry.selectors
    assert (entry.requester, entry.reference) == ("Jane Doe <jane@x>", "T-1")
    assert f"{entry.requested_at:%Y-%m-%dT%H:%M}" == "2026-03-01T00:00"
    first, *after = done.stdout.splitlines()
    assert first == f"entry {entry.id} is in force in {ledger.uri}: 6 selectors"
    assert [line.removeprefix("next:").strip() for line in after] == [
        f"cleanplate trace {entry.id}",
        f"cleanplate takedown plan {entry.id}",
    ]
    ledger.record_action(what="plan_written", subject="plan.json", by="me", entry=entry.id)
    shown = cleanplate("takedown", "show", entry.id[:8]).stdout
    for words in (entry.id, "[red]my[/red] own work", "T-1", "2026-03-01", "creator jane", "plan_written plan.json"):
        assert words in shown
    assert PICTURE not in b"".join(file.read_bytes() for file in Path(ledger.uri).rglob("*.parquet"))


def test_json_everywhere(cleanplate: Cleanplate, ledger: Ledger) -> None:
    def ends(*arguments: str) -> dict[str, Any]:
        done = cleanplate("takedown", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        found: dict[str, Any] = json.loads(line)
        assert found["ledger"] == ledger.uri
        assert found["version"] == ledger.read().version
        return found

    added = ends("add", *WHO, "--creator", "jane", "--reference", "T-1")
    id_ = added["entry"]["id"]
    assert ends("add", *WHO, "--creator", "jane", "--reference", "T-1")["entry"]["id"] == id_
    assert [entry["id"] for entry in ends("list")["entries"]] == [id_]
    assert ends("show", id_) == added
    assert ends("pack")["entries"] == 1
    withdrawn = ends("withdraw", id_, "--by", "me", "--why", "a mistake")
    assert (withdrawn["state"], withdrawn["entry"]["withdrawn"]["why"]) == ("withdrawn", "a mistake")
    assert ends("withdraw", id_, "--by", "you", "--why", "again") == withdrawn
    assert ends("list")["entries"] == []
    assert len(ends("list", "--all")["entries"]) == 1
    assert ends("pack")["removed"] == 2
    again = cleanplate("takedown", "add", *WHO, "--creator", "jane", "--reference", "T-1")
    assert (again.returncode, again.stdout) == (2, ""), "whoever only looks at the exit must not take it for in force"


def test_the_list_is_a_table_that_takes_no_markup_from_strangers(cleanplate: Cleanplate, ledger: Ledger) -> None:
    assert cleanplate("takedown", "list").stdout.startswith("0 entries in force in")
    cleanplate("takedown", "add", *WHO, "--creator", "jane")
    (entry,) = ledger.read().entries
    shown = cleanplate("takedown", "list").stdout
    assert entry.id[:12] in shown
    assert "creator jane" in shown
    assert "[red]" in shown
    assert "1 entry in force" in shown


def test_a_manifest_names_the_ledger_and_its_rows(
    cleanplate: Cleanplate, ledger: Ledger, manifest: Manifest, tmp_path: Path
) -> None:
    row = (manifest.uri, "https://a.org/1.png")
    done = cleanplate("takedown", "add", *WHO, "--row", *row, "--row", *row, "--ledger", manifest.uri)
    assert done.returncode == 0, done.stderr
    (entry,) = Ledger.open(str(tmp_path / "named")).read().entries
    picture = of_bytes(PICTURE)
    assert set(entry.selectors) == {picture, Selector.of("sha256", picture.value)}
    assert ledger.read().entries == ()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", *WHO], "nothing says which pictures are meant"),
        (["add", *WHO, "--sha256", "abc"], "--sha256: 'abc' would select nothing"),
        (["add", *WHO, "--domain", "all of flickr"], "--domain"),
        (["add", *WHO, "--creator", " "], "--creator"),
        (["add", *WHO, "--picture", "/nowhere.png"], "--picture: cannot read /nowhere.png"),
        (["add", *WHO, "--picture", __file__], "--picture"),
        (["add", *WHO, "--row", "/nowhere", "x"], "no manifest at /nowhere"),
        (["add", *WHO, "--row", "MANIFEST", "x"], "--row: the manifest at"),
        (["add", *WHO, "--row", "MANIFEST"], "requires 2 arguments"),
        (["add", *WHO, "--creator", "x", "--requested-at", "yesterday"], "--requested-at: 'yesterday' is no time"),
        (["add", *WHO, "--creator", "x", "--requested-at", "2999-01-01"], "lies in the future"),
        (["add", "--by", " ", "--ground", "x", "--creator", "x"], "--by"),
        (["add", "--by", "x", "--ground", "\udcff", "--creator", "x"], "--ground"),
        (["add", *WHO, "--creator", "\udcff"], "--creator"),
        (["add", "--by", "x", "--creator", "x"], "--ground"),
        (["show", "abc"], "no entries of the ledger"),
        (["show", ""], "no entries of the ledger"),
        (["withdraw", "abc", "--by", "x", "--why", "y"], "no entries of the ledger"),
        (["withdraw", "abc", "--by", "x", "--why", ""], "--why"),
        (["list", "--ledger", "gopher://x"], "gopher"),
        (["list", "--ledger", __file__], "cannot be reached"),
    ],
)
def test_a_mistake_exits_2_with_field_and_remedy(
    cleanplate: Cleanplate, ledger: Ledger, manifest: Manifest, arguments: list[str], words: str
) -> None:
    done = cleanplate("takedown", *[manifest.uri if a == "MANIFEST" else a for a in arguments])
    assert done.returncode == 2, done.stdout
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path(ledger.uri).exists()


def test_without_a_place_it_says_how_to_name_one(cleanplate: Cleanplate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLEANPLATE_LEDGER", raising=False)
    done = cleanplate("takedown", "list")
    assert done.returncode == 2
    assert "CLEANPLATE_LEDGER" in done.stderr


def test_a_damaged_ledger_is_not_an_empty_one(cleanplate: Cleanplate, ledger: Ledger) -> None:
    cleanplate("takedown", "add", *WHO, "--creator", "jane")
    (file,) = Path(ledger.uri).rglob("*.parquet")
    file.write_bytes(b"x")
    done = cleanplate("takedown", "list")
    assert done.returncode == 2
    assert str(file) in done.stderr


def test_a_request_that_was_withdrawn_is_not_said_to_be_in_force_again(ledger: Ledger) -> None:
    def add(reference: str) -> str:
        chosen = takedown.selectors({"creator": ["Jane"]})
        done = takedown.add(None, by="Jane", ground="mine", reference=reference, requested_at=None, chosen=chosen)
        return done.entry.id

    first = add("T-1")
    assert add("T-1") == first
    takedown.withdraw(None, first, by="Jane", why="a mistake")
    with pytest.raises(UserError, match=rf"this very request is entry {first[:12]}, withdrawn on") as caught:
        add("T-1")
    assert caught.value.field == "--reference"
    second = add("T-2")
    assert [entry.id for entry in ledger.read().in_force] == [second]


@pytest.mark.parametrize("secret", ["user:s3cret", "user:s3@cret", "s3cret"])
def test_a_tracking_server_is_shown_without_its_password(secret: str) -> None:
    assert without_password(f"postgresql://{secret}@db.example/mlflow") == "postgresql://db.example/mlflow"
    assert without_password("sqlite:////a@b/mlflow.db") == "sqlite:////a@b/mlflow.db"


def test_what_is_to_be_run_next_names_a_ledger_that_nothing_else_names(ledger: Ledger, tmp_path: Path) -> None:
    other = str(tmp_path / "other place")
    chosen = takedown.selectors({"creator": ["Jane"]})
    for given, where in ((None, ""), (ledger.uri, ""), (other, f" --ledger '{other}'")):
        done = takedown.add(given, by="Jane", ground="mine", reference="T-1", requested_at=None, chosen=chosen)
        id_ = done.entry.id
        lines = [line.removeprefix("next:").strip() for line in takedown.summary(done)[1:]]
        assert lines == [f"cleanplate trace {id_}{where}", f"cleanplate takedown plan {id_}{where}"]


def test_a_report_shows_nothing_where_the_ledger_is_gone(tmp_path: Path) -> None:
    ledger = Ledger.open(str(tmp_path / "ledger"))
    ledger.append_entry(requester="A", ground="B", selectors=[Selector.of("creator", "c")])
    heeded = published(tmp_path / "m", [row_of(PICTURE, "a.png")], ledger=ledger.read().info(ledger.uri))
    Path(ledger.uri).rename(tmp_path / "moved")
    with pytest.raises(UserError, match="has no entries"):
        report.run(heeded.uri, str(tmp_path / "report.html"))
    assert not (tmp_path / "report.html").exists()


def test_a_manifest_in_a_place_that_cannot_be_reached_is_told_and_stops_no_survey(
    ledger: Ledger, tmp_path: Path
) -> None:
    entry = ledger.append_entry(requester="A", ground="B", selectors=[Selector.of("uri", "a.png")])
    there = published(tmp_path / "m", [row_of(PICTURE, "a.png")])
    lost = "nowhere://bucket/m-1"  # as a bucket that is gone: asking for it is an error
    tracking = f"sqlite:///{tmp_path}/none.db"
    found = survey(entry.id, None, tracking, [lost, there.uri])
    assert set(found.unreadable) == {lost, "nowhere://bucket"}
    assert [manifest.id for family in found.families for manifest, _ in family.members] == [there.id]
