"""Jobs on a Ray cluster elsewhere."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pipelines.commands.endings import end, print_plan
from pipelines.commands.options import AsJson, DryRun, JobFile, Overrides

app = typer.Typer()


Address = Annotated[
    str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="the cluster's dashboard: http://HEAD:8265")
]


@app.command()
def submit(
    job: JobFile,
    address: Address,
    sets: Overrides = [],  # noqa: B006
    follow: Annotated[bool, typer.Option(help="print the job's log until it ends")] = True,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run a job on a Ray cluster elsewhere, with its exit code."""
    from pipelines import submit as verb

    if dry_run:
        from pipelines import config

        print_plan(config.load_job(job, sets), {"address": address, "working_dir": str(verb.checkout())}, as_json)
        return
    done = verb.run(job, sets, address=address, follow=follow)
    print(f"{done.job_id}: {done.status.lower()}", file=sys.stderr)
    end(done, None, as_json)
    raise typer.Exit(done.exit_code)


jobs_app = typer.Typer(help="What was submitted to a Ray cluster.", no_args_is_help=True, rich_markup_mode=None)

app.add_typer(jobs_app, name="jobs")


JobId = Annotated[str, typer.Argument(metavar="ID", help="as `submit` and `jobs list` print it")]


@jobs_app.command("list")
def jobs_list(address: Address, as_json: AsJson = False) -> None:
    """Show what was submitted, the newest first."""
    from pipelines import submit as verb

    found = verb.submissions(address)
    if not as_json:
        verb.show(found.jobs)
    end(found, None, as_json)


@jobs_app.command("status")
def jobs_status(id_: JobId, address: Address, as_json: AsJson = False) -> None:
    """Show how one submission stands."""
    from pipelines import submit as verb

    found = verb.status(address, id_)
    if not as_json:
        verb.show([found])
    end(found, None, as_json)


@jobs_app.command("logs")
def jobs_logs(
    id_: JobId,
    address: Address,
    follow: Annotated[bool, typer.Option(help="until it ends, with its exit code")] = False,
) -> None:
    """Print a submission's log."""
    from pipelines import submit as verb

    raise typer.Exit(verb.logs(address, id_, follow=follow).exit_code)


@jobs_app.command("stop")
def jobs_stop(id_: JobId, address: Address, as_json: AsJson = False) -> None:
    """End a submission; what trains saves its state first, and the same submission resumes it."""
    from pipelines import submit as verb

    done = verb.stop(address, id_)
    print(f"{done.job_id}: {done.status.lower()}", file=sys.stderr)
    end(done, None, as_json)
