"""The Grafana dashboard of a server, made from a table of panels: `python -m serving.dashboard` prints it.

`infra/grafana/cleanplate-serving.json` is what it prints; the tests hold the two together, and every query to the
metrics that there are (`serving.metrics`).
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["timeseries", "stat", "heatmap", "table"]

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_MINE = 'job=~"$job"'
_DRAWING = 'job=~"$job",route="/v1/images/generations"'


@dataclass(frozen=True)
class Panel:
    """A panel of a third of the width.

    Attributes:
        queries: PromQL, each with its legend.
        unit: Grafana's name of it.
    """

    title: str
    queries: dict[str, str]
    unit: str = "short"
    kind: Kind = "timeseries"
    text: str = ""


def _quantiles(metric: str, selector: str) -> dict[str, str]:
    """The median and the 95th percentile of a histogram."""
    rate = f"sum by (le) (rate({metric}_bucket{{{selector}}}[$__rate_interval]))"
    return {f"p{quantile}": f"histogram_quantile(0.{quantile}, {rate})" for quantile in (50, 95)}


def _rate(metric: str, by: str, selector: str = _MINE) -> str:
    return f"sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))"


ROWS: dict[str, list[Panel]] = {
    "Pace": [
        Panel(
            "Row-steps a second",
            {"{{version}}": _rate("cleanplate_row_steps_total", "version")},
            text="A picture one step on is one row-step, or two with guidance.",
        ),
        Panel(
            "Queue, in row-steps and in seconds",
            {
                "row-steps, {{replica}}": f"sum by (replica) (cleanplate_queue_row_steps{{{_MINE}}})",
                "seconds at the recent pace": f"sum(cleanplate_queue_row_steps{{{_MINE}}})"
                f" / sum(cleanplate_pace_row_steps_per_second{{{_MINE}}} > 0)",
            },
        ),
        Panel(
            "Pictures a second",
            {"{{finish_reason}}": _rate("cleanplate_pictures_total", "finish_reason")},
        ),
    ],
    "Batches": [
        Panel(
            "How full passes are",
            {"{{le}}": _rate("cleanplate_pass_fill_ratio_bucket", "le")},
            unit="percentunit",
            kind="heatmap",
            text="Rows of a pass over the most it may have. Always full: it wants more replicas.",
        ),
        Panel(
            "Rows of a pass, on average",
            {
                "{{version}}": f"{_rate('cleanplate_row_steps_total', 'version')}"
                f" / {_rate('cleanplate_passes_total', 'version')}"
            },
        ),
        Panel(
            "Share of time in passes",
            {"{{replica}}": _rate("cleanplate_busy_seconds_total", "replica")},
            unit="percentunit",
        ),
    ],
    "What clients see": [
        Panel("Answers to requests for pictures", _quantiles("cleanplate_request_seconds", _DRAWING), unit="s"),
        Panel("Until the first step", _quantiles("cleanplate_time_to_first_step_seconds", _MINE), unit="s"),
        Panel("Until the first preview", _quantiles("cleanplate_time_to_first_preview_seconds", _MINE), unit="s"),
        Panel(
            "Requests a second by outcome",
            {"{{outcome}}": _rate("cleanplate_request_seconds_count", "outcome", f'{_MINE},route=~"/v1/images/.*"')},
        ),
        Panel(
            "Refusals a second by code",
            {"{{status}} {{code}}": _rate("cleanplate_refusals_total", "status, code")},
        ),
        Panel(
            "Where requests spend their time",
            {"{{stage}}": _rate("cleanplate_stage_seconds_sum", "stage")},
            unit="s",
        ),
    ],
    "Safety and accountability": [
        Panel(
            "Findings in pictures a second",
            {
                "{{stage}} {{category}}: {{action}}": _rate(
                    "cleanplate_pictures_moderated_total", "stage, category, action"
                )
            },
        ),
        Panel("Prompts refused a second", {"{{category}}": _rate("cleanplate_prompts_blocked_total", "category")}),
        Panel(
            "Attributions, drawn again, verified, reproduced, a second",
            {
                "attributed": f"sum(rate(cleanplate_pictures_attributed_total{{{_MINE}}}[$__rate_interval]))",
                "drawn again": f"sum(rate(cleanplate_pictures_redrawn_total{{{_MINE}}}[$__rate_interval]))",
                "{{route}}": _rate(
                    "cleanplate_request_seconds_count", "route", f'{_MINE},route=~"/v1/images/(verify|.*/reproduce)"'
                ),
            },
        ),
    ],
    "Versions": [
        Panel("Pictures a second by version", {"{{version}}": _rate("cleanplate_pictures_total", "version")}),
        Panel(
            "Versions that replicas hold",
            {"{{version}} {{state}}": f"count by (version, state) (cleanplate_version{{{_MINE}}})"},
        ),
        Panel(
            "Replicas whose version answers, by alias",
            {"{{alias}} {{version}}": f"count by (alias, version) (cleanplate_version_answers{{{_MINE}}})"},
        ),
    ],
    "Health": [
        Panel(
            "Longest silence of an engine with work",
            {"{{replica}}": f"max by (replica) (cleanplate_engine_silent_seconds{{{_MINE}}})"},
            unit="s",
        ),
        Panel(
            "Under way",
            {
                "requests": f"sum(cleanplate_requests_in_flight{{{_MINE}}})",
                "pictures": f"sum(cleanplate_pictures_under_way{{{_MINE}}})",
            },
        ),
        Panel(
            "Broken off, draining, closed, missing",
            {
                "requests broken off in a sampler, a second": "sum(rate("
                f"cleanplate_generations_failed_total{{{_MINE}}}[$__rate_interval]))",
                "engines draining": f"sum(cleanplate_engine_draining{{{_MINE}}})",
                "gateways closed": f"count(cleanplate_accepting{{{_MINE}}} == 0)",
                "samplers missing in the last scrape": f"count(cleanplate_scrape_complete{{{_MINE}}} == 0)",
            },
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for row, members in ROWS.items():
        panels.append({"id": len(panels) + 1, "type": "row", "title": row, "gridPos": _place(0, top, 24, 1)})
        top += 1
        for number, panel in enumerate(members):
            place = _place(8 * (number % 3), top + 8 * (number // 3), 8, 8)
            panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(panel)})
        top += 8 * -(-len(members) // 3)
    return {
        "uid": "cleanplate-serving",
        "title": "cleanplate: serving",
        "tags": ["cleanplate"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_DATASOURCE, _JOB]},
        "panels": panels,
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


_DATASOURCE = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
_JOB = {
    "name": "job",
    "label": "Job",
    "type": "query",
    "datasource": _SOURCE,
    "query": {"query": "label_values(cleanplate_accepting, job)", "refId": "job"},
    "refresh": 2,
    "includeAll": True,
    "multi": True,
    "current": {"text": "All", "value": "$__all"},
}


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel) -> dict[str, Any]:
    heat = panel.kind == "heatmap"
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": {"calculate": False} if heat else {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _SOURCE,
                "expr": query,
                "legendFormat": legend,
                "format": "heatmap" if heat else "time_series",
            }
            for number, (legend, query) in enumerate(panel.queries.items())
        ],
    }


if __name__ == "__main__":
    sys.stdout.write(text())
