"""The ledger's contract: an event counts once, in whatever order it is found; what cannot be read is never empty."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.errors import UserError
from curation.job import CurateJob
from curation.listing import listing
from curation.manifest import LedgerInfo
from curation.takedowns import Entry, Ledger, LedgerState, Selector, location, of_place
from curation.takedowns.events import SCHEMA, Event, from_row, make_action, make_entry, make_withdrawal, to_row
from tests.curation.pictures import encoded, noise
from tests.curation.takedowns.manifests import published, row_of

START = datetime(2026, 1, 1, tzinfo=UTC)
PICTURE = Selector(
    kind="picture", value="ab" * 32, pixel_hash="cd" * 32, phash=2**64 - 1, colour_layout=bytes(range(48))
)


def entry_of(number: int, minute: int = 0, reference: str | None = None) -> Entry:
    return make_entry(
        requester="Jane <jane@x>",
        ground="mine",
        selectors=[Selector.of("creator", f"Jane {number}"), PICTURE],
        requested_at=START + timedelta(minutes=number),
        reference=reference,
        recorded_at=START + timedelta(minutes=minute),
    )


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    events: list[Event] = []
    for number in range(draw(st.integers(0, 4))):
        reference = draw(st.none() | st.just(f"T-{number}"))
        entry = entry_of(number, draw(st.integers(0, 3)), reference)
        events.append(entry)
        if reference is not None and draw(st.booleans()):  # the same request, said to have been made at another time
            events.append(entry.model_copy(update={"requested_at": START, "recorded_at": START}))
        for by in draw(st.lists(st.sampled_from(["a", "b"]), max_size=2)):
            at = START + timedelta(minutes=draw(st.integers(0, 9)))
            events.append(make_withdrawal(entry=entry.id, by=by, why="agreed", recorded_at=at))
        if draw(st.booleans()):
            once, told = draw(st.booleans()), {"what": "plan_written", "subject": "m", "detail": "{}", "by": "a"}
            events.append(make_action(entry=entry.id, recorded_at=START, once=once, **told))
    return events


@settings(deadline=None)
@given(histories(), st.data())
def test_the_state_does_not_depend_on_the_order_or_on_how_often(events: list[Event], data: st.DataObject) -> None:
    again = data.draw(st.permutations([*events, *events[: len(events) // 2]]))
    state, other = LedgerState.of(events), LedgerState.of(again)
    assert other == state
    assert other.version == state.version
    withdrawn = {e.entry for e in state.withdrawals}
    assert [e.id for e in state.in_force] == [e.id for e in state.entries if e.id not in withdrawn]


@settings(deadline=None)
@given(histories())
def test_events_survive_parquet(events: list[Event]) -> None:
    table = pa.Table.from_pylist([to_row(event) for event in events], schema=SCHEMA)
    assert [from_row(row) for row in table.to_pylist()] == events


@settings(deadline=None)
@given(histories())
def test_the_audit_record_leaves_the_version_alone(events: list[Event]) -> None:
    quiet = [event for event in events if to_row(event)["event"] != "action"]
    assert LedgerState.of(quiet).version == LedgerState.of(events).version
    ids = [event.id for event in quiet]
    if ids and ids[-1] not in ids[:-1]:
        assert LedgerState.of(quiet[:-1]).version != LedgerState.of(quiet).version


def append(ledger: Ledger, name: str, reference: str | None = None) -> Entry:
    return ledger.append_entry(
        requester="Jane", ground="mine", selectors=[Selector.of("creator", name), PICTURE], reference=reference
    )


def test_what_is_appended_is_read_by_everybody(tmp_path: Path) -> None:
    ledger = Ledger.open(str(tmp_path / "ledger"))
    assert ledger.read() == LedgerState((), (), ())
    entry = append(ledger, "jane")
    action = ledger.record_action(what="plan_written", subject="m", by="me", entry=entry.id, detail={"n": 1})
    assert ledger.read() == LedgerState((entry,), (), (action,)) == Ledger.open(ledger.uri).read()
    table = pq.read_table(tmp_path / "ledger" / "events")
    assert table.schema.equals(SCHEMA)
    assert sorted(table["event"].to_pylist()) == ["action", "entry"]
    (row,) = [row for row in table.to_pylist() if row["event"] == "entry"]
    assert row["selectors"][1]["phash"] == 2**64 - 1


def test_a_reference_makes_the_same_request_one_entry_also_after_packing(tmp_path: Path) -> None:
    ledger = Ledger.open(str(tmp_path))
    first = append(ledger, "jane", "T-1")
    assert append(ledger, "jane", "T-1").id == first.id
    ledger.record_action(what="x", subject="y", by="me")
    assert ledger.pack() == 2
    assert append(ledger, "jane", "T-1").id == first.id
    assert Ledger.open(ledger.uri).read().entries == (first,)  # with the time at which it was recorded first
    assert Ledger.open(ledger.uri).pack() == 1
    assert Ledger.open(ledger.uri).read().entries == (first,)
    assert append(ledger, "jane", "T-2").id != first.id
    assert append(ledger, "jane").id != append(ledger, "jane").id


def test_withdrawing_twice_is_withdrawing_once(tmp_path: Path) -> None:
    ledger = Ledger.open(str(tmp_path))
    entry, other = append(ledger, "jane"), append(ledger, "john")
    before = ledger.read().version
    withdrawal = ledger.withdraw(entry.id[:12], by="me", why="a mistake")
    assert ledger.withdraw(entry.id, by="you", why="as well") == withdrawal
    state = ledger.read()
    assert state.in_force == (other,)
    assert state.entry(entry.id).state == "withdrawn"
    assert state.entry(entry.id).withdrawn == withdrawal
    assert state.version != before
    with pytest.raises(UserError, match="no entr"):
        ledger.withdraw("f" * 64, by="me", why="x")


def test_a_prefix_must_name_one_entry(tmp_path: Path) -> None:
    state = LedgerState.of([entry_of(number) for number in range(17)])  # two of them begin with the same digit
    digits = [entry.id[0] for entry in state.entries]
    with pytest.raises(UserError, match="entries of the ledger"):
        state.entry(max(digits, key=digits.count))
    with pytest.raises(UserError, match="no entr"):
        state.entry("")


@pytest.mark.parametrize("missing", [{"requester": " "}, {"ground": ""}, {"selectors": []}])
def test_an_entry_says_who_why_and_what(tmp_path: Path, missing: dict[str, object]) -> None:
    fields = {"requester": "Jane", "ground": "mine", "selectors": [PICTURE]} | missing
    with pytest.raises(UserError, match="needs this"):
        Ledger.open(str(tmp_path)).append_entry(**fields)  # type: ignore[arg-type]
    assert not (tmp_path / "events").exists()


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"not a ledger"])
def test_a_damaged_event_stops_reading_and_is_named(tmp_path: Path, damage: bytes) -> None:
    ledger = Ledger.open(str(tmp_path))
    entry = append(ledger, "jane")
    (file,) = (tmp_path / "events").glob("*.parquet")
    file.write_bytes(damage or file.read_bytes()[:-8])
    with pytest.raises(UserError, match=f"entry-{entry.id}.parquet is damaged") as error:
        Ledger.open(ledger.uri).read()
    assert error.value.field == "ledger"


def test_a_later_format_is_not_half_understood(tmp_path: Path) -> None:
    ledger = Ledger.open(str(tmp_path))
    append(ledger, "jane")
    row = to_row(entry_of(1))
    for changed in (
        pa.Table.from_pylist([row | {"format": 2}], schema=SCHEMA),
        pa.Table.from_pylist([row], schema=SCHEMA).append_column("more", [["x"]]),
        pa.Table.from_pylist([row | {"event": "amendment"}], schema=SCHEMA),
    ):
        pq.write_table(changed, tmp_path / "events" / "entry-x.parquet")
        with pytest.raises(UserError, match=r"entry-x\.parquet is damaged, or of a newer"):
            Ledger.open(ledger.uri).read()


def test_half_a_write_is_no_event_and_an_unreadable_place_is_not_empty(tmp_path: Path) -> None:
    ledger = Ledger.open(str(tmp_path / "ledger"))
    entry = append(ledger, "jane")
    (tmp_path / "ledger" / "events" / ".entry-x.parquet.1234.partial").write_bytes(b"PAR1")
    assert Ledger.open(ledger.uri).read().entries == (entry,)
    (tmp_path / "file").write_bytes(b"x")
    for place in ("file", "file/below"):
        with pytest.raises(UserError, match="cannot be reached"):
            Ledger.open(str(tmp_path / place)).read()


def test_packing_loses_nothing_wherever_it_is_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.open(str(tmp_path))
    for number in range(6):
        append(ledger, f"n{number}")
    before = ledger.read()
    kept = {file.name: file.read_bytes() for file in (tmp_path / "events").glob("*.parquet")}
    assert ledger.pack() == 6
    assert ledger.pack() == 0
    assert ledger.loose() == 0
    for name in list(kept)[:3]:  # as if it had been killed before it removed these
        (tmp_path / "events" / name).write_bytes(kept[name])
    assert Ledger.open(ledger.uri).read() == ledger.read() == before
    append(ledger, "later")
    after = ledger.read()
    assert len(after.entries) == 7
    assert ledger.pack() == 5  # three that were left, the new one, and the first pack
    assert Ledger.open(ledger.uri).read() == after
    assert pq.read_table(tmp_path / "events").num_rows == 7


class Raced(Ledger):
    """A ledger that somebody packs each time it has listed a folder, and adds to."""

    def _list(self, folder: str) -> list[str]:
        found = super()._list(folder)
        other = Ledger.open(self.uri)
        self.turns = getattr(self, "turns", 0) + 1
        if self.turns <= 6:
            append(other, f"raced {self.turns}")
            other.pack()
        return found


def test_a_reader_that_is_raced_by_packing_reads_anew(tmp_path: Path) -> None:
    ledger = Ledger.open(str(tmp_path))
    before = {append(ledger, f"n{number}").id for number in range(5)}
    raced = Raced(ledger.uri)
    assert before <= {entry.id for entry in raced.read().entries}
    assert raced.turns > 6
    assert raced.read() == ledger.read()


def test_a_ledger_that_is_never_left_alone_is_an_error_not_a_guess(tmp_path: Path) -> None:
    class Restless(Raced):
        def _list(self, folder: str) -> list[str]:
            self.turns = 0
            return super()._list(folder)

    append(Ledger.open(str(tmp_path)), "jane")
    with pytest.raises(UserError, match="packed all the time"):
        Restless(str(tmp_path)).read()


def test_readers_writers_and_packers_do_not_disturb_each_other(tmp_path: Path) -> None:
    written: list[str] = []
    stop = threading.Event()
    faults: list[BaseException] = []

    def until_stopped(work: object) -> None:
        try:
            while not stop.is_set():
                work()  # type: ignore[operator]
        except BaseException as error:
            faults.append(error)

    def read() -> None:
        before = list(written)
        seen = {entry.id for entry in Ledger.open(str(tmp_path)).read().entries}
        assert seen.issuperset(before)

    helpers = [
        threading.Thread(target=until_stopped, args=(work,))
        for work in (read, read, lambda: Ledger.open(str(tmp_path)).pack(), lambda: Ledger.open(str(tmp_path)).pack())
    ]
    for helper in helpers:
        helper.start()
    ledger = Ledger.open(str(tmp_path))
    for number in range(150):
        written.append(append(ledger, f"n{number}", str(number)).id)
    stop.set()
    for helper in helpers:
        helper.join()
    assert not faults
    assert sorted(entry.id for entry in Ledger.open(str(tmp_path)).read().entries) == sorted(written)


def test_where_the_ledger_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLEANPLATE_LEDGER", raising=False)
    with pytest.raises(UserError, match="nothing says where"):
        location(None)
    assert location(None, "s3://b/manifests") == "s3://b/manifests/takedowns"
    monkeypatch.setenv("CLEANPLATE_LEDGER", "s3://b/ledger")
    assert location(None, "s3://b/manifests") == "s3://b/ledger"
    assert location(str(tmp_path / "x"), "s3://b/manifests") == str(tmp_path / "x")


def test_a_manifest_names_its_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLEANPLATE_LEDGER", raising=False)
    assert of_place(str(tmp_path / "ledger")) == str(tmp_path / "ledger")
    row = row_of(encoded(noise(0)), "a.png")
    named = published(tmp_path / "named", [row], ledger=LedgerInfo(uri="s3://b/l", version="0", entries=0))
    assert of_place(named.uri) == of_place(str(tmp_path / "named")) == "s3://b/l"
    older = published(tmp_path / "older", [row])
    assert of_place(older.uri) == of_place(str(tmp_path / "older")) == str(tmp_path / "older" / "takedowns")


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "sha256", "value": "AB" * 32},
        {"kind": "domain", "value": "https://x.org"},
        {"kind": "uri", "value": ""},
        {"kind": "picture", "value": "ab" * 32},
        {"kind": "creator", "value": "jane", "phash": 1},
    ],
)
def test_a_selector_is_whole_and_normal(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"picture has|normal form"):
        Selector.model_validate(fields)


def test_a_selector_survives_json() -> None:
    assert Selector.model_validate_json(PICTURE.model_dump_json()) == PICTURE
    assert '"phash":"ffffffffffffffff"' in PICTURE.model_dump_json()


def test_a_job_whose_ledger_has_lost_its_entries_is_refused(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "a.png").write_bytes(encoded(noise(1)))
    ledger = Ledger.open(str(tmp_path / "out" / "takedowns"))
    ledger.append_entry(requester="A", ground="B", selectors=[Selector.of("uri", "https://a.example/a.png")])
    said = ledger.read().info(ledger.uri)
    before = published(tmp_path / "out", [row_of(encoded(noise(1)), "a.png")], ledger=said)
    fields = {"source": {"kind": "folder", "path": str(pictures)}, "clip": None, "captions": []}
    again = CurateJob.model_validate(fields | {"output": str(tmp_path / "out")})
    elsewhere = CurateJob.model_validate(fields | {"output": str(tmp_path / "new"), "parent": before.uri})
    assert listing(again).ledger == said
    for named in (ledger.uri, before.uri, str(tmp_path / "out")):  # itself, or what names it
        assert listing(elsewhere.model_copy(update={"ledger": named})).ledger == said
    with pytest.raises(UserError, match="has no entries"):
        listing(elsewhere)  # beside its own output there is none
    Path(ledger.uri).rename(tmp_path / "moved")
    with pytest.raises(UserError, match="has no entries"):
        listing(again)
    assert listing(again.model_copy(update={"ledger": str(tmp_path / "moved")})).ledger.version == said.version
