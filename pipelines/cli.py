"""The command `cleanplate`. Each verb's work is in the module of its name; here are only names, help and exit codes.

Exit codes: 0 done, 1 a fault of ours or of the machine, 2 a mistake the user can mend, 130 interrupted.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from typer.core import TyperCommand

from curation.errors import UserError, cause_of

app = typer.Typer(
    name="cleanplate",
    help="From a heap of images to a diffusion model you can defend.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JobFile = Annotated[str, typer.Argument(metavar="JOB.yaml", help="job file, or - for standard input")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="override a field; may be repeated")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the resolved job and its resources, run nothing")]
AsJson = Annotated[bool, typer.Option("--json", help="end standard output with one JSON object")]


@app.command()
def curate(job: JobFile, sets: Overrides = [], dry_run: DryRun = False, as_json: AsJson = False) -> None:  # noqa: B006
    """Turn images into a manifest, one row for every input."""
    _run_job("curate", job, sets, dry_run, as_json)


@app.command()
def autoencoder(job: JobFile, sets: Overrides = [], dry_run: DryRun = False, as_json: AsJson = False) -> None:  # noqa: B006
    """Train an autoencoder on a manifest, to train in its latents; rerun to resume."""
    _run_job("autoencoder", job, sets, dry_run, as_json)


@app.command()
def train(job: JobFile, sets: Overrides = [], dry_run: DryRun = False, as_json: AsJson = False) -> None:  # noqa: B006
    """Train a diffusion model on a manifest; rerun to resume."""
    _run_job("train", job, sets, dry_run, as_json)


@app.command()
def distill(job: JobFile, sets: Overrides = [], dry_run: DryRun = False, as_json: AsJson = False) -> None:  # noqa: B006
    """Make a student of a model, which draws in few steps; rerun to resume."""
    _run_job("distill", job, sets, dry_run, as_json)


@app.command()
def average(
    run_folder: Annotated[str, typer.Argument(metavar="RUN_FOLDER", help="of a finished run with ema.profiles")],
    sigma_rel: Annotated[float, typer.Option(min=0.01, max=0.25, help="length of the average, in parts of the run")],
    into: Annotated[str, typer.Option(metavar="FOLDER", help="a new folder; the bundle is FOLDER/bundle")],
    as_json: AsJson = False,
) -> None:
    """Make a trained bundle again, its weights averaged over another length."""
    from pipelines import average as verb

    _end(verb.run(run_folder, sigma_rel=sigma_rel, into=into), verb, as_json)


@app.command()
def register(job: JobFile, sets: Overrides = [], dry_run: DryRun = False, as_json: AsJson = False) -> None:  # noqa: B006
    """Make a trained bundle a model version in MLflow."""
    _run_job("register", job, sets, dry_run, as_json)


@app.command()
def index(
    model: Annotated[
        str, typer.Argument(metavar="MODEL|JOB.yaml", help="models:/NAME@alias, NAME, a bundle's folder, or a job file")
    ],
    out: Annotated[str | None, typer.Option(help="folder; `neighbours` in the bundle's when not given")] = None,
    sets: Overrides = [],  # noqa: B006
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make the index of a model's training pictures: for attribution, and against near copies."""
    from pipelines import index as verb

    job = verb.job_of(model, sets, out=out)
    if dry_run:
        _print_plan(job, verb.plan(job), as_json)
        return
    _end(verb.run(job), verb, as_json)


@app.command()
def evaluate(job: JobFile, sets: Overrides = [], dry_run: DryRun = False, as_json: AsJson = False) -> None:  # noqa: B006
    """Measure a model version, and whether it redraws its training pictures."""
    _run_job("evaluate", job, sets, dry_run, as_json)


