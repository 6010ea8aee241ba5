"""C2PA manifests: the training and data mining assertion, read from a file's original bytes.

CAWG Training and Data Mining Assertion 1.1 (`cawg.training-mining`) and its forerunner in C2PA 1.0 to 1.4
(`c2pa.training-mining`), with the entries `data_mining`, `ai_inference`, `ai_generative_training` and `ai_training`,
each of which is `allowed`, `notAllowed` or `constrained`.

Whoever forbids need not be known: a prohibition counts in every manifest of the file, of the picture itself, of what
it was made from (`parentOf`) and of what it is composed of (`componentOf`), and also where the signature is worth
nothing. A permission counts only for the picture itself, for generative training, from a manifest that validates: the
signature is sound and the bytes are those that were signed. That is the reader's state `Valid`, and anybody may have
signed so; `trusted_only` asks for `Trusted`, a signer whose certificate leads to one of `anchors`.

Nothing is fetched: neither manifests that lie elsewhere nor what a certificate's issuer says about it.
"""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Iterator
from functools import cache
from typing import Any

from curation.manifest import Verdict
from curation.rights.verdict import IN_FILE, Observation

_STRENGTH = (Verdict.DENY, Verdict.ERROR, Verdict.ALLOW, Verdict.UNKNOWN)
_MAX_VALUE = 500
_MAX_OBSERVATIONS = 64
_MAX_SEGMENTS = 10_000
_LABEL = re.compile(r"(cawg|c2pa)\.training-mining(?:__\d+)?")
_ENTRIES = frozenset({"data_mining", "ai_inference", "ai_generative_training", "ai_training"})
_MARKS = (b"jumdc2pa", b"C2PA_GIF", b"caBX")
_BMFF_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_TIFF_TAG, _TIFF_XMP = 0xCD41, 700
SETTINGS = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    # Identity assertions say who somebody is, and to check them may mean asking the web for a did:web document.
    "core": {"allowed_network_hosts": [], "decode_identity_assertions": False},
}


def observe(data: bytes, *, trusted_only: bool = False, anchors: str = "") -> list[Observation]:
    """What the manifests in a file say about training, and how the picture is said to have been made.

    Never raises. Costs microseconds where there is no manifest, some milliseconds where there is one.

    Args:
        data: the file's original bytes.
        trusted_only: take a permission only from a signer that leads to `anchors`; without any, from nobody.
        anchors: certificates in PEM, one after the other.

    Returns:
        `c2pa` for each entry of an assertion, and where a manifest is there that cannot be read or lies elsewhere;
        `digital_source_type`, always unknown, for each kind of origin that the actions name.
    """
    try:
        found = marked(data)
        if not found:
            return []
        return _read(data, found == "manifest", trusted_only, anchors)
    except Exception as error:  # the library's errors are many, and no file may stop a job
        return [_observation(f"a manifest cannot be read: {error}", Verdict.ERROR)]


def _read(data: bytes, is_there: bool, trusted_only: bool, anchors: str) -> list[Observation]:
    import c2pa

    try:
        store = manifests(data, anchors)
    except c2pa.C2paError.ManifestNotFound:
        # XMP may name a provenance that is no manifest; a box that is marked as one was one.
        return [_observation("a manifest is there that cannot be read", Verdict.ERROR)] if is_there else []
    except c2pa.C2paError as error:
        if str(error).startswith("Remote"):
            return [_observation(f"remote manifest not fetched: {error}", Verdict.ERROR)]
        raise
    state = str(store.get("validation_state"))
    why_not = None if state == "Trusted" or (state == "Valid" and not trusted_only) else _fault(store, state)
    observed = dict.fromkeys(_observations(store, why_not))
    # What is cut off must not be what forbids.
    return sorted(observed, key=lambda o: _STRENGTH.index(o.verdict))[:_MAX_OBSERVATIONS]


