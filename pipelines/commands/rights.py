"""Who has opted out, what that reaches, and how it is shown."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from curation.errors import UserError
from pipelines.commands.endings import end
from pipelines.commands.options import AsJson

app = typer.Typer()


@app.command()
def trace(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="SUBJECT",
            help="a sha256, a uri, domain:…, creator:…, a picture's file, a takedown entry, or models:/NAME/3",
        ),
    ],
    manifests: Annotated[
        list[str], typer.Option(help="folder of manifests; may be repeated; else those that anything was trained on")
    ] = [],  # noqa: B006
    ledger: Annotated[str | None, typer.Option(help="takedown ledger; else those that trainings asked")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow; $MLFLOW_TRACKING_URI when not given")] = None,
    neighbours: Annotated[int, typer.Option(help="nearest other pictures by CLIP that are told of a file")] = 0,
    as_json: AsJson = False,
) -> None:
    """Tell what was trained on a picture, and what serves it. Or what a version was trained on."""
    from pipelines import trace as verb

    found = verb.run(subject, manifests=manifests, ledger=ledger, tracking_uri=tracking_uri, neighbours=neighbours)
    if not as_json:
        verb.show(found)
    end(found, verb, as_json)


@app.command()
def prove(
    sha256: Annotated[str | None, typer.Argument(metavar="SHA256", help="of a picture's file, or the file")] = None,
    model: Annotated[str | None, typer.Option(help="models:/NAME/3 or NAME; the only one when not given")] = None,
    version: Annotated[str | None, typer.Option(metavar="N", help="which version of it")] = None,
    out: Annotated[str, typer.Option(help="file to write")] = "proof.json",
    verify: Annotated[str | None, typer.Option(metavar="PROOF", help="check a proof instead")] = None,
    digest: Annotated[str | None, typer.Option(metavar="HEX", help="training-set digest to check it against")] = None,
    as_json: AsJson = False,
) -> None:
    """Prove that a picture was trained on, or was not. In a model's training set and in those of its teachers."""
    from pipelines import prove as verb

    if (sha256 is None) == (verify is None) or (verify is None) != (digest is None):
        raise UserError("nothing to prove", field="prove", remedy="give a SHA256, or --verify PROOF and --digest HEX")
    if verify is not None and digest is not None:
        checked = verb.check(verify, digest)
        end(checked, verb, as_json)
        raise typer.Exit(0 if checked.holds else 1)
    end(verb.run(str(sha256), model=model, version=version, out=out), verb, as_json)


rights_app = typer.Typer(help="What is said about the use of pictures.", no_args_is_help=True, rich_markup_mode=None)

app.add_typer(rights_app, name="rights")


