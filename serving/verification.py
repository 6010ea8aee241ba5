"""Whether a file is from here: both marks read, and said in words what that proves and what it does not.

Credentials prove most and are lost at the first re-encoding; the watermark outlives it and proves less: that the pixels
were marked with this server's key, not that nothing was painted over since.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

from curation.images import Decoded, ImageConfig, ImageError, judging
from curation.manifest import Reason
from curation.metadata import scan
from curation.moving import MOST, look
from serving import identity
from serving.credentials import CredentialsReading, read
from serving.identity import CredentialsConfig, Trust, WatermarkConfig
from serving.marking import pixels_sha256
from serving.watermark import FALSE_POSITIVE_RATE, Detection, Watermark

MAX_PIXELS = 16_000_000
"""Of a picture, or of a film's frames together."""
_IMAGE_ID = re.compile(r"img_[0-9a-f]{32}")
_WHOLE_SIDE = 10**9

Verdict = Literal["ours", "marked", "altered", "others", "unknown"]


class WatermarkReading(BaseModel):
    """What was found of the server's mark in the pixels."""

    model_config = ConfigDict(frozen=True)
    state: Literal["found", "not_found", "not_looked_for"]
    says: str
    statistic: float | None = None
    """Standard normal for a picture that was not marked."""
    hypotheses: int | None = None
    """How many ways in which the picture could lie to the marked one were tried."""
    p_value: float | None = None
    """The chance, at most, that a picture without the mark does as well in any of them."""
    false_positive_rate: float = FALSE_POSITIVE_RATE
    """A mark is found where `p_value` is not larger."""
    payload: str | None = None
    """Hexadecimal: the same for the same request to the same version."""
    where: str | None = None
    """How the picture lies to the one that was marked."""


class Verification(BaseModel):
    """What a file's marks say. The body of the answer of `POST /v1/images/verify`."""

    model_config = ConfigDict(frozen=True)
    verdict: Verdict
    """`ours`: signed by this server, and whole; `marked`: this server's mark, in a file that is not as it was signed;
    `altered`: credentials that do not fit the file; `others`: somebody else's credentials; `unknown`: neither mark."""
    says: str
    format: str
    width: int
    height: int
    frames: int
    credentials: CredentialsReading
    watermark: WatermarkReading
    pixels_equal: bool | None = None
    """Whether the pixels have the SHA-256 that the credentials state, which those of lossless files have; null where
    none of ours are there."""
    image_id: str | None = None
    """The picture's id, from credentials of ours that are whole."""
    record: str | None = None
    """Where the picture's record can be asked for."""
    candidates: tuple[str, ...] = ()
    """Where only the watermark is left: records of pictures with its payload. The picture is one of them, drawn again
    from one of them, or, with a payload of 16 bits once in 65,536 times, none."""


class NoPictureError(Exception):
    """Bytes that are no picture that can be looked at, and why."""


@dataclass(frozen=True)
class Verifier:
    """Reads marks.

    Attributes:
        trust: whose signatures are ours; None where the server signs nothing.
        watermark: the server's mark; None where it has none.
    """

    trust: Trust | None
    watermark: Watermark | None
    max_pixels: int = MAX_PIXELS

    def verify(self, data: bytes) -> Verification:
        """What a file's marks say.

        Args:
            data: its bytes; anything at all.

        Raises:
            NoPictureError: no picture, a damaged one, or one that is too large to be looked at.
        """
        frames, kind = _frames(data, self.max_pixels)
        found = read(data, self.trust)
        said = found.generation if found.ours else None
        mark = self._mark(frames, unmarked=said is not None and said.get("watermark") is None)
        verdict = _verdict(found, mark)
        name = str((said or {}).get("image_id", ""))
        return Verification(
            verdict=verdict,
            says=_words(verdict, found, mark),
            format=kind,
            width=frames.shape[-2],
            height=frames.shape[-3],
            frames=len(frames),
            credentials=found,
            watermark=mark,
            pixels_equal=None if said is None else said.get("pixels_sha256") == pixels_sha256(frames),
            image_id=name if _IMAGE_ID.fullmatch(name) else None,
        )

    def _mark(self, frames: np.ndarray, unmarked: bool) -> WatermarkReading:
        if self.watermark is None:
            return WatermarkReading(state="not_looked_for", says="No watermark's key is here to look for it with.")
        found = _reading(self.watermark.detect(frames))
        if found.state == "not_found" and unmarked:
            return found.model_copy(
                update={"says": "It was sent without a mark: it is too small, or too busy, for one."}
            )
        return found


