"""Content credentials (C2PA): a signed statement in a picture's file of what made it, written and read.

Every file says `trainedAlgorithmicMedia` (IPTC's word for what a trained model made) and, in an assertion of our own,
which model version, manifest, seed and settings. The prompt is not in it, nor a plain hash of it: a short prompt's hash
is found by trying prompts. There is a commitment instead, an HMAC under a key that only this server can make again, for
each picture another: the server can show later that a prompt is the one, and nobody else learns anything.

A signed file differs from time to time (the library draws salts and an id), also for the same pixels, certificate and
key: what this server claims exactness of is `pixels_sha256`. Nothing is fetched, and no thumbnail is put in.
"""

from __future__ import annotations

import hashlib
import hmac
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from curation.engine import code_version
from curation.rights.c2pa import SETTINGS, manifests, marked, origins
from serving.identity import Identity, Trust

ASSERTION = "org.cleanplate.generation"
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
State = Literal["absent", "unreadable", "altered", "untrusted", "trusted"]
_SETTINGS = SETTINGS | {"builder": {"thumbnail": {"enabled": False}}}
_MOST_CODES = 16
# The library's words for what is wrong, in ours; others are handed on as they are.
_FAULTS = {
    "assertion.dataHash.mismatch": "the file's bytes are not those that were signed",
    "assertion.hashedURI.mismatch": "a statement is not the one that was signed",
    "assertion.missing": "a statement that was signed is missing",
    "claimSignature.mismatch": "the signature does not fit what it signs",
    "claimSignature.missing": "the signature is missing",
    "claimSignature.outsideValidity": "the certificate has run out, or was not valid yet",
    "signingCredential.invalid": "the certificate is not one for content credentials",
    "signingCredential.untrusted": "nobody here vouches for the signer",
    "signingCredential.expired": "the certificate has run out",
}


@dataclass(frozen=True)
class Origin:
    """What a file's credentials say of how its picture came about.

    Attributes:
        image_id: the picture's id.
        manifest_id: of the training manifest.
        prompt_commitment: see `commitment`.
        watermark: the payload in its pixels, hexadecimal; empty: a mark without a payload; None: no mark.
        pixels_sha256: of the pixels before they were encoded.
    """

    image_id: str
    model: str
    model_version: str
    manifest_id: str
    seed: int
    sampler: str
    steps: int
    guidance_scale: float
    backend: str
    prompt_commitment: str
    watermark: str | None
    pixels_sha256: str


class CredentialsReading(BaseModel):
    """What a file's credentials say, and what that is worth."""

    model_config = ConfigDict(frozen=True)
    state: State
    """`trusted`: whole, and signed by one whom this server trusts; `untrusted`: whole, signed by somebody else;
    `altered`: the file or the statement was changed; `unreadable`: there is something that cannot be read; `absent`."""
    ours: bool = False
    """Whether this server's own certificate, or one of its own root, signed it."""
    says: str
    """The same in words."""
    faults: tuple[str, ...] = ()
    signer: str | None = None
    digital_source_type: str | None = None
    generation: dict[str, Any] | None = None
    """Our assertion, as the file has it. Where the state is `altered` it proves nothing."""


def commitment(secret: bytes, image_id: str, prompt: str) -> str:
    """HMAC-SHA256 of a prompt, hex, under a key that is the picture's own: HMAC-SHA256 of its id under `secret`."""
    key = hmac.digest(secret, image_id.encode(), "sha256")
    return hmac.digest(key, prompt.encode(), hashlib.sha256).hex()


class Signer:
    """Signs files in an identity's name. Belongs to one thread at a time."""

    def __init__(self, identity: Identity) -> None:
        import c2pa

        info = c2pa.C2paSignerInfo(
            alg=identity.algorithm.encode(), sign_cert=identity.chain, private_key=identity.key, ta_url=None
        )
        self._signer = c2pa.Signer.from_info(info)
        self._context = c2pa.Context.from_dict(_SETTINGS)

    def sign(self, data: bytes, media_type: str, origin: Origin) -> bytes:
        """The file with its credentials, some three kilobytes more; a moving PNG or WebP as well.

        Args:
            media_type: `image/png`, `image/jpeg` or `image/webp`.
        """
        import c2pa

        signed = io.BytesIO()
        with c2pa.Builder(_statement(origin), self._context) as builder:
            builder.sign(self._signer, media_type, io.BytesIO(data), signed)
        return signed.getvalue()


def _statement(origin: Origin) -> dict[str, Any]:
    created = {"action": "c2pa.created", "digitalSourceType": DIGITAL_SOURCE_TYPE}
    return {
        "claim_generator_info": [{"name": "cleanplate", "version": code_version()}],
        "title": origin.image_id,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
            {"label": ASSERTION, "data": asdict(origin)},
        ],
    }


def read(data: bytes, trust: Trust | None = None) -> CredentialsReading:
    """What a file's credentials say. Never raises, whatever the bytes are.

    Args:
        trust: which signatures are trusted, and which of them are ours; None: nobody's.
    """
    found = marked(data)
    if found is None:
        return CredentialsReading(state="absent", says="It has no content credentials.")
    try:
        return _reading(manifests(data, trust.anchors if trust else ""), trust)
    except Exception as error:  # the library's errors are many, and the file is a stranger's
        if type(error).__name__ == "ManifestNotFound" and found != "manifest":
            return CredentialsReading(state="absent", says="It has no content credentials.")
        return CredentialsReading(
            state="unreadable", says="It has content credentials that cannot be read.", faults=(str(error)[:200],)
        )


def _reading(store: Mapping[str, Any], trust: Trust | None) -> CredentialsReading:
    manifest = store["manifests"][store["active_manifest"]]
    signature = manifest.get("signature_info") or {}
    assertions = {str(a.get("label")): a.get("data") for a in manifest.get("assertions") or ()}
    codes = dict.fromkeys(str(status.get("code")) for status in store.get("validation_status") or ())
    state = _state(str(store.get("validation_state")), list(codes))
    signer = ", ".join(str(signature[k]) for k in ("common_name", "issuer") if signature.get(k)) or None
    own = trust is not None and trust.serial in (None, str(signature.get("cert_serial_number")))
    ours = own and state == "trusted"
    generation = assertions.get(ASSERTION)
    actions = (content for label, content in assertions.items() if label.startswith("c2pa.actions"))
    return CredentialsReading(
        state=state,
        ours=ours,
        says=_words(state, ours, signer),
        faults=tuple(_FAULTS.get(code, code) for code in list(codes)[:_MOST_CODES]),
        signer=signer,
        digital_source_type=next((origin for content in actions for origin in origins(content)), None),
        generation=generation if isinstance(generation, dict) else None,
    )


def _state(validation: str, codes: list[str]) -> State:
    if validation == "Trusted":
        return "trusted"
    # A certificate that is worth nothing does not make the file another one.
    of_signer = all(code.startswith(("signingCredential.", "timeStamp.", "claimSignature.outside")) for code in codes)
    return "untrusted" if validation == "Valid" or (codes and of_signer) else "altered"


def _words(state: State, ours: bool, signer: str | None) -> str:
    if state == "altered":
        return "Its content credentials do not fit it: the file, or what they say, was changed after it was signed."
    if ours:
        return "It is as this server signed it: not a byte was changed."
    by = signer or "somebody who gives no name"
    if state == "trusted":
        return f"It is as {by} signed it, whom this server trusts."
    return f"It is as {by} signed it; nobody here knows whether they are who they say."