@rights_app.command()
def check(
    subject: Annotated[str, typer.Argument(metavar="URL|FILE", help="a picture, or a page")],
    job: Annotated[str | None, typer.Option(help="curate job whose signals, lists and licences are used")] = None,
    ledger: Annotated[str | None, typer.Option(help="takedown ledger, or a manifest that names one")] = None,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="admit private and loopback addresses")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print every observation about a picture, and the verdict."""
    from pipelines import rights as verb

    found = verb.run(subject, job=job, ledger=ledger, allow_private=allow_private)
    if not as_json:
        verb.show(found)
    end(found, None, as_json)


takedown_app = typer.Typer(
    help="Requests to use pictures no longer, and what is done.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

app.add_typer(takedown_app, name="takedown")


LedgerPlace = Annotated[
    str | None, typer.Option("--ledger", help="its folder, or a manifest's; $CLEANPLATE_LEDGER when not given")
]


EntryId = Annotated[str, typer.Argument(metavar="ENTRY", help="an entry's id, or the beginning of it")]


class _InPairs(TyperCommand):
    """A command whose `--row` takes two words each time, which typer cannot say of an option that may be repeated."""

    def __init__(self, *args: Any, params: list[Any], **options: Any) -> None:
        for parameter in params:
            if parameter.name == "row":
                parameter.nargs = 2
        super().__init__(*args, params=params, **options)


@takedown_app.command("add", cls=_InPairs)
def takedown_add(
    by: Annotated[str, typer.Option(help="who asks: 'Jane Doe <jane@example.com>'")],
    ground: Annotated[str, typer.Option(help="on what ground")],
    reference: Annotated[str | None, typer.Option(help="their ticket; adding it again is the same entry")] = None,
    requested_at: Annotated[str | None, typer.Option(help="when they asked, ISO 8601; now when not given")] = None,
    sha256: Annotated[list[str], typer.Option(help="of a picture's file")] = [],  # noqa: B006
    uri: Annotated[list[str], typer.Option(help="where a picture lies")] = [],  # noqa: B006
    domain: Annotated[list[str], typer.Option(help="with its subdomains")] = [],  # noqa: B006
    creator: Annotated[list[str], typer.Option(help="as pictures name them")] = [],  # noqa: B006
    picture: Annotated[list[str], typer.Option(help="a file: it and what looks like it; it is not stored")] = [],  # noqa: B006
    row: Annotated[
        list[Any], typer.Option(parser=tuple, metavar="MANIFEST ROW", help="a manifest's row, by its id or uri")
    ] = [],  # noqa: B006
    ledger: LedgerPlace = None,
    as_json: AsJson = False,
) -> None:
    """Record a request. Every reader of the ledger heeds it from now on."""
    from pipelines import takedown as verb

    given: Any = {"sha256": sha256, "uri": uri, "domain": domain, "creator": creator}
    chosen = verb.selectors(given, picture, row)
    done = verb.add(ledger, by=by, ground=ground, reference=reference, requested_at=requested_at, chosen=chosen)
    end(done, verb, as_json)


@takedown_app.command("list")
def takedown_list(
    all_: Annotated[bool, typer.Option("--all", help="also those that were withdrawn")] = False,
    ledger: LedgerPlace = None,
    as_json: AsJson = False,
) -> None:
    """Show the requests in force."""
    from pipelines import takedown as verb

    found = verb.entries(ledger, all_=all_)
    if not as_json:
        verb.show_list(found)
    end(found, None, as_json)


@takedown_app.command("show")
def takedown_show(id_: EntryId, ledger: LedgerPlace = None, as_json: AsJson = False) -> None:
    """Show one request, and what was done about it."""
    from pipelines import takedown as verb

    found = verb.entry(ledger, id_)
    if not as_json:
        verb.show_entry(found)
    end(found, verb, as_json)


@takedown_app.command("withdraw")
def takedown_withdraw(
    id_: EntryId,
    by: Annotated[str, typer.Option(help="who withdraws it")],
    why: Annotated[str, typer.Option(help="for what reason")],
    ledger: LedgerPlace = None,
    as_json: AsJson = False,
) -> None:
    """Take a request back; it stays on record."""
    from pipelines import takedown as verb

    end(verb.withdraw(ledger, id_, by=by, why=why), verb, as_json)


@takedown_app.command("pack")
def takedown_pack(ledger: LedgerPlace = None, as_json: AsJson = False) -> None:
    """Fold the ledger's many files into one."""
    from pipelines import takedown as verb

    end(verb.pack(ledger), verb, as_json)


@takedown_app.command("plan")
def plan_takedown(
    id_: EntryId,
    out: Annotated[str | None, typer.Option(help="folder; runs/takedown-plans/ENTRY when not given")] = None,
    ledger: LedgerPlace = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow; $MLFLOW_TRACKING_URI when not given")] = None,
    manifests: Annotated[list[str], typer.Option(help="more folders of manifests; may be repeated")] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Write what is to be done about a request. Manifests, versions, jobs and aliases; and tag the versions."""
    from pipelines import takedown_plan as verb

    end(verb.run(id_, out=out, ledger=ledger, tracking_uri=tracking_uri, manifests=manifests), verb, as_json)


@takedown_app.command("status")
def status_of_takedowns(
    id_: Annotated[str | None, typer.Argument(metavar="ENTRY", help="an entry's id, or the beginning of it")] = None,
    ledger: LedgerPlace = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow; $MLFLOW_TRACKING_URI when not given")] = None,
    manifests: Annotated[list[str], typer.Option(help="more folders of manifests; may be repeated")] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Show what is done of a request, or of all in force."""
    from pipelines import takedown_status as verb

    found = verb.run(id_, ledger=ledger, tracking_uri=tracking_uri, manifests=manifests)
    if not as_json:
        verb.show(found)
    end(found, verb, as_json)
