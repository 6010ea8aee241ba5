"""The Grafana dashboard of trainings, made from a table of panels: `python -m training.dashboard` prints it.

`infra/grafana/cleanplate-training.json` is what it prints; the tests hold the two together, and every query to the
metrics that there are (`training.metrics`).
"""

from __future__ import annotations

import sys

from curation import grafana
from curation.grafana import MINE, Panel, quantiles

_NAME = "cleanplate_training"


def _of(metric: str) -> dict[str, str]:
    """A gauge of each run."""
    return {"{{instance}}": f"max by (instance) ({_NAME}_{metric}{{{MINE}}})"}


ROWS: dict[str, list[Panel]] = {
    "Learning": [
        Panel("Loss", _of("loss")),
        Panel("Norm of the gradient, before clipping", _of("gradient_norm")),
        Panel("Learning rate", _of("learning_rate")),
    ],
    "Pace": [
        Panel("Images a second", _of("images_per_second")),
        Panel("Time of a step", _of("step_seconds"), unit="s"),
        Panel(
            "Share of a step in which the batch is made",
            _of("data_wait_ratio"),
            unit="percentunit",
            text="Near 1: training waits for its pictures, and more processors or shards would help.",
        ),
        Panel(
            "Share of the budget",
            {
                "{{instance}}": f"max by (instance) ({_NAME}_images_seen{{{MINE}}})"
                f" / max by (instance) ({_NAME}_images{{{MINE}}})"
            },
            unit="percentunit",
        ),
        Panel(
            "Seconds that are left",
            {
                "{{instance}}": f"(max by (instance) ({_NAME}_images{{{MINE}}})"
                f" - max by (instance) ({_NAME}_images_seen{{{MINE}}}))"
                f" / (max by (instance) ({_NAME}_images_per_second{{{MINE}}}) > 0)"
            },
            unit="s",
        ),
    ],
    "Checkpoints": [
        Panel("From taking one to its being there", quantiles(f"{_NAME}_checkpoint_seconds"), unit="s"),
        Panel("How long training waited for one", quantiles(f"{_NAME}_checkpoint_stall_seconds"), unit="s"),
        Panel(
            "Age of the newest",
            {"{{instance}}": f"time() - max by (instance) ({_NAME}_checkpoint_time_seconds{{{MINE}}} > 0)"},
            unit="s",
        ),
    ],
    "Workers": [
        Panel("Workers: the world size", _of("workers")),
        Panel("Nodes", {"{{kind}}": f"sum by (kind) ({_NAME}_nodes{{{MINE}}})"}),
        Panel(
            "Losses",
            {
                what: f"sum({_NAME}_{metric}_total{{{MINE}}})"
                for what, metric in {
                    "workers began anew": "restarts",
                    "their number changed": "resizes",
                    "workers lost": "workers_lost",
                    "nodes lost": "nodes_lost",
                    "checkpoints passed over": "checkpoints_refused",
                }.items()
            },
        ),
    ],
}


def text() -> str:
    """The file's content."""
    return grafana.text(grafana.dashboard("training", f"{_NAME}_workers", ROWS))


if __name__ == "__main__":
    sys.stdout.write(text())