def manifests(data: bytes, anchors: str = "") -> dict[str, Any]:
    """The library's report of a file's manifests; it asks nobody on the way. Raises what the library raises.

    Args:
        anchors: certificates in PEM whose signatures are trusted.
    """
    import c2pa

    with c2pa.Reader(None, io.BytesIO(data), context=_context(anchors)) as reader:
        report: dict[str, Any] = json.loads(reader.json())
    return report


@cache
def _context(anchors: str) -> Any:
    import c2pa

    trust = {"trust": {"trust_anchors": anchors}} if anchors else {}
    return c2pa.Context.from_dict(SETTINGS | trust)


def _fault(store: dict[str, Any], state: str) -> str:
    """Why a permission does not count."""
    codes = [str(s.get("code")) for s in store.get("validation_status") or ()]
    if state == "Valid":
        return "the signer is not trusted"
    return f"the signature is invalid: {', '.join(dict.fromkeys(codes)) or state}"


def _observations(store: dict[str, Any], why_not: str | None) -> Iterator[Observation]:
    manifests = store["manifests"]
    active = store.get("active_manifest")
    relations = {
        i.get("active_manifest"): str(i.get("relationship"))
        for m in manifests.values()
        for i in m.get("ingredients") or ()
    }
    for name, manifest in manifests.items():
        own = name == active
        what = "" if own else f" of an ingredient ({relations.get(name, 'unreferenced')})"
        for assertion in manifest.get("assertions") or ():
            label, content = str(assertion.get("label")), assertion.get("data")
            if "training-mining" in label.lower():
                yield from _entries(label, content, what, "it is an ingredient's" if not own else why_not)
            else:
                for origin in origins(content):
                    yield Observation("digital_source_type", origin[:_MAX_VALUE], IN_FILE, Verdict.UNKNOWN)


def _entries(label: str, content: Any, what: str, why_not: str | None) -> Iterator[Observation]:
    """An observation for each entry of an assertion; drafts had the entries without the map around them."""
    entries = content.get("entries", content) if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not entries:
        yield _observation(f"{label}{what} has no entries that can be read", Verdict.ERROR)
        return
    known = _LABEL.fullmatch(label)
    for key, entry in entries.items():
        use = entry.get("use") if isinstance(entry, dict) else entry
        terms = entry.get("constraints_info") or entry.get("constraint_info") if isinstance(entry, dict) else None
        value = f"{label}{what}: {key}={use}" + (f" ({terms})" if terms else "")
        verdict = _verdict(key, use)
        if verdict == Verdict.ALLOW:
            if known is None or not key.startswith(("cawg.", "c2pa.")):
                verdict, value = Verdict.UNKNOWN, f"{value}, but under a name of somebody's own"
            elif why_not is not None:
                verdict, value = Verdict.UNKNOWN, f"{value}, but {why_not}"
        yield _observation(value, verdict)


def _verdict(key: str, use: Any) -> Verdict:
    """What one entry means for the training of a generative model, its maker left aside."""
    name = key.rsplit(".", 1)[-1]
    if name == "ai_inference":
        return Verdict.UNKNOWN
    if use == "allowed":
        # To train what recognises or to mine is less than to train what generates.
        return Verdict.ALLOW if name == "ai_generative_training" else Verdict.UNKNOWN
    # CAWG 1.1: "In the absence of additional information, constrained shall be treated as equivalent to notAllowed";
    # the information is prose, or a link to some.
    forbids = isinstance(use, str) and use.casefold() in ("notallowed", "constrained")
    # A prohibition under a name that is not known might be one of training.
    return Verdict.DENY if forbids and name in _ENTRIES else Verdict.ERROR


def origins(content: Any) -> Iterator[str]:
    """IPTC digital source types that actions or metadata name, `…/digitalsourcetype/trainedAlgorithmicMedia`."""
    if not isinstance(content, dict):
        return
    listed = content.get("actions")
    for item in [content, *(listed if isinstance(listed, list) else ())]:
        if isinstance(item, dict):
            for key in ("digitalSourceType", "Iptc4xmpExt:DigitalSourceType"):
                if isinstance(item.get(key), str):
                    yield item[key]


