"""Options that many commands share."""

from __future__ import annotations

from typing import Annotated

import typer

JobFile = Annotated[str, typer.Argument(metavar="JOB.yaml", help="job file, or - for standard input")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="override a field; may be repeated")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the resolved job and its resources, run nothing")]
AsJson = Annotated[bool, typer.Option("--json", help="end standard output with one JSON object")]