def build(credentials: CredentialsConfig, watermark: WatermarkConfig) -> Verifier:
    """The verifier of a configuration.

    Raises:
        UserError: certificate or keys that are not there or no good.
    """
    return Verifier(
        identity.load(credentials).trust if credentials.enabled else None,
        Watermark(identity.watermark_key(watermark, credentials)) if watermark.enabled else None,
    )


def _frames(data: bytes, max_pixels: int) -> tuple[np.ndarray, str]:
    """uint8 (F, H, W, 3) as it is shown, over white, and the file's format; of a long film frames all over it."""
    config = ImageConfig(max_pixels=max_pixels)
    kinds: list[str] = []

    def keep(decoded: Decoded) -> np.ndarray:
        kinds.append(decoded.format)
        return decoded.pixels

    try:
        _check_film(data, max_pixels)
        _, frames = look(data, config, MOST, _WHOLE_SIDE, scan(data), keep)
        return np.stack(frames), kinds[0]
    except ImageError as error:
        raise NoPictureError(f"{error.reason.value}: {error.detail}") from error


def _check_film(data: bytes, max_pixels: int) -> None:
    """Refuses a film with too many pixels by its headers: each frame is drawn over the one before it."""
    if not data:
        return  # for `look` to name
    with judging(data), Image.open(io.BytesIO(data)) as image:
        frames = int(getattr(image, "n_frames", 1)) if getattr(image, "is_animated", False) else 1
        if frames * image.width * image.height > max_pixels:
            raise ImageError(Reason.TOO_MANY_PIXELS, f"{frames} of {image.width}x{image.height}, {max_pixels} allowed")


def _reading(found: Detection) -> WatermarkReading:
    if found.present:
        says = f"Its pixels carry this server's mark ({found.where}); by chance that is so once in {_once(found)}."
    else:
        says = "This server's mark is not found in its pixels: it never was there, or is lost."
    return WatermarkReading(
        state="found" if found.present else "not_found",
        says=says,
        statistic=round(found.statistic, 3),
        hypotheses=found.hypotheses,
        p_value=found.p_value,
        payload=found.payload,
        where=found.where or None,
    )


def _once(found: Detection) -> str:
    if found.p_value < 1e-15:
        return "more than 10^15 pictures"
    return f"{1 / found.p_value:.1e} pictures"


def _verdict(credentials: CredentialsReading, mark: WatermarkReading) -> Verdict:
    if credentials.ours:
        return "ours"
    if mark.state == "found":
        return "marked"
    by_state: dict[str, Verdict] = {"altered": "altered", "trusted": "others", "untrusted": "others"}
    return by_state.get(credentials.state, "unknown")


def _words(verdict: Verdict, credentials: CredentialsReading, mark: WatermarkReading) -> str:
    match verdict:
        case "ours":
            return "This server made it, and the file is as it was signed."
        case "marked":
            lost = {"absent": "are gone", "altered": "do not fit it any more", "unreadable": "cannot be read"}
            how = lost.get(credentials.state, "are somebody else's")
            return f"This server made what it was made from. It was changed since: its credentials {how}."
        case "altered":
            return "Its credentials do not fit it, and it does not carry this server's mark: they prove nothing."
        case "others":
            return "It carries somebody else's credentials, and nothing says that this server made it."
        case "unknown":
            return "Nothing says that this server made it. That is no proof that it did not: both marks can be lost."
