"""`cleanplate verify FILE`: whether a picture is from a server of ours, and unchanged since."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from curation.errors import UserError

if TYPE_CHECKING:
    from serving.verification import Verification, Verifier

_MOST_BYTES = 256 * 1024 * 1024


def run(file: str, *, credentials: str | None, job: str | None, anchors: str | None) -> Verification:
    """Reads a file's marks.

    Args:
        file: a picture.
        credentials: folder with certificate and keys; a server's own when not given.
        job: serve job whose certificate and watermark are meant instead.
        anchors: a PEM file with roots, instead of both: for who has nobody's keys; no watermark is looked for.

    Raises:
        UserError: no picture, or no certificate and keys to check it with.
    """
    from serving.verification import NoPictureError

    verifier = _verifier(credentials, job, anchors)
    path = Path(file)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(f"{file} is over {_MOST_BYTES} bytes", field="FILE", remedy="give a picture")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}", field="FILE", remedy="give a picture") from error
    try:
        return verifier.verify(data)
    except NoPictureError as error:
        raise UserError(f"{file} cannot be verified: {error}", field="FILE", remedy="give a picture") from error


def _verifier(credentials: str | None, job: str | None, anchors: str | None) -> Verifier:
    from pipelines.config import load_job
    from serving.identity import CredentialsConfig, WatermarkConfig, folder_of, trust_of
    from serving.verification import Verifier, build

    if anchors is not None:
        return Verifier(trust_of(anchors), None)
    if job is not None:
        served = load_job(job, [], kind="serve")
        return build(served.credentials, served.watermark)
    config = CredentialsConfig(folder=credentials)
    if not folder_of(config).is_dir():
        raise UserError(
            f"there is no certificate in {folder_of(config)} to tell our pictures by",
            field="--credentials",
            remedy="name the server's folder, its job with --job, or its ca.pem with --anchors",
        )
    return build(config, WatermarkConfig())


def summary(found: Verification) -> list[str]:
    """The marks for a person."""
    lines = [found.says, "", f"{found.format} {found.width}x{found.height}, {found.frames} frame(s)"]
    lines.append(f"credentials  {found.credentials.state}: {found.credentials.says}")
    lines += [f"             - {fault}" for fault in found.credentials.faults]
    if found.credentials.signer is not None:
        lines.append(f"             signed by {found.credentials.signer}")
    lines.append(f"watermark    {found.watermark.state.replace('_', ' ')}: {found.watermark.says}")
    if found.watermark.statistic is not None:
        lines.append(
            f"             statistic {found.watermark.statistic:.2f} over {found.watermark.hypotheses} hypotheses, "
            f"p <= {found.watermark.p_value:.1e}; found at {found.watermark.false_positive_rate:g} and below"
        )
    if found.watermark.payload:
        lines.append(f"             payload {found.watermark.payload}")
    if found.credentials.ours and found.credentials.generation is not None:
        lines += [f"{name:12} {value}" for name, value in found.credentials.generation.items()]
    elif found.credentials.generation is not None:
        lines.append("what it says of itself is not shown here, as nothing vouches for it; --json has it")
    return lines
