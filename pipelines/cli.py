"""The command `cleanplate`.

Exit codes: 0 done, 1 a fault of ours or of the machine, 2 a mistake the user can mend, 130 interrupted.
"""

from __future__ import annotations

import sys

import typer

from curation.errors import UserError, cause_of
from pipelines.commands import building, cluster, endpoint, manifests, rights, watching

app = typer.Typer(
    name="cleanplate",
    help="From a heap of images to a diffusion model you can defend.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for subject in (building, manifests, rights, endpoint, cluster, watching):
    app.add_typer(subject.app)


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        mistake = cause_of(error, UserError)
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)
