"""C2PA: what real signed files say, what is made of broken ones, and that nothing but sound ones permits."""

from __future__ import annotations

import http.server
import io
import threading
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curation.manifest import Verdict
from curation.rights import c2pa
from curation.rights.verdict import combine
from tests.curation.rights.signed import MEDIA, chain, mining, plain, sign

ALLOW, DENY, UNKNOWN, ERROR = Verdict.ALLOW, Verdict.DENY, Verdict.UNKNOWN, Verdict.ERROR
CAWG, C2PA = "cawg.training-mining", "c2pa.training-mining"


def seen(data: bytes, **options: Any) -> list[tuple[str, Verdict]]:
    """Value and verdict of what is said about use."""
    found = c2pa.observe(data, **options)
    assert all(o.where == "file" and o.signal in ("c2pa", "digital_source_type") for o in found)
    return [(o.value or "", o.verdict) for o in found if o.signal == "c2pa"]


def tampered(signed: bytes) -> bytes:
    """Another picture in the place of the one that was signed: a byte before the end mark is flipped."""
    changed = bytearray(signed)
    changed[-4] ^= 0x10
    return bytes(changed)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("label", [CAWG, C2PA])
@pytest.mark.parametrize(
    ("entry", "use", "verdict"),
    [
        ("ai_generative_training", "notAllowed", DENY),
        ("ai_training", "notAllowed", DENY),
        ("data_mining", "notAllowed", DENY),
        ("ai_inference", "notAllowed", UNKNOWN),
        ("ai_generative_training", "constrained", DENY),
        ("data_mining", "constrained", DENY),
        ("ai_inference", "constrained", UNKNOWN),
        ("ai_generative_training", "allowed", ALLOW),
        ("ai_training", "allowed", UNKNOWN),
        ("data_mining", "allowed", UNKNOWN),
        ("ai_inference", "allowed", UNKNOWN),
        ("ai_generative_training", "notallowed", DENY),
        ("ai_generative_training", "Allowed", ERROR),
        ("ai_generative_training", "perhaps", ERROR),
        ("ai_generative_training", "", ERROR),
        ("ai_music_training", "notAllowed", ERROR),
        ("ai_music_training", "allowed", UNKNOWN),
    ],
)
def test_every_entry_under_both_labels(kind: str, label: str, entry: str, use: str, verdict: Verdict) -> None:
    signed = sign(plain(kind), kind, mining(label, **{entry: use}))
    prefix = label.split(".", 1)[0]
    assert seen(signed) == [(f"{label}: {prefix}.{entry}={use}", verdict)]


@pytest.mark.parametrize("kind", list(MEDIA))
def test_every_container_that_holds_manifests(kind: str) -> None:
    assert seen(sign(plain(kind), kind, mining(CAWG, ai_training="notAllowed"))) == [
        ("cawg.training-mining: cawg.ai_training=notAllowed", DENY)
    ]
    assert c2pa.observe(plain(kind)) == []


# The example of CAWG 1.1, section 3.2, and shapes that earlier drafts and other makers gave the assertion.
@pytest.mark.parametrize(
    ("label", "content", "verdicts"),
    [
        (
            CAWG,
            {
                "entries": {
                    "cawg.ai_training": {"use": "allowed"},
                    "cawg.ai_generative_training": {"use": "notAllowed"},
                    "cawg.data_mining": {"use": "constrained", "constraints_info": "may only be mined on days off"},
                }
            },
            {DENY, UNKNOWN},
        ),
        (C2PA, {"c2pa.ai_generative_training": {"use": "notAllowed"}}, {DENY}),
        (C2PA, {"c2pa.ai_generative_training": {"use": "allowed"}}, {ALLOW}),
        (CAWG, {"entries": {"cawg.ai_generative_training": "notAllowed"}}, {DENY}),
        (CAWG, {"entries": {"c2pa.ai_training": {"use": "notAllowed"}}}, {DENY}),
        (CAWG, {"entries": {"org.example.ai_generative_training": {"use": "allowed"}}}, {UNKNOWN}),
        (CAWG, {"entries": {"org.example.ai_generative_training": {"use": "notAllowed"}}}, {DENY}),
        (CAWG, {"entries": {"cawg.ai_generative_training": {"use": True}}}, {ERROR}),
        (CAWG, {"entries": {"cawg.ai_generative_training": {}}}, {ERROR}),
        (CAWG, {"entries": {}}, {ERROR}),
        (CAWG, {"entries": ["notAllowed"]}, {ERROR}),
        (CAWG, {}, {ERROR}),
        ("org.example.training-mining", {"entries": {"x.ai_training": {"use": "notAllowed"}}}, {DENY}),
        ("org.example.training-mining", {"entries": {"cawg.ai_generative_training": {"use": "allowed"}}}, {UNKNOWN}),
        ("org.example.weather", {"entries": {"cawg.ai_generative_training": {"use": "allowed"}}}, set()),
    ],
)
def test_shapes_of_the_assertion(label: str, content: dict[str, Any], verdicts: set[Verdict]) -> None:
    signed = sign(plain(), "JPEG", {"label": label, "data": content})
    assert {verdict for _, verdict in seen(signed)} == verdicts