def _observation(value: str, verdict: Verdict) -> Observation:
    return Observation("c2pa", value[:_MAX_VALUE], IN_FILE, verdict)


def marked(data: bytes) -> str | None:
    """Whether a file is worth the library's while: `manifest` (a box that is marked as one), `perhaps`, or None.

    Metadata before the pixels is looked through, not the pixels; where the container is damaged, all of it.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _chunks(data, 8, ">I4s", b"caBX", b"iTXt")
        if data.startswith(b"RIFF"):
            return _chunks(data, 12, "<4sI", b"C2PA", b"XMP ")
        if data.startswith((b"GIF87a", b"GIF89a")):
            return "manifest" if b"\x21\xff\x0bC2PA_GIF" in data else _provenance(data)
        if data.startswith(b"ftyp", 4):
            return "manifest" if _BMFF_BOX in data else _provenance(data)
        if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
            return _tiff(data)
    except (struct.error, IndexError):  # the file ends within a header
        return "manifest" if any(mark in data for mark in _MARKS) else _provenance(data)
    return None


def _provenance(data: bytes, start: int = 0, end: int | None = None) -> str | None:
    """`dcterms:provenance` in XMP is where a manifest lies that the file does not hold."""
    return "perhaps" if data.find(b"provenance", start, end) >= 0 else None


def _jpeg(data: bytes) -> str | None:
    """APP11 segments, which hold JUMBF boxes, up to the first scan."""
    position, found = 2, None
    for _ in range(_MAX_SEGMENTS):
        if data[position] != 0xFF:  # decoders skip to the next marker, and so do we
            position = data.find(b"\xff", position)
            if position < 0:
                break
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker == 0xDA or marker == 0xD9:
            return found
        elif marker < 0xC0 or 0xD0 <= marker <= 0xD8:  # without a length
            position += 2
        else:
            start = position + 4
            end = position + 2 + (data[position + 2] << 8 | data[position + 3])
            if marker == 0xEB:
                if data.find(b"c2pa", start, end) >= 0:
                    return "manifest"
                found = "perhaps"
            if marker == 0xE1 and found is None:
                found = _provenance(data, start, end)
            position = max(end, start)
    return "manifest" if any(mark in data for mark in _MARKS) else found


def _chunks(data: bytes, position: int, layout: str, box: bytes, xmp: bytes) -> str | None:
    """PNG's and RIFF's chunks: a manifest has one of its own; XMP may name one that lies elsewhere."""
    found = None
    is_png = layout[0] == ">"
    for _ in range(_MAX_SEGMENTS):
        if position >= len(data):
            return found
        first, second = struct.unpack_from(layout, data, position)
        length, kind = (first, second) if is_png else (second, first)
        if kind == box:
            return "manifest"
        if kind == b"IEND":
            return found
        end = position + 8 + length
        if kind == xmp and found is None:
            found = _provenance(data, position + 8, end)
        position = end + (4 if is_png else length & 1)
    return "manifest" if box in data else found


def _tiff(data: bytes) -> str | None:
    """The manifest's tag in the first directory, as it must be (C2PA, section A.3.3); in BigTIFF anywhere."""
    order = "<" if data.startswith(b"II") else ">"
    if 43 in data[2:4]:
        tags = [struct.pack(order + "HH", _TIFF_TAG, kind) for kind in (1, 7)]  # bytes, undefined
        return "manifest" if any(tag in data for tag in tags) else _provenance(data)
    (directory,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, directory)
    found = None
    for i in range(count):
        tag, _, length, start = struct.unpack_from(order + "HHII", data, directory + 2 + 12 * i)
        if tag == _TIFF_TAG:
            return "manifest"
        if tag == _TIFF_XMP:
            found = _provenance(data, start, start + length)
    return found
