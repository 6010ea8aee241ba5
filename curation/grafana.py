"""Grafana dashboards made from tables of panels; the tables are beside the metrics that they show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["timeseries", "stat", "heatmap", "table"]

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
MINE = 'job=~"$job"'


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


def quantiles(metric: str, selector: str = MINE) -> dict[str, str]:
    """The median and the 95th percentile of a histogram."""
    rate = f"sum by (le) (rate({metric}_bucket{{{selector}}}[$__rate_interval]))"
    return {f"p{quantile}": f"histogram_quantile(0.{quantile}, {rate})" for quantile in (50, 95)}


def rate(metric: str, by: str, selector: str = MINE) -> str:
    return f"sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))"


def dashboard(of: str, known_by: str, rows: Mapping[str, Sequence[Panel]]) -> dict[str, Any]:
    """A dashboard as Grafana imports it.

    Args:
        of: what it shows: serving, curation, training.
        known_by: a metric that every job of these has.
        rows: panels by the title of their row.
    """
    panels: list[dict[str, Any]] = []
    top = 0
    for row, members in rows.items():
        panels.append({"id": len(panels) + 1, "type": "row", "title": row, "gridPos": _place(0, top, 24, 1)})
        top += 1
        for number, panel in enumerate(members):
            place = _place(8 * (number % 3), top + 8 * (number // 3), 8, 8)
            panels.append({"id": len(panels) + 1, "gridPos": place, **_panel(panel)})
        top += 8 * -(-len(members) // 3)
    return {
        "uid": f"cleanplate-{of}",
        "title": f"cleanplate: {of}",
        "tags": ["cleanplate"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [_DATASOURCE, _job(known_by)]},
        "panels": panels,
    }


def text(dashboard: Mapping[str, Any]) -> str:
    """The file's content."""
    return json.dumps(dashboard, indent=1) + "\n"


_DATASOURCE = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _job(known_by: str) -> dict[str, Any]:
    return {
        "name": "job",
        "label": "Job",
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": f"label_values({known_by}, job)", "refId": "job"},
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
