"""What a manifest says, to people and to authorities."""

from __future__ import annotations

from typing import Annotated

import typer

from curation.errors import UserError
from pipelines.commands.endings import end
from pipelines.commands.options import AsJson

app = typer.Typer()


@app.command()
def inspect(
    manifest: Annotated[str, typer.Argument(help="a manifest's folder, or a folder of manifests")],
    as_json: AsJson = False,
) -> None:
    """Count a manifest's rows by decision and reason."""
    from pipelines import inspect as verb

    found = verb.run(manifest)
    if not as_json:
        verb.show(found)
    end(found, None, as_json)


@app.command()
def report(
    manifest: Annotated[str | None, typer.Argument(help="a manifest's folder, or a folder of manifests")] = None,
    out: Annotated[str | None, typer.Option(help="file to write; report.html of a manifest when not given")] = None,
    show_unsafe: Annotated[bool, typer.Option("--show-unsafe", help="show pictures that reach a limit")] = False,
    attribution: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="a server's log: what it served, by creator and licence")
    ] = None,
    ledger: Annotated[
        str | None, typer.Option(help="takedown ledger, with --attribution; those that the server asked by default")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page about a manifest. Or add up what was served, for credit or payment."""
    from pipelines import credit
    from pipelines import report as verb

    if attribution is not None:
        found = credit.run(attribution, manifest=manifest, ledger=ledger, out=out)
        if not as_json:
            credit.show(found)
        end(found, credit, as_json)
        return
    if manifest is None:
        raise UserError("nothing to report on", field="report", remedy="give a MANIFEST, or --attribution FOLDER")
    end(verb.run(manifest, out or "report.html", show_unsafe=show_unsafe), verb, as_json)


@app.command()
def recheck(
    manifest: Annotated[str, typer.Argument(help="a manifest's folder, or a folder of manifests")],
    optout: Annotated[list[str], typer.Option(help="opt-out list; may be repeated; else those of its job")] = [],  # noqa: B006
    ledger: Annotated[
        str | None, typer.Option(help="its folder, or a manifest's; else $CLEANPLATE_LEDGER or its own")
    ] = None,
    out: Annotated[str | None, typer.Option(help="folder to publish in; beside the manifest when not given")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="ask lists and ledger only, not the web")] = False,
    workers: Annotated[int | None, typer.Option(help="that ask at a time; as many as curated it")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask again who has opted out, and publish what is left."""
    from pipelines import recheck as verb

    done = verb.run(manifest, optout=optout, ledger=ledger, out=out, offline=offline, workers=workers)
    end(done, verb, as_json)


@app.command()
def disclose(
    manifest: Annotated[str, typer.Argument(help="a manifest's folder, or a folder of manifests")],
    model: Annotated[str | None, typer.Option(help="models:/NAME@alias or a bundle's folder, for a model card")] = None,
    against: Annotated[str | None, typer.Option(metavar="OLDER", help="manifest to state the differences from")] = None,
    sme: Annotated[bool, typer.Option("--sme", help="name the domains that a small or medium enterprise must")] = False,
    out: Annotated[str | None, typer.Option(help="folder to write; one below runs/disclosure by default")] = None,
    provider: Annotated[str | None, typer.Option(metavar="FILE.yaml", help="what only the provider knows")] = None,
    as_json: AsJson = False,
) -> None:
    """Write disclosures. EU summary, AB 2013 statement, Croissant, datasheet and model card."""
    from pipelines import disclose as verb

    done = verb.run(manifest, model=model, against=against, sme=sme, out=out, provider=provider)
    end(done, verb, as_json)
