"""The dashboard and the alerts ask for the metrics that there are, and for all of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving import dashboard
from serving.admission import Limits
from serving.api import GenerationRequest, Moderation
from serving.engine import Status
from serving.generator import Generator
from serving.metrics import GatewayMetrics, Held, SamplerMetrics
from serving.standing import VersionState
from training.bundle import DiffusionModel
from training.tracking import ModelVersion

INFRA = Path(__file__).parents[2] / "infra"
DASHBOARD = INFRA / "grafana" / "cleanplate-serving.json"
RULES = INFRA / "prometheus" / "rules.yml"
_NAME = re.compile(r"cleanplate_\w+")
_LABELS = re.compile(r"\bby \(([^)]*)\)|[{,]\s*(\w+)\s*[=!]~?\"")
_OF_PROMETHEUS = {"job", "instance"}


@pytest.fixture(scope="module")
def known(version: ModelVersion, model: DiffusionModel) -> dict[str, set[str]]:
    """The labels of every series of a server that has done all there is to count."""
    gateway, sampler = GatewayMetrics(), SamplerMetrics()
    gateway.answered("/v1/images/generations", "ok", 1.0)
    gateway.refused(429, "overloaded")
    generator = Generator(version, model, None, Limits())
    generation = generator.generate(GenerationRequest(prompt="a", num_inference_steps=1))
    found = Moderation(stage="prompt", category="hate", rule="house:hate:1", action="flag")
    object.__setattr__(generation.pictures[0], "of_prompt", (found,))
    sampler.drew(generation)
    sampler.prompt_blocked(["hate"])
    held = Held(VersionState(version="1", state="live", aliases=("champion",)), Status(0, 0, 0, 0, 0.0, 0.0, False))
    labels: dict[str, set[str]] = {}
    for family in (*gateway.snapshot().families, *sampler.snapshot([held]).families):
        assert family.samples, family.name
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                labels.setdefault(sample.name, {"replica"}).update(sample.labels)
    return labels


def queries() -> Iterator[str]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_the_file_is_what_its_table_says() -> None:
    """Make it anew: `python -m serving.dashboard > infra/grafana/cleanplate-serving.json`."""
    assert DASHBOARD.read_text() == dashboard.text()


def test_every_query_asks_for_series_and_labels_that_there_are(known: dict[str, set[str]]) -> None:
    for query in [*queries(), *(rule["expr"] for rule in alerts())]:
        names = set(_NAME.findall(query))
        assert names <= set(known), query
        asked = {
            label.strip() for by, one in _LABELS.findall(query) for label in (by.split(",") if by else [one]) if label
        }
        there = set().union(*(known[name] for name in names)) | _OF_PROMETHEUS
        assert asked <= there, query


def test_every_metric_is_shown(known: dict[str, set[str]]) -> None:
    shown = {name for query in queries() for name in _NAME.findall(query)}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known}
    assert families <= {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}


def test_legends_and_summaries_name_labels_of_their_queries() -> None:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            by = {label.strip() for found, _ in _LABELS.findall(target["expr"]) for label in found.split(",")}
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= by, target
    for rule in alerts():
        by = {label.strip() for found, _ in _LABELS.findall(rule["expr"]) for label in found.split(",")}
        told = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert told <= by | ({"instance"} if rule["expr"].startswith("up") else set()), rule


def test_panels_have_a_place_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    covered: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & covered
        assert place["x"] + place["w"] <= 24
        covered |= cells


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_complain_of() -> None:
    config = RULES.with_name("prometheus.yml")
    for command in (["rules", RULES.name], ["config", config.name]):
        done = subprocess.run(["promtool", "check", *command], cwd=RULES.parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
