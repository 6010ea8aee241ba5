"""Making things: what turns pictures into a manifest, a manifest into a model, and a model into a version."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

from curation.errors import UserError
from pipelines.commands.endings import end, print_plan, run_job
from pipelines.commands.options import AsJson, DryRun, JobFile, Overrides

app = typer.Typer()

MetricsPort = Annotated[
    int | None, typer.Option(help="offer Prometheus metrics at this port of 127.0.0.1 while it runs")
]


def _watched(metrics_port: int | None) -> list[str]:
    return [] if metrics_port is None else [f"observability.metrics_port={metrics_port}"]


@app.command()
def curate(
    job: JobFile,
    sets: Overrides = [],  # noqa: B006
    metrics_port: MetricsPort = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Turn images into a manifest, one row for every input."""
    run_job("curate", job, [*sets, *_watched(metrics_port)], dry_run, as_json)


@app.command()
def autoencoder(job: JobFile, sets: Overrides = [], dry_run: DryRun = False, as_json: AsJson = False) -> None:  # noqa: B006
    """Train an autoencoder on a manifest, to train in its latents. Rerun to resume."""
    run_job("autoencoder", job, sets, dry_run, as_json)


@app.command()
def train(
    job: JobFile,
    sets: Overrides = [],  # noqa: B006
    metrics_port: MetricsPort = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a diffusion model on a manifest; rerun to resume."""
    run_job("train", job, [*sets, *_watched(metrics_port)], dry_run, as_json)


@app.command()
def distill(job: JobFile, sets: Overrides = [], dry_run: DryRun = False, as_json: AsJson = False) -> None:  # noqa: B006
    """Make a student of a model, which draws in few steps. Rerun to resume."""
    run_job("distill", job, sets, dry_run, as_json)


@app.command()
def average(
    run_folder: Annotated[str, typer.Argument(metavar="RUN_FOLDER", help="of a finished run with ema.profiles")],
    sigma_rel: Annotated[float, typer.Option(min=0.01, max=0.25, help="length of the average, in parts of the run")],
    into: Annotated[str, typer.Option(metavar="FOLDER", help="a new folder; the bundle is FOLDER/bundle")],
    as_json: AsJson = False,
) -> None:
    """Average a finished run's weights over another length."""
    from pipelines import average as verb

    end(verb.run(run_folder, sigma_rel=sigma_rel, into=into), verb, as_json)


@app.command()
def register(job: JobFile, sets: Overrides = [], dry_run: DryRun = False, as_json: AsJson = False) -> None:  # noqa: B006
    """Make a trained bundle a model version in MLflow."""
    run_job("register", job, sets, dry_run, as_json)


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
    """Index a model's training pictures. For attribution, and against near copies."""
    from pipelines import index as verb

    job = verb.job_of(model, sets, out=out)
    if dry_run:
        print_plan(job, verb.plan(job), as_json)
        return
    end(verb.run(job), verb, as_json)


@app.command()
def evaluate(job: JobFile, sets: Overrides = [], dry_run: DryRun = False, as_json: AsJson = False) -> None:  # noqa: B006
    """Measure a model version. Quality beside its floors, and whether it redraws its training pictures."""
    run_job("evaluate", job, sets, dry_run, as_json)


@app.command()
def promote(
    name: Annotated[str, typer.Argument(metavar="NAME", help="the registered model")],
    version: Annotated[str, typer.Argument(metavar="VERSION", help="its version, a number")],
    job: Annotated[str, typer.Option(metavar="JOB.yaml", help="job file with the gates")],
    alias: Annotated[str, typer.Option(help="what is to point at the version")] = "champion",
    sets: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version that passes the gates. Exit code 1 if it does not."""
    from pipelines import config
    from pipelines import promote as verb

    done = verb.run(name, version, config.load_job(job, sets, kind="promote"), alias=alias)
    if not as_json:
        verb.show(done)
    end(done, verb, as_json)
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
    """Write a model's denoiser as ONNX, compared with torch. Exit code 1 if a format is refused."""
    from pipelines import export as verb

    job = verb.job_of(model, sets, int8=int8, tensorrt=tensorrt, out=out, force=force)
    if dry_run:
        print_plan(job, verb.plan(job), as_json)
        return
    done = verb.run(job)
    end(done, verb, as_json)
    raise typer.Exit(1 if done.refused else 0)


@app.command()
def pipeline(job: JobFile, sets: Overrides = [], dry_run: DryRun = False, as_json: AsJson = False) -> None:  # noqa: B006
    """Run several jobs, each from what the ones before made. Rerun to go on at the step that failed."""
    from pipelines import config
    from pipelines import pipeline as verb

    resolved = config.load_job(job, sets, kind="pipeline")
    if dry_run:
        print_plan(resolved, verb.plan(resolved), as_json)
        return
    done = verb.run(resolved)
    end(done, verb, as_json)
    raise typer.Exit(done.exit_code)


@app.command()
def demo(
    out: Annotated[
        str | None,
        typer.Option(
            help="folder for everything the demo makes; runs/demo, runs/moving or runs/gallery when not given"
        ),
    ] = None,
    moving: Annotated[bool, typer.Option("--moving", help="films instead of pictures, to a moving.webp")] = False,
    gallery: Annotated[
        bool, typer.Option("--gallery", help="more drawings at 64 pixels, to the README's gallery.png; takes longer")
    ] = False,
    sets: Annotated[
        list[str], typer.Option("--set", metavar="JOB.A.B=C", help="override a field of a demo job: train.images=2000")
    ] = [],  # noqa: B006
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole road on real drawings, to a grid.png."""
    if moving and gallery:
        raise UserError("two demos at once", field="--gallery", remedy="give --moving or --gallery")
    which = "moving" if moving else "gallery" if gallery else "demo"
    verb: Any = importlib.import_module("pipelines.demo" if which == "demo" else f"pipelines.demo_{which}")
    out = out or f"runs/{which}"
    if dry_run:
        for resolved in verb.jobs(out, sets):
            print_plan(resolved, {"cpus": verb.CPUS, "gpus": 0}, as_json)
        return
    end(verb.run(out, sets), verb, as_json)