def test_terms_are_kept_for_a_person_to_read() -> None:
    entries = {"cawg.data_mining": {"use": "constrained", "constraints_info": "ask me"}}
    ((value, verdict),) = seen(sign(plain(), "JPEG", {"label": CAWG, "data": {"entries": entries}}))
    assert (value, verdict) == ("cawg.training-mining: cawg.data_mining=constrained (ask me)", DENY)


def test_a_second_instance_of_the_assertion_counts() -> None:
    both = (mining(CAWG, ai_generative_training="allowed"), mining(CAWG, ai_generative_training="notAllowed"))
    assert {verdict for _, verdict in seen(sign(plain(), "JPEG", *both))} == {ALLOW, DENY}


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_of_a_tampered_file_the_prohibition_counts_and_the_permission_does_not(kind: str) -> None:
    signed = sign(plain(kind), kind, mining(CAWG, ai_generative_training="allowed", ai_training="notAllowed"))
    assert {verdict for _, verdict in seen(signed)} == {ALLOW, DENY}
    found = dict(seen(tampered(signed)))
    assert found["cawg.training-mining: cawg.ai_training=notAllowed"] == DENY
    (permission,) = [value for value, verdict in found.items() if verdict == UNKNOWN]
    assert "ai_generative_training=allowed, but the signature is invalid" in permission
    assert "Hash.mismatch" in permission


def test_a_permission_may_be_asked_to_come_from_a_trusted_signer() -> None:
    signed = sign(plain(), "JPEG", mining(CAWG, ai_generative_training="allowed"))
    assert [verdict for _, verdict in seen(signed)] == [ALLOW]
    ((value, verdict),) = seen(signed, trusted_only=True)
    assert verdict == UNKNOWN
    assert value.endswith("allowed, but the signer is not trusted")
    assert [verdict for _, verdict in seen(signed, trusted_only=True, anchors=chain().root.decode())] == [ALLOW]


def test_a_prohibition_need_not_come_from_a_trusted_signer() -> None:
    signed = sign(plain(), "JPEG", mining(C2PA, ai_generative_training="notAllowed"))
    assert [verdict for _, verdict in seen(signed, trusted_only=True)] == [DENY]


@pytest.mark.parametrize("relationship", ["parentOf", "componentOf"])
@pytest.mark.parametrize(("use", "expected"), [("notAllowed", DENY), ("constrained", DENY), ("allowed", UNKNOWN)])
def test_what_a_picture_was_made_from_forbids_and_does_not_permit(
    relationship: str, use: str, expected: Verdict
) -> None:
    part = sign(plain(colour=(1, 2, 3)), "JPEG", mining(C2PA, ai_generative_training=use))
    whole = sign(plain(), "JPEG", ingredients=((part, relationship),))
    ((value, verdict),) = seen(whole)
    assert f"of an ingredient ({relationship}): c2pa.ai_generative_training={use}" in value
    assert verdict == expected


def test_grandparents_forbid() -> None:
    oldest = sign(plain(), "JPEG", mining(CAWG, data_mining="notAllowed"))
    between = sign(plain(), "JPEG", ingredients=((oldest, "parentOf"),))
    youngest = sign(
        plain(), "JPEG", mining(CAWG, ai_generative_training="allowed"), ingredients=((between, "parentOf"),)
    )
    found = seen(youngest)
    assert {verdict for _, verdict in found} == {DENY, ALLOW}
    assert combine(verdict for _, verdict in found) == DENY


def test_without_the_assertion_only_the_origin_is_reported() -> None:
    made = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    actions = {
        "label": "c2pa.actions",
        "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": made}]},
    }
    (only,) = c2pa.observe(sign(plain(), "JPEG", actions=actions))
    assert (only.signal, only.value, only.verdict) == ("digital_source_type", made, UNKNOWN)


@pytest.mark.parametrize("kind", list(MEDIA))
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9])
def test_a_manifest_that_was_cut_off_is_an_error(kind: str, share: float) -> None:
    signed = sign(plain(kind), kind, mining(CAWG, ai_generative_training="allowed"))
    start = min(at for mark in (b"\xff\xebJP", b"caBX", b"C2PA", b"jumb") if (at := signed.find(mark, 8)) > 0) + 100
    cut = signed[: start + int(share * (signed.rfind(b"jumb") - start))]
    assert [verdict for _, verdict in seen(cut)] == [ERROR]


def test_what_the_library_reads_is_not_filtered_out() -> None:
    signed = sign(plain(), "JPEG", mining(CAWG, ai_generative_training="notAllowed"))
    at = signed.index(b"\xff\xeb") + 4
    assert signed[at : at + 2] == b"JP"
    assert [verdict for _, verdict in seen(signed[:at] + b"XX" + signed[at + 2 :])] == [DENY]


