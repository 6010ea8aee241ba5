"""The Grafana dashboard of curations, made from a table of panels: `python -m curation.dashboard` prints it.

`infra/grafana/cleanplate-curation.json` is what it prints; the tests hold the two together, and every query to the
metrics that there are (`curation.metrics`).
"""

from __future__ import annotations

import sys

from curation import grafana
from curation.grafana import MINE, Panel, quantiles, rate

_NAME = "cleanplate_curation"

ROWS: dict[str, list[Panel]] = {
    "How far": [
        Panel(
            "Share of rows done, by stage",
            {
                "{{stage}}": f"sum by (stage) ({_NAME}_stage_done_rows{{{MINE}}})"
                f" / sum by (stage) ({_NAME}_stage_rows{{{MINE}}})"
            },
            unit="percentunit",
        ),
        Panel("Rows a second, by stage", {"{{stage}}": f"sum by (stage) ({_NAME}_rows_per_second{{{MINE}}})"}),
        Panel(
            "Seconds that are left, by stage",
            {
                "{{stage}}": f"(sum by (stage) ({_NAME}_stage_rows{{{MINE}}})"
                f" - sum by (stage) ({_NAME}_stage_done_rows{{{MINE}}}))"
                f" / (sum by (stage) ({_NAME}_rows_per_second{{{MINE}}}) > 0)"
            },
            unit="s",
        ),
    ],
    "Units": [
        Panel("Units a second, by stage", {"{{stage}}": rate(f"{_NAME}_units_total", "stage")}),
        Panel("A worker's time for a unit", quantiles(f"{_NAME}_unit_seconds"), unit="s"),
        Panel(
            "Done again, and to be asked again by the next run",
            {
                "done again": f"sum({_NAME}_units_retried_total{{{MINE}}})",
                "to be asked again": f"sum({_NAME}_units_held_total{{{MINE}}})",
                "nodes lost": f"sum({_NAME}_nodes_lost_total{{{MINE}}})",
            },
        ),
    ],
    "Rows": [
        Panel(
            "Rows by decision and reason",
            {"{{decision}} {{reason}}": f"sum by (decision, reason) ({_NAME}_rows_total{{{MINE}}})"},
        ),
        Panel(
            "Rows that could not be measured, a second", {"{{reason}}": rate(f"{_NAME}_rows_failed_total", "reason")}
        ),
        Panel(
            "Bytes fetched a second",
            {"fetched": f"sum(rate({_NAME}_fetched_bytes_total{{{MINE}}}[$__rate_interval]))"},
            unit="Bps",
        ),
    ],
    "Cluster": [
        Panel("Workers that jobs ask for", {"workers": f"sum({_NAME}_workers{{{MINE}}})"}),
        Panel("Nodes", {"{{kind}}": f"sum by (kind) ({_NAME}_nodes{{{MINE}}})"}),
    ],
}


def text() -> str:
    """The file's content."""
    return grafana.text(grafana.dashboard("curation", f"{_NAME}_workers", ROWS))


if __name__ == "__main__":
    sys.stdout.write(text())
