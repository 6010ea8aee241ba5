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

from curation.errors import UserError

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
def train(job: JobFile, sets: Overrides = [], dry_run: DryRun = False, as_json: AsJson = False) -> None:  # noqa: B006
    """Train a diffusion model on a manifest; rerun to resume."""
    _run_job("train", job, sets, dry_run, as_json)


@app.command()
def register(job: JobFile, sets: Overrides = [], dry_run: DryRun = False, as_json: AsJson = False) -> None:  # noqa: B006
    """Make a trained bundle a model version in MLflow."""
    _run_job("register", job, sets, dry_run, as_json)


@app.command()
def serve(job: JobFile, sets: Overrides = [], dry_run: DryRun = False, as_json: AsJson = False) -> None:  # noqa: B006
    """Serve a registered model over HTTP until interrupted."""
    from pipelines import config
    from pipelines import serve as verb

    resolved = config.load_job(job, sets, kind="serve")
    if dry_run:
        _print_plan(resolved, verb.plan(resolved), as_json)
    else:
        verb.run(resolved, on_ready=lambda served: _end(served, verb, as_json))


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
    as_json: AsJson = False,
) -> None:
    """Draw pictures, by a running endpoint or straight from the registry."""
    from pipelines import generate as verb

    fields = {
        "n": n,
        "seed": seed,
        "negative_prompt": negative_prompt,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "sampler": sampler,
    }
    _end(verb.run(prompt, out, fields, server=server, model=model), verb, as_json)


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
    manifest: Annotated[str, typer.Argument(help="a manifest's folder, or a folder of manifests")],
    out: Annotated[str, typer.Option(help="file to write")] = "report.html",
    show_unsafe: Annotated[bool, typer.Option("--show-unsafe", help="show pictures that reach a limit")] = False,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page about a manifest: funnel, pictures, scores, who is removed."""
    from pipelines import report as verb

    _end(verb.run(manifest, out, show_unsafe=show_unsafe), verb, as_json)


@app.command()
def submit(
    job: JobFile,
    address: Annotated[str, typer.Option(help="the cluster's dashboard: http://HEAD:8265")],
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


@app.command()
def demo(
    out: Annotated[str, typer.Option(help="folder for everything the demo makes")] = "runs/demo",
    sets: Annotated[
        list[str], typer.Option("--set", metavar="JOB.A.B=C", help="override a field of a demo job: train.images=2000")
    ] = [],  # noqa: B006
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole road on real drawings, to a grid.png."""
    from pipelines import demo as verb

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
        mistake = _mistake_within(error)
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        sys.exit(2)


def _mistake_within(error: BaseException) -> UserError | None:
    """The user's mistake behind an error; Ray wraps what its workers raise. None for a real fault."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return seen
        wrapped = getattr(seen, "cause", None)  # ray.exceptions.RayTaskError
        seen = wrapped if isinstance(wrapped, BaseException) else seen.__cause__
    return None