def test_a_damaged_box_is_an_error() -> None:
    signed = sign(plain(), "JPEG", mining(CAWG, ai_generative_training="allowed"))
    broken = signed.replace(b"jumdc2pa", b"jumdxxxx", 1)
    assert len(seen(broken)) == 1
    assert [verdict for _, verdict in seen(broken)] == [ERROR]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_remote_manifest_is_not_fetched(kind: str) -> None:
    asked = threading.Event()

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            self.send_error(404)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/manifest.c2pa"
        ((value, verdict),) = seen(sign(plain(kind), kind, mining(CAWG, ai_training="allowed"), remote=url))
        server.shutdown()
        thread.join()
    assert verdict == ERROR
    assert value.startswith("remote manifest not fetched")
    assert url in value
    assert not asked.is_set()


def test_provenance_in_xmp_without_a_manifest_is_nothing() -> None:
    buffer = io.BytesIO()
    packet = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><p>about the provenance of this</p></x:xmpmeta>"
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", xmp=packet)
    assert c2pa.marked(buffer.getvalue()) == "perhaps"
    assert c2pa.observe(buffer.getvalue()) == []


def test_many_statements_are_cut_and_what_forbids_is_kept() -> None:
    entries = {f"cawg.x{i}": {"use": "allowed"} for i in range(500)} | {"cawg.zz": {"use": "x" * 9000}}
    entries["cawg.ai_training"] = {"use": "notAllowed"}
    found = c2pa.observe(sign(plain(), "JPEG", {"label": CAWG, "data": {"entries": entries}}))
    assert found[0].verdict == DENY
    assert len(found) == 64
    assert all(len(o.value or "") <= 500 for o in found)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xeb\x00", b"RIFF", b"II*\0", b"GIF89a", b"<html>"])
def test_what_holds_no_manifest_says_nothing(data: bytes) -> None:
    assert c2pa.observe(data) == []


@pytest.mark.parametrize("data", [b"\xff\xd8" + b"\xff\xe0\x00\x02" * 20_000, b"\xff\xd8\xff\xe0\x00\x02\0" * 20_000])
def test_endless_segments_end(data: bytes) -> None:
    assert c2pa.marked(data) is None


def pixels(data: bytes) -> bytes | None:
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.convert("RGB").tobytes()
    except Exception:
        return None


@cache
def permitted(kind: str) -> bytes:
    return sign(plain(kind), kind, mining(CAWG, ai_generative_training="allowed"))


@cache
def forbidden() -> bytes:
    return sign(plain(), "JPEG", mining(CAWG, ai_generative_training="notAllowed"))


changes = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=6)), max_size=6)


def mutate(data: bytes, edits: list[tuple[float, bytes]], cut: float) -> bytes:
    changed = bytearray(data)
    for at, piece in edits:
        position = int(at * len(changed))
        changed[position : position + len(piece)] = piece
    return bytes(changed[: int(cut * len(changed))])


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF", "AVIF"]), changes, st.sampled_from([1.0, 1.0, 0.99, 0.6, 0.2]))
def test_a_mutated_file_permits_only_with_the_picture_that_was_signed(
    kind: str, edits: list[tuple[float, bytes]], cut: float
) -> None:
    changed = mutate(permitted(kind), edits, cut)
    if any(verdict == ALLOW for _, verdict in seen(changed)):
        # The manifest's own place is not under its hash: a chunk's checksum may break, and then nothing shows the file.
        assert pixels(changed) in (None, pixels(permitted(kind)))


@settings(max_examples=300, deadline=None)
@given(changes, st.sampled_from([1.0, 1.0, 0.99, 0.6]))
def test_a_mutated_prohibition_never_permits(edits: list[tuple[float, bytes]], cut: float) -> None:
    assert all(verdict != ALLOW for _, verdict in seen(mutate(forbidden(), edits, cut)))


def wrapped(kind: str, body: bytes) -> bytes:
    """Bytes in the place of a manifest, in a container that is sound."""
    picture = plain(kind)
    if kind == "PNG":
        return picture[:33] + len(body).to_bytes(4, "big") + b"caBX" + body + b"\0\0\0\0" + picture[33:]
    segment = b"JP\0\1\0\0\0\1" + body
    return picture[:2] + b"\xff\xeb" + (2 + len(segment)).to_bytes(2, "big") + segment + picture[2:]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["PNG", "JPEG"]), st.binary(max_size=200))
def test_garbage_in_the_place_of_a_manifest_is_an_error(kind: str, body: bytes) -> None:
    found = seen(wrapped(kind, b"\0\0\1\0jumb\0\0\0\x20jumdc2pa" + body))
    assert [verdict for _, verdict in found] == [ERROR]


@settings(max_examples=2000, deadline=None)
@given(st.sampled_from(sorted(MEDIA)), changes, st.floats(0, 1))
def test_pictures_without_a_manifest_never_permit(kind: str, edits: list[tuple[float, bytes]], cut: float) -> None:
    assert all(o.verdict != ALLOW for o in c2pa.observe(mutate(plain(kind), edits, cut)))
