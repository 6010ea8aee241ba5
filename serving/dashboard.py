"""The Grafana dashboard of a server, made from a table of panels: `python -m serving.dashboard` prints it.

`infra/grafana/cleanplate-serving.json` is what it prints; the tests hold the two together, and every query to the
metrics that there are (`serving.metrics`).
"""

from __future__ import annotations

import sys

from curation import grafana
from curation.grafana import MINE, Panel, quantiles, rate

_DRAWING = 'job=~"$job",route="/v1/images/generations"'

ROWS: dict[str, list[Panel]] = {
    "Pace": [
        Panel(
            "Row-steps a second",
            {"{{version}}": rate("cleanplate_row_steps_total", "version")},
            text="A picture one step on is one row-step, or two with guidance.",
        ),
        Panel(
            "Queue, in row-steps and in seconds",
            {
                "row-steps, {{replica}}": f"sum by (replica) (cleanplate_queue_row_steps{{{MINE}}})",
                "seconds at the recent pace": f"sum(cleanplate_queue_row_steps{{{MINE}}})"
                f" / sum(cleanplate_pace_row_steps_per_second{{{MINE}}} > 0)",
            },
        ),
        Panel(
            "Pictures a second",
            {"{{finish_reason}}": rate("cleanplate_pictures_total", "finish_reason")},
        ),
    ],
    "Batches": [
        Panel(
            "How full passes are",
            {"{{le}}": rate("cleanplate_pass_fill_ratio_bucket", "le")},
            unit="percentunit",
            kind="heatmap",
            text="Rows of a pass over the most it may have. Always full: it wants more replicas.",
        ),
        Panel(
            "Rows of a pass, on average",
            {
                "{{version}}": f"{rate('cleanplate_row_steps_total', 'version')}"
                f" / {rate('cleanplate_passes_total', 'version')}"
            },
        ),
        Panel(
            "Share of time in passes",
            {"{{replica}}": rate("cleanplate_busy_seconds_total", "replica")},
            unit="percentunit",
        ),
    ],
    "What clients see": [
        Panel("Answers to requests for pictures", quantiles("cleanplate_request_seconds", _DRAWING), unit="s"),
        Panel("Until the first step", quantiles("cleanplate_time_to_first_step_seconds", MINE), unit="s"),
        Panel("Until the first preview", quantiles("cleanplate_time_to_first_preview_seconds", MINE), unit="s"),
        Panel(
            "Requests a second by outcome",
            {"{{outcome}}": rate("cleanplate_request_seconds_count", "outcome", f'{MINE},route=~"/v1/images/.*"')},
        ),
        Panel(
            "Refusals a second by code",
            {"{{status}} {{code}}": rate("cleanplate_refusals_total", "status, code")},
        ),
        Panel(
            "Where requests spend their time",
            {"{{stage}}": rate("cleanplate_stage_seconds_sum", "stage")},
            unit="s",
        ),
    ],
    "Safety and accountability": [
        Panel(
            "Findings in pictures a second",
            {
                "{{stage}} {{category}}: {{action}}": rate(
                    "cleanplate_pictures_moderated_total", "stage, category, action"
                )
            },
        ),
        Panel("Prompts refused a second", {"{{category}}": rate("cleanplate_prompts_blocked_total", "category")}),
        Panel(
            "Attributions, drawn again, verified, reproduced, a second",
            {
                "attributed": f"sum(rate(cleanplate_pictures_attributed_total{{{MINE}}}[$__rate_interval]))",
                "drawn again": f"sum(rate(cleanplate_pictures_redrawn_total{{{MINE}}}[$__rate_interval]))",
                "{{route}}": rate(
                    "cleanplate_request_seconds_count", "route", f'{MINE},route=~"/v1/images/(verify|.*/reproduce)"'
                ),
            },
        ),
    ],
    "Versions": [
        Panel("Pictures a second by version", {"{{version}}": rate("cleanplate_pictures_total", "version")}),
        Panel(
            "Versions that replicas hold",
            {"{{version}} {{state}}": f"count by (version, state) (cleanplate_version{{{MINE}}})"},
        ),
        Panel(
            "Replicas whose version answers, by alias",
            {"{{alias}} {{version}}": f"count by (alias, version) (cleanplate_version_answers{{{MINE}}})"},
        ),
    ],
    "Health": [
        Panel(
            "Longest silence of an engine with work",
            {"{{replica}}": f"max by (replica) (cleanplate_engine_silent_seconds{{{MINE}}})"},
            unit="s",
        ),
        Panel(
            "Under way",
            {
                "requests": f"sum(cleanplate_requests_in_flight{{{MINE}}})",
                "pictures": f"sum(cleanplate_pictures_under_way{{{MINE}}})",
            },
        ),
        Panel(
            "Broken off, draining, closed, missing",
            {
                "requests broken off in a sampler, a second": "sum(rate("
                f"cleanplate_generations_failed_total{{{MINE}}}[$__rate_interval]))",
                "engines draining": f"sum(cleanplate_engine_draining{{{MINE}}})",
                "gateways closed": f"count(cleanplate_accepting{{{MINE}}} == 0)",
                "samplers missing in the last scrape": f"count(cleanplate_scrape_complete{{{MINE}}} == 0)",
            },
        ),
    ],
}


def text() -> str:
    """The file's content."""
    return grafana.text(grafana.dashboard("serving", "cleanplate_accepting", ROWS))


if __name__ == "__main__":
    sys.stdout.write(text())
