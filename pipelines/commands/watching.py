"""How things stand."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.endings import end
from pipelines.commands.options import AsJson

app = typer.Typer()


@app.command()
def status(
    subject: Annotated[
        str | None, typer.Argument(metavar="FOLDER|JOB.yaml|URL", help="of runs, a job, or an endpoint; else `runs`")
    ] = None,
    address: Annotated[str | None, typer.Option(help="a cluster's dashboard: what was submitted to it")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="again every two seconds, while anything runs")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how runs stand. Or what a cluster runs, or what an endpoint serves."""
    from pipelines import status as verb
    from pipelines import status_page

    if watch and not as_json:
        status_page.watch(lambda: verb.run(subject, address=address))
        return
    found = verb.run(subject, address=address)
    if not as_json:
        status_page.show(found)
    end(found, None, as_json)
