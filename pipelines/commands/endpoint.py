"""The endpoint, and what comes from it."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.endings import end, print_plan
from pipelines.commands.options import AsJson, DryRun, JobFile, Overrides

app = typer.Typer()


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
        end(verb.checked(job), verb, as_json)
        return
    resolved = config.load_job(job, sets, kind="serve")
    if dry_run:
        print_plan(resolved, verb.plan(resolved), as_json)
    else:
        raise typer.Exit(verb.run(resolved, on_ready=lambda served: end(served, verb, as_json)))


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="what to draw")],
    out: Annotated[str, typer.Option(help="file to write: .png, .jpg or .webp")] = "generated.png",
    seed: Annotated[int | None, typer.Option(help="of the first picture; the next ones count on")] = None,
    n: Annotated[int, typer.Option(help="how many pictures")] = 1,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT, where the model was trained in several shapes")
    ] = None,
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
    """Draw pictures. By a running endpoint, or straight from the registry."""
    from pipelines import config
    from pipelines import generate as verb

    fields = {
        "n": n,
        "seed": seed,
        "size": size,
        "negative_prompt": negative_prompt,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "sampler": sampler,
    }
    told = None if job is None else config.load_job(job, kind="serve")
    end(verb.run(prompt, out, fields, server=server, model=model, job=told), verb, as_json)


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
    """Read a picture's credentials and watermark. Exit code 0 if a server of ours signed it and it is unchanged."""
    from pipelines import verify as verb

    found = verb.run(file, credentials=credentials, job=job, anchors=anchors)
    end(found, verb, as_json)
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

    end(verb.init(folder, organisation=organisation), verb, as_json)


keys_app = typer.Typer(help="Who may ask an endpoint, and how much.", no_args_is_help=True, rich_markup_mode=None)

app.add_typer(keys_app, name="keys")


KeyFile = Annotated[str, typer.Option("--file", help="the keys' file, as in the serve job's keys.file")]


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="whose key it is")],
    file: KeyFile,
    scope: Annotated[
        list[str],
        typer.Option(help="generate, read, verify, metrics or admin; may be repeated; the first three when not given"),
    ] = [],  # noqa: B006
    row_steps_per_minute: Annotated[int | None, typer.Option(min=1, help="at most, also at once")] = None,
    row_steps_per_day: Annotated[int | None, typer.Option(min=1, help="at most, by UTC")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it once; a picture of 20 steps with guidance costs 40 row-steps."""
    from pipelines import keys as verb

    limits = {"row_steps_per_minute": row_steps_per_minute, "row_steps_per_day": row_steps_per_day}
    end(verb.create(file, name, scope or ["generate", "read", "verify"], **limits), verb, as_json)


@keys_app.command("list")
def keys_list(file: KeyFile, as_json: AsJson = False) -> None:
    """Show the keys of a file; their secrets are not in it."""
    from pipelines import keys as verb

    end(verb.listed(file), verb, as_json)


@keys_app.command("revoke")
def keys_revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="its id or its name")],
    file: KeyFile,
    as_json: AsJson = False,
) -> None:
    """End a key; endpoints heed it within seconds."""
    from pipelines import keys as verb

    end(verb.revoke(file, key), verb, as_json)