@app.command()
def promote(
    name: Annotated[str, typer.Argument(metavar="NAME", help="the registered model")],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="its version, a number")],
    job: Annotated[str, typer.Option(metavar="JOB.yaml", help="job file with the gates")],
    alias: Annotated[str, typer.Option(help="what is to point at the version")] = "champion",
    sets: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Point an alias at a model version that passes the gates; exit code 1 if it does not."""
    from pipelines import config
    from pipelines import promote as verb

    done = verb.run(name, version, config.load_job(job, sets, kind="promote"), alias=alias)
    if not as_json:
        verb.show(done)
    _end(done, verb, as_json)
    raise typer.Exit(0 if done.moved else 1)


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL|JOB.yaml", help="models:/NAME@alias, NAME, a bundle's folder, or a job file")
    ],
    int8: Annotated[
        bool, typer.Option("--int8", help="also quantised, calibrated with the model's own sampler")
    ] = False,
    tensorrt: Annotated[bool, typer.Option("--tensorrt", help="also an engine for this machine's GPU")] = False,
    out: Annotated[str | None, typer.Option(help="folder; `onnx` in the bundle's when not given")] = None,
    force: Annotated[bool, typer.Option("--force", help="keep what is over its limits, and say so")] = False,
    sets: Overrides = [],  # noqa: B006
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Write a model's denoiser as ONNX, compare it with torch, attach it; exit code 1 if a format is refused."""
    from pipelines import export as verb

    job = verb.job_of(model, sets, int8=int8, tensorrt=tensorrt, out=out, force=force)
    if dry_run:
        _print_plan(job, verb.plan(job), as_json)
        return
    done = verb.run(job)
    _end(done, verb, as_json)
    raise typer.Exit(1 if done.refused else 0)


@app.command()
def serve(
    job: JobFile,
    sets: Overrides = [],  # noqa: B006
    dry_run: DryRun = False,
    as_json: AsJson = False,
    check: Annotated[bool, typer.Option("--check", help="check a file for Ray Serve's own tools, run nothing")] = False,
) -> None:
    """Serve a registered model over HTTP until interrupted."""
    from pipelines import config
    from pipelines import serve as verb

    if check:
        _end(verb.checked(job), verb, as_json)
        return
    resolved = config.load_job(job, sets, kind="serve")
    if dry_run:
        _print_plan(resolved, verb.plan(resolved), as_json)
    else:
        raise typer.Exit(verb.run(resolved, on_ready=lambda served: _end(served, verb, as_json)))


