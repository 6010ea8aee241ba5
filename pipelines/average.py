"""`cleanplate average`: a finished run's bundle again, with its weights averaged over another length."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pydantic import BaseModel

from curation import storage
from curation.errors import UserError


class Averaged(BaseModel):
    """A bundle of another average."""

    bundle: str
    sigma_rel: float
    stored: int  # averages that it was made from
    images_seen: int
    training_set_digest: str


def run(run_folder: str, *, sigma_rel: float, into: str) -> Averaged:
    """Writes `<into>/bundle`, and beside it what leads from it to the run and to its training set.

    Args:
        run_folder: of a finished run of a train job with `ema.profiles`, local or S3.
        sigma_rel: length of the average, in parts of the run (`training.ema`).
        into: a new folder, local or S3; made when it is not there.

    Raises:
        UserError: no such run or no averages in it, a length that cannot be made from them, a folder that has a bundle
            already or cannot be written.
    """
    from training import dependencies
    from training.averages import rebundle, snapshots
    from training.bundle import INFO_FILE
    from training.folders import upload
    from training.roster import FILE as ROSTER_FILE
    from training.run_record import RUN_FILE

    target = storage.join(storage.absolute(into), "bundle")
    if storage.exists(storage.join(target, INFO_FILE)):
        raise UserError(f"there is a bundle in {into} already", field="--into", remedy="name a new folder")
    stored = len(snapshots(run_folder))
    with tempfile.TemporaryDirectory() as scratch:
        info = rebundle(run_folder, sigma_rel, Path(scratch) / "bundle")
        try:
            copies = [storage.join(dependencies.FOLDER, dependencies.file_of(d.sha256)) for d in info.depends_on]
            for name in (ROSTER_FILE, RUN_FILE, *copies):
                if storage.exists(storage.join(run_folder, name)):
                    data = storage.read_bytes(storage.join(run_folder, name))
                    storage.write_bytes(storage.join(storage.absolute(into), name), data)
            upload(Path(scratch) / "bundle", target, last=INFO_FILE)
        except OSError as error:
            raise UserError(
                f"cannot write {into}: {error}", field="--into", remedy="name a folder that can be written"
            ) from None
    return Averaged(
        bundle=target,
        sigma_rel=sigma_rel,
        stored=stored,
        images_seen=info.images_seen,
        training_set_digest=info.training_set_digest,
    )


def summary(result: Averaged) -> list[str]:
    """The result for a person."""
    return [
        f"averaged over {result.sigma_rel:g} of the run, made from {result.stored:,} stored averages",
        f"bundle {result.bundle}",
        f"register it with: cleanplate register JOB.yaml --set bundle={result.bundle}",
    ]
