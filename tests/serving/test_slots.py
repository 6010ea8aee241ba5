"""Which version answers: cases, and laws over everything that may happen in any order, on a virtual clock."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.slots import Slots

C = "champion"


def serving(version: str = "1", **settings: float) -> Slots:
    """A process that serves one version as the champion, at time 0."""
    slots = Slots(**settings)  # type: ignore[arg-type]
    slots.follow(C, version, 0)
    assert slots.to_load(0) == version
    slots.loaded(version, 0)
    assert slots.live(C) == version
    return slots


def test_the_old_version_answers_until_the_new_one_can() -> None:
    slots = serving()
    slots.follow(C, "2", 1)
    assert (slots.live(C), slots.to_load(1)) == ("1", "2")
    assert (slots.live(C), slots.to_load(2)) == ("1", None)
    slots.loaded("2", 3)
    assert slots.live(C) == "2"


def test_a_version_that_fails_changes_nothing_and_is_tried_again_later() -> None:
    slots = serving(retry_s=10)
    slots.follow(C, "2", 1)
    slots.to_load(1)
    slots.failed("2", "its file is gone", 2)
    assert (slots.live(C), slots.why_not(C)) == ("1", "its file is gone")
    assert slots.to_load(11) is None
    assert slots.to_load(12) == "2"
    assert slots.why_not(C) == "its file is gone"
    slots.loaded("2", 13)
    assert (slots.live(C), slots.why_not(C)) == ("2", None)


def test_going_back_to_a_warm_version_loads_nothing() -> None:
    slots = serving(keep_warm_s=100)
    slots.follow(C, "2", 1)
    slots.to_load(1)
    slots.loaded("2", 2)
    assert slots.drop(50) == []
    slots.follow(C, "1", 50)
    assert (slots.live(C), slots.to_load(50)) == ("1", None)


def test_a_replaced_version_goes_when_its_time_is_over_and_its_last_request_has_ended() -> None:
    slots = serving(keep_warm_s=100)
    slots.begin("1")
    slots.follow(C, "2", 1)
    slots.to_load(1)
    slots.loaded("2", 2)
    assert slots.drop(500) == []
    slots.end("1")
    assert slots.drop(101) == []
    assert slots.drop(102) == ["1"]


def test_only_so_many_stay_warm_and_the_newest_of_them() -> None:
    slots = serving(keep=1)
    for now, version in enumerate("234", start=1):
        slots.follow(C, version, now)
        slots.to_load(now)
        slots.loaded(version, now)
    assert slots.drop(5) == ["1", "2"]


def test_a_refused_version_answers_nobody_even_if_there_is_no_other() -> None:
    slots = serving()
    slots.refuse("1", "taken down", 1)
    assert (slots.live(C), slots.why_not(C)) == (None, "taken down")
    slots.refuse("1", None, 2)
    assert slots.live(C) == "1"


def test_a_refused_version_does_not_replace_one_that_may_answer() -> None:
    slots = serving()
    slots.follow(C, "2", 1)
    slots.to_load(1)
    slots.loaded("2", 2)
    slots.follow(C, "1", 3)
    slots.refuse("2", "taken down", 4)
    slots.follow(C, "2", 5)
    assert (slots.live(C), slots.why_not(C)) == ("1", "taken down")


def test_what_is_not_wanted_any_more_when_it_is_loaded_stays_warm() -> None:
    slots = serving()
    slots.follow(C, "2", 1)
    slots.to_load(1)
    slots.follow(C, "1", 2)
    slots.loaded("2", 3)
    assert slots.live(C) == "1"
    slots.follow(C, "2", 4)
    assert slots.live(C) == "2"


def test_a_role_that_is_given_up_has_nobody_and_its_version_grows_cold() -> None:
    slots = serving(keep_warm_s=10)
    slots.follow("challenger", "2", 1)
    slots.to_load(1)
    slots.loaded("2", 2)
    assert slots.roles_of("2") == ["challenger"]
    slots.follow("challenger", None, 3)
    assert (slots.live("challenger"), slots.live(C)) == (None, "1")
    assert slots.drop(13) == ["2"]


class Anything(RuleBasedStateMachine):
    """Aliases move, loads end well or badly, requests come and go, takedowns come and are settled: in any order."""

    versions = st.sampled_from("12345")
    roles = st.sampled_from([C, "challenger"])

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.slots = serving("1", keep_warm_s=20, keep=2, retry_s=5)
        self.wanted = {C: "1"}
        self.loading: str | None = None
        self.ready = {"1"}
        self.refused: set[str] = set()
        self.requests: list[str] = []

    def live(self) -> dict[str, str | None]:
        return {role: self.slots.live(role) for role in (C, "challenger")}

    @rule(seconds=st.integers(0, 15))
    def time_goes_by(self, seconds: int) -> None:
        self.now += seconds

    @rule(role=roles, version=versions)
    def the_alias_moves(self, role: str, version: str) -> None:
        before = self.slots.live(role)
        self.slots.follow(role, version, self.now)
        self.wanted[role] = version
        if version in self.ready - self.refused:
            assert self.slots.live(role) == version
        else:
            assert self.slots.live(role) == before

    @rule()
    def the_second_alias_is_taken_away(self) -> None:
        self.slots.follow("challenger", None, self.now)
        self.wanted.pop("challenger", None)
        assert self.slots.live("challenger") is None

    @precondition(lambda self: self.loading is None)
    @rule()
    def a_load_begins(self) -> None:
        self.loading = self.slots.to_load(self.now)
        assert self.loading is None or self.loading in self.wanted.values()
        assert self.loading not in self.ready

    @precondition(lambda self: self.loading is not None)
    @rule(well=st.booleans())
    def a_load_ends(self, well: bool) -> None:
        version, before = self.loading, self.live()
        assert version is not None
        self.loading = None
        if well:
            self.slots.loaded(version, self.now)
            self.ready.add(version)
            self.refused.discard(version)
        else:
            self.slots.failed(version, "broken", self.now)
            assert self.live() == before

    @rule(version=versions, refused=st.booleans())
    def takedowns_change(self, version: str, refused: bool) -> None:
        self.slots.refuse(version, "taken down" if refused else None, self.now)
        if version in self.ready:
            (self.refused.add if refused else self.refused.discard)(version)

    @rule(role=roles)
    def a_request_begins(self, role: str) -> None:
        version = self.slots.live(role)
        if version is not None:
            self.slots.begin(version)
            self.requests.append(version)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def a_request_ends(self, data: st.DataObject) -> None:
        self.slots.end(self.requests.pop(data.draw(st.integers(0, len(self.requests) - 1))))

    @rule()
    def what_is_cold_goes(self) -> None:
        before = self.live()
        for version in self.slots.drop(self.now):
            assert version not in self.requests
            assert version != self.loading
            assert version not in self.wanted.values()
            self.ready.discard(version)
            self.refused.discard(version)
        assert self.live() == before
        spare = self.ready - set(before.values()) - set(self.requests) - set(self.wanted.values()) - self.refused
        assert len(spare) <= 2

    @invariant()
    def whoever_answers_is_ready_and_may(self) -> None:
        for version in self.live().values():
            assert version is None or version in self.ready - self.refused

    @invariant()
    def somebody_answers_unless_refused(self) -> None:
        assert self.slots.live(C) is not None or self.refused

    @invariant()
    def requests_are_counted_with_the_version_they_began_with(self) -> None:
        counted = {version: slot.requests for version, slot in self.slots.all() if slot.requests}
        assert counted == {version: self.requests.count(version) for version in self.requests}

    @invariant()
    def the_alias_is_followed_as_soon_as_it_can_be(self) -> None:
        for role, version in self.wanted.items():
            if version in self.ready - self.refused:
                assert self.slots.live(role) == version


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
