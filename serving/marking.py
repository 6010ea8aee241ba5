"""A server's two marks on every picture: in its pixels, and in its file.

The watermark's payload is a keyed hash of what was asked for, not of the picture's id: the same request gives the same
pixels, as ever, and who holds the key and the records finds by it what was asked.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from dataclasses import dataclass, field

import numpy as np

from serving.admission import ModelCard, Plan
from serving.credentials import Origin, Signer, commitment
from serving.identity import WORTH, CredentialsConfig, WatermarkConfig, ensure, folder_of, load, watermark_key
from serving.watermark import Watermark, payload_bits

_log = logging.getLogger(__name__)
_MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


@dataclass(frozen=True)
class Marks:
    """What a server marks with; None for what it does not.

    Attributes:
        secret: what payloads and commitments are made under.
    """

    signer: Signer | None
    watermark: Watermark | None
    secret: bytes = field(repr=False)


def build(credentials: CredentialsConfig, watermark: WatermarkConfig) -> Marks | None:
    """The marks of a job; None where it wants none. Makes certificate and keys where there are none.

    Raises:
        UserError: a certificate or key that is not there or no good, or a folder that cannot be written.
    """
    if not (credentials.enabled or watermark.enabled):
        return None
    if ensure(credentials, watermark):
        _log.warning("%s holds a new certificate and keys. %s", folder_of(credentials), WORTH)
    secret = watermark_key(watermark, credentials)
    return Marks(
        Signer(load(credentials)) if credentials.enabled else None,
        Watermark(secret) if watermark.enabled else None,
        secret,
    )


@dataclass(frozen=True)
class MarkedPicture:
    """Pixels with the mark, and its payload: empty where they have no room for one; None: no mark."""

    pixels: np.ndarray
    watermark: str | None


class Marker:
    """Marks one model's pictures. Not for two threads at once."""

    def __init__(self, marks: Marks, card: ModelCard) -> None:
        self._marks = marks
        self._card = card

    @property
    def signs(self) -> bool:
        return self._marks.signer is not None

    def pixels(self, plan: Plan, index: int, pixels: np.ndarray) -> MarkedPicture:
        """A plan's picture `index` with the mark, where it has room for one.

        Args:
            pixels: uint8 (H, W, 3), of a film (F, H, W, 3).
        """
        bits = payload_bits(*pixels.shape[-3:-1])
        if self._marks.watermark is None or bits is None:
            return MarkedPicture(pixels, None)
        payload = self._payload(plan, index)
        marked = self._marks.watermark.embed(pixels, payload)
        if not marked.readable:
            return MarkedPicture(pixels, None)
        return MarkedPicture(marked.pixels, payload.hex()[: bits // 4])

    def file(self, plan: Plan, index: int, data: bytes, pixels_sha256: str, watermark: str | None) -> bytes:
        """A plan's picture `index` as a signed file; as it is where this server does not sign."""
        if self._marks.signer is None:
            return data
        name, card = plan.ids[index], self._card
        origin = Origin(
            image_id=name,
            model=card.name,
            model_version=card.version,
            manifest_id=card.manifest_id,
            seed=plan.seeds[index],
            sampler=plan.sampler,
            steps=plan.steps,
            guidance_scale=plan.guidance_scale,
            backend=card.backend,
            prompt_commitment=commitment(self._marks.secret, name, plan.prompt),
            watermark=watermark,
            pixels_sha256=pixels_sha256,
        )
        return self._marks.signer.sign(data, _MEDIA_TYPES[plan.output_format], origin)

    def _payload(self, plan: Plan, index: int) -> bytes:
        """Four bytes that are the same for the same request to the same version."""
        asked = [self._card.name, self._card.version, self._card.manifest_id, plan.prompt, plan.negative_prompt]
        drawn = [plan.seeds[index], plan.steps, plan.sampler, plan.guidance_scale]
        shape = [] if plan.size == self._card.size else [plan.size]  # so that marks from before there were shapes count
        return hmac.digest(self._marks.secret, b"payload\0" + json.dumps(asked + drawn + shape).encode(), "sha256")[:4]


def pixels_sha256(pixels: np.ndarray) -> str:
    """Of uint8 (H, W, 3) or (F, H, W, 3), row by row."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
