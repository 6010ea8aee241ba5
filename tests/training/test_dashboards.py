"""The dashboards of curation and training ask for the metrics that there are, and for all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
from prometheus_client import CollectorRegistry

import curation.dashboard
import training.dashboard
from curation.metrics import CurationMetrics
from curation.standing import Stage, Standing
from training.metrics import TrainingMetrics

GRAFANA = Path(__file__).parents[2] / "infra" / "grafana"
STANDING = Standing(0.0, "a", {"measure": Stage(1, 2, 3.0), "train": Stage(1, 2)}, 1, {"cpu_node": 1}, {"loss": 1.0})
_NAME = re.compile(r"cleanplate_\w+")


def labels(registry: CollectorRegistry) -> dict[str, set[str]]:
    """The labels of every series."""
    found: dict[str, set[str]] = {}
    for family in registry.collect():
        assert family.samples, f"{family.name} was not counted"
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def of_curation() -> dict[str, set[str]]:
    metrics = CurationMetrics()
    metrics.unit(["measure"], 1.0, 1, {"timeout": 1})
    metrics.rows({("kept", "passed"): 1})
    metrics.standing(STANDING)
    return labels(metrics.registry)


def of_training() -> dict[str, set[str]]:
    metrics = TrainingMetrics()
    metrics.standing(STANDING)
    return labels(metrics.registry)


@pytest.mark.parametrize(
    ("name", "module", "known"),
    [("curation", curation.dashboard, of_curation()), ("training", training.dashboard, of_training())],
)
def test_a_dashboard(name: str, module: ModuleType, known: Mapping[str, set[str]]) -> None:
    """Make one anew: `python -m curation.dashboard > infra/grafana/cleanplate-curation.json`."""
    text = (GRAFANA / f"cleanplate-{name}.json").read_text()
    assert text == module.text()
    shown = set()
    for panel in json.loads(text)["panels"]:
        for target in panel.get("targets", []):
            query, names = target["expr"], set(_NAME.findall(target["expr"]))
            assert names <= set(known), query
            shown |= names
            by = {label.strip() for found in re.findall(r"\bby \(([^)]*)\)", query) for label in found.split(",")}
            assert by <= set().union(*(known[each] for each in names)) | {"le", "instance"}, query
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= by, target
    families = {re.sub(r"_(bucket|sum|count)$", "", each) for each in known}
    assert families == {re.sub(r"_(bucket|sum|count)$", "", each) for each in shown}
