"""`cleanplate promote`: each gate by itself, and what is left where an alias moves or does not."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from curation.errors import UserError
from pipelines import promote
from pipelines.cli import app
from pipelines.evaluate import StoredMemorization, StoredMetric
from pipelines.promote import PromoteJob, Promotion
from tests.pipelines.world import World
from training import tracking

pytestmark = pytest.mark.slow  # networks are trained, in seconds each


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tower: Path, empty_store: Path) -> World:
    made = World.make(tmp_path_factory.mktemp("world"), tower, empty_store)
    made.register(made.train(), alias="champion")
    return made


@pytest.fixture
def world(trained: World) -> World:
    """Version 1 is champion; nothing else points at anything, and nothing is measured but what `measured` sets."""
    return trained


def measured(
    world: World, *, excess: float = 0.0, verdict: str = "passed", **metrics: tuple[float, float | None]
) -> None:
    gate = StoredMemorization.model_validate(
        {
            "verdict": verdict,
            "excess": excess,
            "share": excess,
            "weighted": excess,
            "false_positives": 0.0,
            "ratio": 0.3,
        }
    )
    tags = {"memorization": gate.model_dump_json()}
    for name, (value, floor) in metrics.items():
        stored = StoredMetric(value=value, low=value - 1, high=value + 1, n=10, floor=floor)
        tags[f"eval.{name}"] = stored.model_dump_json()
    tracking.tag_version("drawings", "1", tags, tracking_uri=world.tracking_uri)


def gates(world: World, alias: str = "tried", **changes: Any) -> Promotion:
    job = PromoteJob.model_validate({"tracking_uri": world.tracking_uri, "ledger": world.ledger.uri} | changes)
    return promote.run("drawings", "1", job, alias=alias)


def outcome(done: Promotion, gate: str) -> str:
    (found,) = [g.outcome for g in done.gates if g.gate == gate]
    return found


def aliases(world: World) -> tuple[str, ...]:
    return tracking.find("models:/drawings/1", tracking_uri=world.tracking_uri).aliases


def test_what_was_not_measured_does_not_pass(world: World) -> None:
    done = gates(world, quality={"fd_efficientnet_lite0": {"max": 100}})
    assert outcome(done, "memorisation") == outcome(done, "quality: fd_efficientnet_lite0") == "failed"
    assert outcome(done, "rights") == outcome(done, "export parity") == "passed"
    assert not done.moved
    assert aliases(world) == ("champion",)


@pytest.mark.parametrize(
    ("limit", "value", "floor", "expected"),
    [
        ({"max": 10}, 10.0, None, "passed"),
        ({"max": 10}, 10.1, None, "failed"),
        ({"min": 0.5}, 0.5, None, "passed"),
        ({"min": 0.5}, 0.4, None, "failed"),
        ({"max_over_floor": 2}, 5.9, 3.0, "passed"),
        ({"max_over_floor": 2}, 6.1, 3.0, "failed"),
        ({"max_over_floor": 2}, 1.0, None, "failed"),
        ({"min": 0.1, "max": 1}, 2.0, None, "failed"),
        ({"max": 10}, float("nan"), None, "failed"),
        ({"max": 10, "action": "warn"}, 11.0, None, "warned"),
    ],
)
def test_quality(world: World, limit: dict[str, Any], value: float, floor: float | None, expected: str) -> None:
    measured(world, some=(value, floor))
    done = gates(world, quality={"some": limit})
    assert outcome(done, "quality: some") == expected
    assert done.moved == (expected != "failed")


def test_a_quality_gate_has_a_limit() -> None:
    with pytest.raises(ValueError, match="min, max"):
        PromoteJob.model_validate({"quality": {"some": {"action": "warn"}}})


def test_memorisation_refuses_or_warns(world: World) -> None:
    measured(world, excess=0.05, verdict="over")
    refused = gates(world, alias="memory")
    assert outcome(refused, "memorisation") == "failed"
    assert "memory" not in aliases(world)
    assert "models:/drawings@memory was not moved" in promote.summary(refused)[0]
    assert gates(world, alias="memory", memorization={"max_excess": 0.05}).moved
    warned = gates(world, alias="memory", memorization={"action": "warn"})
    assert outcome(warned, "memorisation") == "warned"
    assert warned.moved
    measured(world, excess=0.0, verdict="undecided")
    assert outcome(gates(world), "memorisation") == "failed"


def test_exports_that_differ(world: World) -> None:
    measured(world)
    assert outcome(gates(world, export={"required": True}), "export parity") == "failed"

    def attached(kind: str, told: str) -> None:
        tracking.tag_version("drawings", "1", {f"export.{kind}.parity": told}, tracking_uri=world.tracking_uri)

    for told, expected in (
        ("passed: 2e-6", "passed"),
        ("failed: 0.3", "failed"),
        ("", "failed"),
        ("unpassed", "failed"),
    ):
        attached("onnx", told)
        assert outcome(gates(world, export={"required": True}), "export parity") == expected
        assert outcome(gates(world), "export parity") == expected
    attached("onnx", "passed: 2e-6")
    attached("int8", "failed: 31 dB")
    both = gates(world)
    assert [(gate.gate, gate.detail) for gate in both.failed] == [("export parity", "int8 failed: 31 dB")]
    attached("int8", "passed: 48 dB")
    assert gates(world).moved


def test_a_move_is_recorded(world: World) -> None:
    measured(world)
    done = gates(world, alias="recorded")
    assert done.moved
    assert done.before is None
    assert "recorded" in aliases(world)
    tags = tracking.find("models:/drawings/1", tracking_uri=world.tracking_uri).tags
    assert tags["promoted.recorded.by"] == getpass.getuser()
    assert tags["promoted.recorded.at"].endswith("+00:00")
    assert json.loads(tags["promoted.recorded.gates"])["rights"] == "passed"
    (action,) = [a for a in world.ledger.read().actions if a.subject == "models:/drawings@recorded"]
    assert action.what == "alias_moved"
    assert json.loads(action.detail)["version"] == "1"
    assert gates(world, alias="recorded").before == "1"


def test_names_that_are_none(world: World) -> None:
    measured(world)
    with pytest.raises(UserError, match="no alias"):
        gates(world, alias="Champion")
    with pytest.raises(UserError, match="version 7"):
        promote.run("drawings", "7", PromoteJob(tracking_uri=world.tracking_uri), alias="champion")


def test_the_command_exits_with_1_and_a_table(world: World, tmp_path: Path) -> None:
    path = tmp_path / "gates.yaml"
    path.write_text(yaml.safe_dump({"kind": "promote", "tracking_uri": world.tracking_uri, "ledger": world.ledger.uri}))
    call = ["promote", "drawings", "1", "--alias", "typed", "--job", str(path)]
    measured(world, excess=0.5, verdict="over")
    refused = CliRunner().invoke(app, call)
    assert refused.exit_code == 1
    assert "memorisation" in refused.stdout
    assert "typed was not moved" in refused.stdout
    assert "typed" not in aliases(world)
    measured(world)
    passed = CliRunner().invoke(app, [*call, "--json"])
    assert passed.exit_code == 0
    assert json.loads(passed.stdout.splitlines()[-1])["moved"] is True
    assert "typed" in aliases(world)


def test_takedowns_and_old_consent_stand_in_the_way(tmp_path: Path, tower: Path, empty_store: Path) -> None:
    world = World.make(tmp_path, tower, empty_store)
    world.register(world.train())
    measured(world)
    assert gates(world, alias="fine", rights={"consent_max_age_days": 1}).moved
    old = gates(world, alias="old", rights={"consent_max_age_days": 1e-9})
    assert outcome(old, "rights") == "failed"
    entry = world.ask("domain", "a.example")
    unexamined = gates(world, alias="new")
    assert outcome(unexamined, "rights") == "failed"
    assert entry.id[:12] in unexamined.failed[0].detail
    tracking.tag_version("drawings", "1", {f"takedown.{entry.id[:12]}": "affected"}, tracking_uri=world.tracking_uri)
    affected = gates(world, alias="new")
    assert "taken down" in affected.failed[0].detail
    assert gates(world, alias="new", rights={"action": "warn"}).moved
    world.ledger.withdraw(entry.id, by="Jane", why="a mistake")
    assert outcome(gates(world, alias="newer"), "rights") == "passed"