@app.command()
def pipeline(job: JobFile, sets: Overrides = [], dry_run: DryRun = False, as_json: AsJson = False) -> None:  # noqa: B006
    """Run several jobs, each from what the ones before it made; rerun to go on at the step that failed."""
    from pipelines import config
    from pipelines import pipeline as verb

    resolved = config.load_job(job, sets, kind="pipeline")
    if dry_run:
        _print_plan(resolved, verb.plan(resolved), as_json)
        return
    done = verb.run(resolved)
    _end(done, verb, as_json)
    raise typer.Exit(done.exit_code)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="what to draw")],
    out: Annotated[str, typer.Option(help="file to write: .png, .jpg or .webp")] = "generated.png",
    seed: Annotated[int | None, typer.Option(help="of the first picture; the next ones count on")] = None,
    n: Annotated[int, typer.Option(help="how many pictures")] = 1,
    negative_prompt: Annotated[str | None, typer.Option(help="what to steer away from")] = None,
    steps: Annotated[int | None, typer.Option(help="solver steps; the model's own when not given")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="classifier-free guidance")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddim, pndm, dpmsolver++ or ddpm")] = None,
    server: Annotated[str | None, typer.Option(help="endpoint; one on this machine is found by itself")] = None,
    model: Annotated[str | None, typer.Option(help="models:/NAME@alias, NAME or a bundle, without a server")] = None,
    job: Annotated[
        str | None, typer.Option(help="serve job, to draw as it says without its server, guards too")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw pictures, by a running endpoint or straight from the registry."""
    from pipelines import config
    from pipelines import generate as verb

    fields = {
        "n": n,
        "seed": seed,
        "negative_prompt": negative_prompt,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "sampler": sampler,
    }
    told = None if job is None else config.load_job(job, kind="serve")
    _end(verb.run(prompt, out, fields, server=server, model=model, job=told), verb, as_json)


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
    _end(found, None, as_json)


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
    """Write one HTML page about a manifest; or add up what was served, for credit or payment."""
    from pipelines import credit
    from pipelines import report as verb

    if attribution is not None:
        found = credit.run(attribution, manifest=manifest, ledger=ledger, out=out)
        if not as_json:
            credit.show(found)
        _end(found, credit, as_json)
        return
    if manifest is None:
        raise UserError("nothing to report on", field="report", remedy="give a MANIFEST, or --attribution FOLDER")
    _end(verb.run(manifest, out or "report.html", show_unsafe=show_unsafe), verb, as_json)


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
    """Ask again who has opted out, and publish the manifest that is left."""
    from pipelines import recheck as verb

    done = verb.run(manifest, optout=optout, ledger=ledger, out=out, offline=offline, workers=workers)
    _end(done, verb, as_json)


@app.command()
def verify(
    file: Annotated[str, typer.Argument(metavar="FILE", help="a picture, or a moving one")],
    credentials: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="certificate and keys; a server's own when not given")
    ] = None,
    job: Annotated[str | None, typer.Option(metavar="JOB.yaml", help="serve job whose marks are meant")] = None,
    anchors: Annotated[str | None, typer.Option(metavar="PEM", help="roots to trust, a server's ca.pem")] = None,
    as_json: AsJson = False,
) -> None:
    """Read a picture's credentials and watermark; exit code 0 if a server of ours signed it and it is unchanged."""
    from pipelines import verify as verb

    found = verb.run(file, credentials=credentials, job=job, anchors=anchors)
    _end(found, verb, as_json)
    raise typer.Exit(0 if found.verdict == "ours" else 1)


credentials_app = typer.Typer(
    help="What a server signs its pictures with.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(credentials_app, name="credentials")


@credentials_app.command("init")
def credentials_init(
    folder: Annotated[str | None, typer.Argument(metavar="FOLDER", help="a new one")] = None,
    organisation: Annotated[str | None, typer.Option(help="who signs, by name")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a certificate and keys of a server's own making, and say what they are worth."""
    from pipelines import credentials as verb

    _end(verb.init(folder, organisation=organisation), verb, as_json)


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
    _end(found, None, as_json)


takedown_app = typer.Typer(
    help="Requests that pictures be no longer used, and what becomes of them.",
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
    """Record a request; every reader of the ledger heeds it from now on."""
    from pipelines import takedown as verb

    given: Any = {"sha256": sha256, "uri": uri, "domain": domain, "creator": creator}
    chosen = verb.selectors(given, picture, row)
    done = verb.add(ledger, by=by, ground=ground, reference=reference, requested_at=requested_at, chosen=chosen)
    _end(done, verb, as_json)


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
    _end(found, None, as_json)


@takedown_app.command("show")
def takedown_show(id_: EntryId, ledger: LedgerPlace = None, as_json: AsJson = False) -> None:
    """Show one request, and what was done about it."""
    from pipelines import takedown as verb

    found = verb.entry(ledger, id_)
    if not as_json:
        verb.show_entry(found)
    _end(found, verb, as_json)


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

    _end(verb.withdraw(ledger, id_, by=by, why=why), verb, as_json)


@takedown_app.command("pack")
def takedown_pack(ledger: LedgerPlace = None, as_json: AsJson = False) -> None:
    """Fold the ledger's many files into one."""
    from pipelines import takedown as verb

    _end(verb.pack(ledger), verb, as_json)


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
    """Write the EU summary, AB 2013 statement, Croissant, datasheet and model card."""
    from pipelines import disclose as verb

    done = verb.run(manifest, model=model, against=against, sme=sme, out=out, provider=provider)
    _end(done, verb, as_json)


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
    """Prove that a picture was in a model's training set and in those of its teachers, or was not."""
    from pipelines import prove as verb

    if (sha256 is None) == (verify is None) or (verify is None) != (digest is None):
        raise UserError("nothing to prove", field="prove", remedy="give a SHA256, or --verify PROOF and --digest HEX")
    if verify is not None and digest is not None:
        checked = verb.check(verify, digest)
        _end(checked, verb, as_json)
        raise typer.Exit(0 if checked.holds else 1)
    _end(verb.run(str(sha256), model=model, version=version, out=out), verb, as_json)


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
    """Tell where pictures stand, what was trained on them, and what serves it; or what a version was trained on."""
    from pipelines import trace as verb

    found = verb.run(subject, manifests=manifests, ledger=ledger, tracking_uri=tracking_uri, neighbours=neighbours)
    if not as_json:
        verb.show(found)
    _end(found, verb, as_json)


@takedown_app.command("plan")
def plan_takedown(
    id_: EntryId,
    out: Annotated[str | None, typer.Option(help="folder; runs/takedown-plans/ENTRY when not given")] = None,
    ledger: LedgerPlace = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow; $MLFLOW_TRACKING_URI when not given")] = None,
    manifests: Annotated[list[str], typer.Option(help="more folders of manifests; may be repeated")] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Write what is to be done about a request: manifests, versions, jobs and aliases; and tag the versions."""
    from pipelines import takedown_plan as verb

    _end(verb.run(id_, out=out, ledger=ledger, tracking_uri=tracking_uri, manifests=manifests), verb, as_json)


@takedown_app.command("status")
def status_of_takedowns(
    id_: Annotated[str | None, typer.Argument(metavar="ENTRY", help="an entry's id, or the beginning of it")] = None,
    ledger: LedgerPlace = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow; $MLFLOW_TRACKING_URI when not given")] = None,
    manifests: Annotated[list[str], typer.Option(help="more folders of manifests; may be repeated")] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Show what of a request, or of all that are in force, is done."""
    from pipelines import takedown_status as verb

    found = verb.run(id_, ledger=ledger, tracking_uri=tracking_uri, manifests=manifests)
    if not as_json:
        verb.show(found)
    _end(found, verb, as_json)


keys_app = typer.Typer(help="Who may ask an endpoint, and how much.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(keys_app, name="keys")

KeyFile = Annotated[str, typer.Option("--file", help="the keys' file, as in the serve job's keys.file")]


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="whose key it is")],
    file: KeyFile,
    scope: Annotated[
        list[str], typer.Option(help="generate, read, verify or admin; may be repeated; all but admin when not given")
    ] = [],  # noqa: B006
    row_steps_per_minute: Annotated[int | None, typer.Option(min=1, help="at most, also at once")] = None,
    row_steps_per_day: Annotated[int | None, typer.Option(min=1, help="at most, by UTC")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it once; a picture of 20 steps with guidance costs 40 row-steps."""
    from pipelines import keys as verb

    limits = {"row_steps_per_minute": row_steps_per_minute, "row_steps_per_day": row_steps_per_day}
    _end(verb.create(file, name, scope or ["generate", "read", "verify"], **limits), verb, as_json)


@keys_app.command("list")
def keys_list(file: KeyFile, as_json: AsJson = False) -> None:
    """Show the keys of a file; their secrets are not in it."""
    from pipelines import keys as verb

    _end(verb.listed(file), verb, as_json)


@keys_app.command("revoke")
def keys_revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="its id or its name")],
    file: KeyFile,
    as_json: AsJson = False,
) -> None:
    """End a key; endpoints heed it within seconds."""
    from pipelines import keys as verb

    _end(verb.revoke(file, key), verb, as_json)


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

        _print_plan(config.load_job(job, sets), {"address": address, "working_dir": str(verb.checkout())}, as_json)
        return
    done = verb.run(job, sets, address=address, follow=follow)
    print(f"{done.job_id}: {done.status.lower()}", file=sys.stderr)
    _end(done, None, as_json)
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
    _end(found, None, as_json)


@jobs_app.command("status")
def jobs_status(id_: JobId, address: Address, as_json: AsJson = False) -> None:
    """Show how one submission stands."""
    from pipelines import submit as verb

    found = verb.status(address, id_)
    if not as_json:
        verb.show([found])
    _end(found, None, as_json)


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
    _end(done, None, as_json)


@app.command()
def demo(
    out: Annotated[
        str | None, typer.Option(help="folder for everything the demo makes; runs/demo, or runs/moving with --moving")
    ] = None,
    moving: Annotated[bool, typer.Option("--moving", help="films instead of pictures, to a moving.webp")] = False,
    sets: Annotated[
        list[str], typer.Option("--set", metavar="JOB.A.B=C", help="override a field of a demo job: train.images=2000")
    ] = [],  # noqa: B006
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole road on real drawings, to a grid.png."""
    verb: Any = importlib.import_module("pipelines.demo_moving" if moving else "pipelines.demo")
    out = out or ("runs/moving" if moving else "runs/demo")
    if dry_run:
        for resolved in verb.jobs(out, sets):
            _print_plan(resolved, {"cpus": verb.CPUS, "gpus": 0}, as_json)
        return
    _end(verb.run(out, sets), verb, as_json)


def _run_job(kind: str, path: str, sets: list[str], dry_run: bool, as_json: bool) -> None:
    from pipelines import config

    job = config.load_job(path, sets, kind=kind)
    verb: Any = importlib.import_module(f"pipelines.{kind}")
    if dry_run:
        _print_plan(job, verb.plan(job), as_json)
    else:
        _end(verb.run(job), verb, as_json)


def _print_plan(job: BaseModel, resources: dict[str, Any], as_json: bool) -> None:
    """The resolved job as YAML, a line of dashes, and what it would ask for."""
    from pipelines import config

    print(config.to_yaml(job), end="")
    print("---\n" + json.dumps(resources, indent=None if as_json else 2))


def _end(result: BaseModel, verb: Any, as_json: bool) -> None:
    """The last words: a summary for a person, or one line of JSON."""
    if as_json:
        print(result.model_dump_json(), flush=True)
    elif verb is not None:
        print("\n".join(verb.summary(result)), flush=True)


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
