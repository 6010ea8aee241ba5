"""The watcher over versions that are real and a registry that is a few dicts; its clock is set by hand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from curation.errors import UserError
from serving.admission import Limits
from serving.api import GenerationRequest, RequestError
from serving.generator import Generator
from serving.rollout import CanaryConfig, RolloutConfig
from serving.service import Service
from serving.standing import TakedownStanding
from serving.takedowns import RefusedVersion
from serving.versions import CHALLENGER, CHAMPION, Opened, Versions
from training.bundle import DiffusionModel
from training.tracking import ModelVersion

CONFIG = RolloutConfig(keep_warm_s=100, takedowns_every_s=10, retry_s=60)
CANARY = CONFIG.model_copy(update={"canary": CanaryConfig(share=0.25)})


class Shelf:
    """A registry of versions of one model; `gate` holds back who opens one."""

    def __init__(self, model: DiffusionModel, version: ModelVersion) -> None:
        self._model = model
        self._version = version
        self.aliases = {CHAMPION: "production", CHALLENGER: "next"}
        self.targets: dict[str, str | None] = {CHAMPION: "1", CHALLENGER: None}
        self.broken: dict[str, Exception] = {}
        self.down: Exception | None = None
        self.taken_down: set[str] = set()
        self.opened: list[str] = []
        self.live: list[tuple[str, str]] = []
        self.gate = threading.Event()
        self.gate.set()

    def target(self, role: str) -> str | None:
        if self.down is not None:
            raise self.down
        return self.targets[role]

    def open(self, version: str) -> Opened:
        self.gate.wait(30)
        self.opened.append(version)
        if version in self.broken:
            raise self.broken[version]
        found = self._version.model_copy(update={"version": version, "alias": None})
        return Opened(Service(Generator(found, self._model, None, Limits())), "the same bytes")

    def standing(self, version: str, before: TakedownStanding | None) -> TakedownStanding | None:
        if version in self.taken_down:
            raise RefusedVersion(f"version {version} is not served", field="model")
        return TakedownStanding(unexamined=("abc",))

    def went_live(self, role: str, version: str) -> None:
        self.live.append((role, version))


class Story:
    """A shelf, and the versions of a process that began with version 1."""

    def __init__(self, shelf: Shelf, config: RolloutConfig) -> None:
        self.shelf = shelf
        self.now = 0.0
        self.versions = Versions(config, shelf, "1", shelf.open("1"), clock=lambda: self.now)

    async def move(self, version: str | None, role: str = CHAMPION) -> None:
        self.shelf.targets[role] = version
        await self.look()

    async def look(self) -> None:
        """Asks the registry, and waits for what is loaded because of it."""
        await self.versions.look()
        await self.versions.settled()

    def version(self) -> str:
        return self.versions.describe().version

    def answers(self, draw: float | None = None, **fields: str) -> str:
        """Who would answer a request."""
        with self.versions.serving(request(**fields), draw) as service:
            return service.generator.card.version

    def states(self) -> dict[str, str]:
        return {state.version: state.state for state in self.versions.standing().versions}


def request(**fields: object) -> GenerationRequest:
    return GenerationRequest.model_validate({"prompt": "a red apple", "num_inference_steps": 1, **fields})


@pytest.fixture
def tell(model: DiffusionModel, version: ModelVersion) -> Callable[..., None]:
    def run(script: Callable[[Story], Awaitable[None]], config: RolloutConfig = CONFIG) -> None:
        async def go() -> None:
            await script(Story(Shelf(model, version), config))

        asyncio.run(go())

    return run


Tell = Callable[..., None]


def test_the_alias_is_followed_and_the_answers_name_the_version(tell: Tell) -> None:
    async def script(story: Story) -> None:
        assert story.version() == "1"
        await story.move("2")
        card = story.versions.describe()
        assert (card.version, card.alias) == ("2", "production")
        with story.versions.serving(request()) as service:
            assert (await service.generate(request())).card.version == "2"
        assert story.states() == {"1": "warm", "2": "live"}
        await story.look()
        assert story.shelf.live == [(CHAMPION, "2")]

    tell(script)


def test_the_old_version_answers_while_the_new_one_is_loaded_and_the_alias_is_still_watched(tell: Tell) -> None:
    async def script(story: Story) -> None:
        story.shelf.gate.clear()
        story.shelf.targets[CHAMPION] = "2"
        await story.versions.look()
        assert story.states() == {"1": "live", "2": "loading"}
        with story.versions.serving(request()) as service:
            assert (await service.generate(request())).card.version == "1"
        story.shelf.targets[CHAMPION] = "1"
        await story.versions.look()
        story.shelf.gate.set()
        await story.versions.settled()
        assert story.states() == {"1": "live", "2": "warm"}

    tell(script)


def test_a_request_stays_with_the_version_it_began_with(tell: Tell) -> None:
    async def script(story: Story) -> None:
        with story.versions.serving(request()) as service:
            await story.move("2")
            story.now += 1_000
            await story.look()
            assert story.version() == "2"
            assert (await service.generate(request())).card.version == "1"
        await story.look()
        assert story.states() == {"2": "live"}

    tell(script)


@pytest.mark.parametrize("fault", [UserError("its bundle is gone", field="model"), MemoryError("too large")])
def test_a_version_that_cannot_be_loaded_is_reported_and_changes_nothing(tell: Tell, fault: Exception) -> None:
    async def script(story: Story) -> None:
        story.shelf.broken["2"] = fault
        await story.move("2")
        assert story.answers() == "1"
        standing = story.versions.describe().rollout
        assert standing is not None
        assert str(fault) in str(standing.problem)
        assert story.states() == {"1": "live", "2": "failed"}
        del story.shelf.broken["2"]
        await story.look()
        assert story.version() == "1"
        story.now += CONFIG.retry_s
        await story.look()
        assert (story.version(), story.versions.standing().problem) == ("2", None)

    tell(script)


def test_going_back_loads_nothing(tell: Tell) -> None:
    async def script(story: Story) -> None:
        await story.move("2")
        await story.move("1")
        assert (story.version(), story.shelf.opened) == ("1", ["1", "2"])

    tell(script)


def test_a_registry_that_is_down_changes_nothing_and_is_reported(tell: Tell) -> None:
    async def script(story: Story) -> None:
        story.shelf.down = ConnectionError("refused")
        await story.move("2")
        assert story.answers() == "1"
        assert "could not be asked: refused" in str(story.versions.standing().problem)
        story.shelf.down = None
        await story.look()
        assert (story.version(), story.versions.standing().problem) == ("2", None)

    tell(script)


def test_an_alias_that_is_taken_away_leaves_its_version_answering(tell: Tell) -> None:
    async def script(story: Story) -> None:
        await story.move(None)
        assert story.answers() == "1"
        assert "production is gone" in str(story.versions.standing().problem)

    tell(script)


def test_a_version_that_is_taken_down_while_it_is_served_answers_nobody(tell: Tell) -> None:
    async def script(story: Story) -> None:
        story.shelf.taken_down.add("1")
        await story.look()
        assert story.answers() == "1"  # it is not looked at every time
        with story.versions.serving(request()) as service:
            story.now += CONFIG.takedowns_every_s
            await story.look()
            assert (await service.generate(request())).card.version == "1"
        for ask in (story.versions.describe, story.answers):
            with pytest.raises(RequestError, match="version 1 is not served") as refused:
                ask()
            assert (refused.value.status, refused.value.code) == (503, "version_refused")
        assert story.states() == {"1": "refused"}
        await story.move("2")
        assert story.answers() == "2"

    tell(script)


def test_a_takedown_that_is_settled_brings_the_version_back(tell: Tell) -> None:
    async def script(story: Story) -> None:
        story.shelf.taken_down.add("1")
        story.now += CONFIG.takedowns_every_s
        await story.look()
        story.shelf.taken_down.clear()
        story.now += CONFIG.takedowns_every_s
        await story.look()
        card = story.versions.describe()
        assert (card.version, card.takedowns) == ("1", TakedownStanding(unexamined=("abc",)))

    tell(script)


def test_the_challenger_answers_its_share_and_whoever_names_it(tell: Tell) -> None:
    async def script(story: Story) -> None:
        await story.move("2", CHALLENGER)
        assert story.answers(draw=0.2) == "2"
        assert [story.answers(draw=draw) for draw in (None, 0.25, 0.9)] == ["1"] * 3
        assert story.answers(draw=0.2, model="tiny") == "2"
        assert story.answers(draw=0.9, model="tiny@next") == "2"
        assert story.answers(draw=0.2, model="tiny/1") == "1"
        card = story.versions.describe()
        assert [(entry.id, entry.version) for entry in card.entries()] == [("tiny", "1"), ("tiny@next", "2")]
        found = {name: card.named(name) for name in ("tiny", "tiny/1", "tiny@next", "models:/tiny/2", "other")}
        assert [found and found.version for found in found.values()] == ["1", "1", "2", "2", None]
        await story.move(None, CHALLENGER)
        assert story.answers(draw=0.2) == "1"
        assert "tiny@next" not in story.versions.describe().names()

    tell(script, CANARY)


def test_what_the_challenger_cannot_draw_the_champion_does(tell: Tell) -> None:
    async def script(story: Story) -> None:
        await story.move("2", CHALLENGER)
        service = story.versions.services()[1]
        card = service.generator.card.model_copy(update={"noise_levels": 1})
        service.generator.card = card
        assert story.answers(draw=0.2) == "2"
        with story.versions.serving(request(num_inference_steps=5), 0.2) as service:
            assert service.generator.card.version == "1"

    tell(script, CANARY)


def test_a_promoted_challenger_is_the_champion_without_being_loaded_again(tell: Tell) -> None:
    async def script(story: Story) -> None:
        await story.move("2", CHALLENGER)
        await story.move("2")
        card = story.versions.describe()
        assert (card.version, card.alias) == ("2", "production")
        assert story.shelf.opened == ["1", "2"]

    tell(script, CANARY)


def test_a_version_can_be_asked_for_as_long_as_it_is_loaded(tell: Tell) -> None:
    async def script(story: Story) -> None:
        await story.move("2")
        with story.versions.serving(request(), version="1") as service:
            assert service.generator.card.version == "1"
        story.shelf.broken["4"] = UserError("gone", field="model")
        await story.move("4")
        for version in ("3", "4"):
            with pytest.raises(RequestError) as refused, story.versions.serving(request(), version=version):
                pass
            assert (refused.value.status, refused.value.code) == (409, "version_not_served")

    tell(script)


def test_watching_looks_again_and_again(tell: Tell) -> None:
    async def script(story: Story) -> None:
        answered = asyncio.Event()
        loop = asyncio.get_running_loop()
        story.shelf.went_live = lambda role, version: loop.call_soon_threadsafe(answered.set)  # type: ignore[method-assign,assignment,misc]
        story.versions.watch()
        story.versions.watch()
        story.shelf.targets[CHAMPION] = "2"
        await asyncio.wait_for(answered.wait(), 30)
        assert story.version() == "2"

    tell(script, CONFIG.model_copy(update={"poll_s": 0.01}))
