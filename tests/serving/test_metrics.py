"""What is counted, read as Prometheus reads it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from curation.clip import ClipConfig
from serving import guard
from serving.admission import Limits
from serving.api import GenerationRequest
from serving.engine import Status
from serving.generator import Generation, Generator
from serving.metrics import GatewayMetrics, Held, SamplerMetrics, Snapshot, exposition, families
from serving.safety import OutputSafety
from serving.standing import VersionState
from training.bundle import DiffusionModel
from training.tracking import ModelVersion

LIVE = VersionState(version="3", state="live", aliases=("champion",))
STATUS = Status(
    pictures=2,
    row_steps=90,
    passes=5,
    rows=30,
    row_steps_per_s=12.5,
    silent_s=0.25,
    draining=False,
    busy_s=2.0,
    max_rows=8,
    fill=(0, 1, 0, 0, 0, 0, 0, 0, 0, 4),
)


def read(*snapshots: Snapshot) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample, by its name and labels. As from other processes: pickled and read back."""
    text = exposition([pickle.loads(pickle.dumps(snapshot)) for snapshot in snapshots]).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples)  # nothing is said twice
    return found


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"cleanplate_{name}", frozenset(labels.items())


@pytest.fixture(scope="module")
def generator(version: ModelVersion, model: DiffusionModel) -> Generator:
    return Generator(version, model, None, Limits())


def drawn(generator: Generator, n: int) -> Generation:
    return generator.generate(GenerationRequest(prompt="a red apple", n=n, num_inference_steps=1))


def test_several_processes_stand_beside_each_other_and_none_speaks_for_another(generator: Generator) -> None:
    first, second = SamplerMetrics("sampler-a"), SamplerMetrics("sampler-b")
    first.drew(drawn(generator, 2))
    second.drew(drawn(generator, 1))
    second.drew(drawn(generator, 1))
    second.broke_off()
    found = read(GatewayMetrics("gateway-g").snapshot(), first.snapshot([]), second.snapshot([]))
    pictures = {"version": "3", "finish_reason": "stop"}
    assert found[key("pictures_total", replica="sampler-a", **pictures)] == 2
    assert found[key("pictures_total", replica="sampler-b", **pictures)] == 2
    assert found[key("generations_failed_total", replica="sampler-a")] == 0
    assert found[key("generations_failed_total", replica="sampler-b")] == 1
    assert found[key("stage_seconds_count", replica="sampler-b", stage="sample")] == 2
    assert {dict(labels)["replica"] for _, labels in found} == {"sampler-a", "sampler-b", "gateway-g"}


def test_an_engine_is_told_by_its_version() -> None:
    held = [Held(LIVE, STATUS), Held(VersionState(version="4", state="loading"), None)]
    found = read(SamplerMetrics("s").snapshot(held))
    own = {"replica": "s", "version": "3"}
    assert found[key("row_steps_total", **own)] == 30
    assert found[key("passes_total", **own)] == 5
    assert found[key("busy_seconds_total", **own)] == 2
    assert found[key("queue_row_steps", **own)] == 90
    assert found[key("engine_silent_seconds", **own)] == 0.25
    assert found[key("engine_draining", **own)] == 0
    assert found[key("version", **own, state="live")] == 1
    assert found[key("version", replica="s", version="4", state="loading")] == 1
    assert found[key("version_answers", **own, alias="champion")] == 1
    fill = [found[key("pass_fill_ratio_bucket", **own, le=le)] for le in ("0.1", "0.2", "0.9", "1.0", "+Inf")]
    assert fill == [0, 1, 1, 5, 5]
    assert found[key("pass_fill_ratio_sum", **own)] == 30 / 8
    assert found[key("pass_fill_ratio_count", **own)] == 5


def test_what_is_withheld_is_counted_by_its_category(
    version: ModelVersion, model: DiffusionModel, tiny_clip: ClipConfig
) -> None:
    told = OutputSafety(concepts={"weapon": -0.99, "blood": 0.99, "smoke": -0.99}, actions={"smoke": "flag"})
    metrics = SamplerMetrics("s")
    metrics.drew(drawn(Generator(version, model, guard.build(told, tiny_clip), Limits()), 3))
    metrics.prompt_blocked(["hate", "violence"])
    found = read(metrics.snapshot([]))
    assert found[key("pictures_moderated_total", replica="s", stage="picture", category="weapon", action="block")] == 3
    assert found[key("pictures_moderated_total", replica="s", stage="picture", category="smoke", action="flag")] == 3
    assert not [labels for _, labels in found if ("category", "blood") in labels]
    assert found[key("prompts_blocked_total", replica="s", category="hate")] == 1
    assert found[key("pictures_total", replica="s", version="3", finish_reason="content_filtered")] == 3


def test_refusals_by_code_and_never_more_codes_than_a_server_has() -> None:
    metrics = GatewayMetrics("g")
    metrics.refused(429, "overloaded")
    metrics.refused(429, "overloaded")
    for number in range(1_000):
        metrics.refused(400, f"made up {number}")
    metrics.refused(429, "overloaded")
    found = read(metrics.snapshot())
    assert found[key("refusals_total", replica="g", status="429", code="overloaded")] == 3
    codes = [value for (name, _), value in found.items() if name == "cleanplate_refusals_total"]
    assert len(codes) <= 65
    assert sum(codes) == 1_003


def test_every_family_is_known_before_it_has_a_value(tmp_path: Path) -> None:
    """What the dashboard and the rules are held to."""
    known = families()
    assert known["cleanplate_request_seconds"] == "histogram"
    assert known["cleanplate_row_steps"] == "counter"
    assert known["cleanplate_queue_row_steps"] == "gauge"
    found = read(GatewayMetrics().snapshot(), SamplerMetrics().snapshot([Held(LIVE, STATUS)]))
    for name, _ in found:
        assert name.rpartition("_")[0] in known or name in known
