"""Versions of a real registry: which one a process begins with, what it refuses, and what it notes."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest

from curation.errors import UserError
from curation.takedowns import Ledger, Selector
from serving import selftest
from serving.canary import Outcome
from serving.canary_desk import CanaryDesk
from serving.job import EngineConfig, ServeJob
from serving.registered import RETURNED, SERVED, Registered
from serving.rollout import CanaryConfig, RolloutConfig
from serving.selftest import TAG
from serving.takedowns import RefusedVersion
from serving.versions import CHALLENGER, CHAMPION
from training import tracking
from training.bundle import INFO_FILE


class Store:
    """A registry with three versions of one model, whose champion is the first."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.cache = folder / "cache"
        self.ledger = Ledger.open(str(folder / "takedowns"))
        for number in range(3):
            copy = folder / f"bundle-{number}"
            shutil.copytree(bundle, copy)
            info = json.loads((copy / INFO_FILE).read_text()) | {"images_seen": number}
            (copy / INFO_FILE).write_text(json.dumps(info))
            tracking.register(str(copy), "tiny", alias=None, tracking_uri=self.uri)
        self.move("1")

    def job(self, **fields: Any) -> ServeJob:
        told = {
            "model": "models:/tiny@champion",
            "tracking_uri": self.uri,
            "cache": str(self.cache),
            "engine": EngineConfig(backend="torch"),
            "ledger": self.ledger.uri,
        }
        return ServeJob(**{**told, **fields})

    def move(self, version: str, alias: str = "champion") -> None:
        tracking.set_alias("tiny", alias, version, tracking_uri=self.uri)

    def tag(self, version: str, **tags: str) -> None:
        tracking.tag_version("tiny", version, tags, tracking_uri=self.uri)

    def tags(self, version: str) -> dict[str, str]:
        return tracking.find(f"models:/tiny/{version}", tracking_uri=self.uri).tags

    def lose(self, version: str) -> None:
        """The version's files are gone, also where they were downloaded to."""
        shutil.rmtree(self.cache, ignore_errors=True)
        artifacts = Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts"
        for found in list(artifacts.rglob(INFO_FILE)):
            if json.loads(found.read_text())["images_seen"] == int(version) - 1:
                shutil.rmtree(found.parent)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Store:
    return Store(tmp_path_factory.mktemp("store"), bundle)


def test_it_begins_with_what_the_alias_names_and_says_how_it_was_tested(made: Store) -> None:
    registry = Registered(made.job())
    version, opened = registry.first()
    assert (version, registry.aliases) == ("1", {CHAMPION: "champion"})
    assert opened.service.generator.card.version == "1"
    assert "no hash of this backend was registered" in str(opened.self_test)
    registry.went_live(CHAMPION, "1")
    assert made.tags("1")[SERVED + "champion"].startswith("20")
    made.move("2")
    assert registry.target(CHAMPION) == "2"
    made.move("1")


def test_a_number_or_a_folder_follows_nothing(made: Store, bundle: Path) -> None:
    for model, version in (("models:/tiny/2", "2"), (str(bundle), "0")):
        registry = Registered(made.job(model=model))
        assert (registry.first()[0], registry.aliases) == (version, {})


def test_a_self_test_that_draws_other_bytes_is_refused_or_said(
    made: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    key = TAG + "torch-fp32"
    told = selftest.tags_of(_bundle(made, "3"))[key]
    made.tag("3", **{key: json.dumps(json.loads(told) | {"sha256": "0" * 64})})
    model = "models:/tiny/3"
    with pytest.raises(UserError, match=r"version 3 fails its self-test: .*other bytes"):
        Registered(made.job(model=model)).first()
    _, opened = Registered(made.job(model=model, rollout=RolloutConfig(self_test="warn"))).first()
    assert "other bytes" in str(opened.self_test)
    _, opened = Registered(made.job(model=model, rollout=RolloutConfig(self_test="off"))).first()
    assert opened.self_test is None
    made.tag("3", **{key: told})
    _, opened = Registered(made.job(model=model)).first()
    assert "the bytes that torch-fp32 drew when it was registered" in str(opened.self_test)


def _bundle(made: Store, version: str) -> str:
    return tracking.resolve(f"models:/tiny/{version}", tracking_uri=made.uri, cache=str(made.cache)).bundle


def test_a_challenger_that_was_sent_back_gets_nothing(made: Store) -> None:
    registry = Registered(made.job(rollout=RolloutConfig(canary=CanaryConfig(alias="next"))))
    registry.first()
    assert registry.target(CHALLENGER) is None
    made.move("2", "next")
    assert registry.target(CHALLENGER) == "2"
    made.tag("2", **{RETURNED: "too slow"})
    assert registry.target(CHALLENGER) is None


def test_the_desk_writes_down_that_a_challenger_goes_back(made: Store) -> None:
    canary = CanaryConfig(alias="worse", min_requests=2)
    registry = Registered(made.job(rollout=RolloutConfig(canary=canary)))
    registry.first()
    made.move("3", "worse")
    assert registry.target(CHALLENGER) == "3"

    desk = CanaryDesk(canary, made.uri)

    async def outcomes() -> None:
        for _ in range(2):
            await desk.add("tiny", "1", False, Outcome(pictures=1, seconds=0.1))
            await desk.add("tiny", "3", True, Outcome(failed=True))

    asyncio.run(outcomes())
    assert registry.target(CHALLENGER) is None
    mlflow.MlflowClient(made.uri).delete_model_version_tag("tiny", "3", f"cleanplate.{RETURNED}")
    assert registry.target(CHALLENGER) == "3", "taking the tag away gives it another chance"
    asyncio.run(outcomes())
    assert registry.target(CHALLENGER) is None
    assert made.tags("3")[RETURNED].endswith(": 100.0% of its requests failed, of version 1's 0.0%")


def test_how_a_version_stands_is_asked_anew(made: Store) -> None:
    job = made.job(model="models:/tiny/2", takedowns="refuse")
    registry = Registered(job)
    registry.first()
    standing = registry.standing("2", None)
    assert standing is not None
    assert standing.clear
    entry = made.ledger.append_entry(requester="Jane", ground="copyright", selectors=[Selector.of("domain", "a.org")])
    with pytest.raises(RefusedVersion, match=entry.id[:12]):
        registry.standing("2", None)
    made.tag("2", **{f"takedown.{entry.id[:12]}": "unaffected"})
    standing = registry.standing("2", None)
    assert standing is not None
    assert standing.clear
    with pytest.raises(RefusedVersion):  # nobody examined this one
        Registered(made.job(model="models:/tiny/1", takedowns="refuse")).first()


def test_a_process_that_starts_while_the_alias_names_a_broken_version_goes_on_with_the_last_good_one(
    made: Store,
) -> None:
    made.tag("1", **{SERVED + "champion": "2026-01-01"})
    made.tag("2", **{SERVED + "champion": "2026-01-02"})
    made.move("3")
    made.lose("3")
    registry = Registered(made.job())
    assert registry.first()[0] == "2"
    assert registry.target(CHAMPION) == "3"
    with pytest.raises(UserError):
        Registered(made.job(model="models:/tiny/3")).first()


def test_what_answered_until_it_was_refused_is_not_replaced_by_an_older_one(made: Store) -> None:
    made.ledger.append_entry(requester="Joe", ground="copyright", selectors=[Selector.of("domain", "b.org")])
    made.tag("1", **{SERVED + "champion": "2026-01-01"})
    made.tag("2", **{SERVED + "champion": "2026-01-02"})
    made.move("2")
    with pytest.raises(RefusedVersion):
        Registered(made.job(takedowns="refuse")).first()
