"""Metadata inside files: written by Pillow and by exiftool, and by nobody who meant well."""

from __future__ import annotations

import io
import struct
import tarfile
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from curation import exif, xmp
from curation.metadata import JpegHeader, scan
from tests.curation.pictures import encoded, noise

# Pictures of 6 x 4 pixels that exiftool 12.57 wrote into: a.* all the same XMP, b.jpg IPTC and EXIF, m.jpg the same
# with big-endian EXIF, e.jpg XMP of 70,000 bytes, which JPEG has to extend.
with tarfile.open(Path(__file__).parent / "fixtures" / "exiftool.tar.xz") as archive:
    EXIFTOOL = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]

PICTURE = noise(1, (24, 16))
XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:plus="http://ns.useplus.org/ldf/xmp/1.0/"
 xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:xmpRights="http://ns.adobe.com/xap/1.0/rights/"
 ATTRIBUTES>BODY</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


def packet(body: str = "", attributes: str = "") -> bytes:
    return XMP.replace("ATTRIBUTES", attributes).replace("BODY", body).encode()


MINING = packet(attributes='plus:DataMining="http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED"')


def title(**languages: str) -> str:
    items = "".join(f'<rdf:li xml:lang="{name}">{text}</rdf:li>' for name, text in languages.items())
    return f"<dc:title><rdf:Alt>{items}</rdf:Alt></dc:title>"


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_with(*segments: bytes) -> bytes:
    plain = encoded(PICTURE, "JPEG")
    return plain[:2] + b"".join(segments) + plain[2:]


def xmp_segment(found: bytes) -> bytes:
    return segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + found)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(*chunks: bytes) -> bytes:
    plain = encoded(PICTURE)
    return plain[:-12] + b"".join(chunks) + plain[-12:]


def webp_with(*chunks: bytes) -> bytes:
    body = encoded(PICTURE, "WEBP")[8:] + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.tif", "a.avif"])
def test_what_exiftool_wrote(name: str) -> None:
    assert scan(EXIFTOOL[name]).fields == {
        "title": "A title",
        "description": "Ein Bild",  # the default language goes before English
        "creator": "Ann, Bob",
        "rights": "© Ann",
        "web_statement": "https://a.example/l",
        "licence": "https://creativecommons.org/licenses/by/4.0/",
        "credit": "Agency",
        "keywords": "a, b",
        "other_constraints": "no use",
        "digital_source_type": "http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture",
        "data_mining": "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-GENAIMLTRAINING",
    }


@pytest.mark.parametrize(("name", "orientation"), [("b.jpg", 6), ("m.jpg", 8)])
def test_iptc_goes_before_exif(name: str, orientation: int) -> None:
    found = scan(EXIFTOOL[name])
    assert found.orientation == orientation
    assert found.fields == {
        **{"title": "obj", "description": "cap", "creator": "Ünn", "rights": "(c) x", "credit": "Ag"},
        **{"keywords": "k1, k2", "web_statement": "https://u.example/"},
    }


def test_xmp_goes_before_iptc() -> None:
    titled = packet("<dc:title>of XMP</dc:title>")
    iptc = b"\x1c\2\x05\0\x07of IPTC\x1c\2\x50\0\4J\xfcrg"
    block = b"Photoshop 3.0\x008BIM\4\4\0\0" + struct.pack(">I", len(iptc)) + iptc
    for order in (1, -1):
        segments = [xmp_segment(titled), segment(0xED, block)][::order]
        assert scan(jpeg_with(*segments)).fields == {"title": "of XMP", "creator": "Jürg"}


def test_extended_xmp_is_put_together() -> None:
    whole = EXIFTOOL["e.jpg"]
    assert scan(whole).fields == {
        "credit": "Agency",
        "data_mining": "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED",
    }
    at = whole.index(b"http://ns.adobe.com/xmp/extension/\0")
    torn = whole[: at + 8] + b"?" + whole[at + 9 :]  # the first segment of the extension is not one any more
    assert scan(torn).fields["damaged"] == "xmp"
    stale = segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + struct.pack(">II", 4, 0) + b"<a/>")
    assert scan(whole[:2] + stale + whole[2:]).fields == scan(whole).fields  # of another packet than the main one


def test_exif_as_pillow_writes_it() -> None:
    tags = Image.Exif()
    tags[0x0112], tags[0x010E], tags[0x013B], tags[0x8298] = 6, "Ein Bild", "Ann", "(c) J"
    tags[0x9C9B] = "Tïtel".encode("utf-16-le") + b"\0\0"
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        found = scan(encoded(PICTURE, kind, exif=tags))
        expected = {"description": "Ein Bild", "creator": "Ann", "rights": "(c) J", "title": "Tïtel"}
        assert (found.fields, found.orientation) == (expected, 6), kind


def test_a_text_of_exif_ends_at_its_zero_byte() -> None:
    tags = Image.Exif()
    tags[0x010E] = b"red hen\0garbage"
    assert scan(encoded(PICTURE, "JPEG", exif=tags)).fields == {"description": "red hen"}


@pytest.mark.parametrize("orientation", range(10))
def test_orientation_is_pillows(orientation: int) -> None:
    tags = Image.Exif()
    tags[0x0112] = orientation
    assert scan(encoded(PICTURE, "JPEG", exif=tags)).orientation == (orientation if 1 <= orientation <= 8 else 1)


def test_orientation_of_xmp_counts_where_exif_has_none() -> None:
    tags = Image.Exif()
    tags[0x013B] = "Ann"
    turned = packet(attributes='tiff:Orientation="6"')
    data = encoded(PICTURE, "JPEG", exif=tags, xmp=turned)
    assert scan(data).orientation == Image.open(io.BytesIO(data)).getexif()[0x0112] == 6
    tags[0x0112] = 3
    assert scan(encoded(PICTURE, "JPEG", exif=tags, xmp=turned)).orientation == 3


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "TIFF", "AVIF"])
def test_xmp_as_pillow_writes_it(kind: str) -> None:
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", MINING.decode(), zip=True)
        data = encoded(PICTURE, kind, pnginfo=info)
    elif kind == "TIFF":
        data = encoded(PICTURE, kind, tiffinfo={700: MINING})
    else:
        data = encoded(PICTURE, kind, xmp=MINING)
    assert scan(data).fields == {"data_mining": "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED"}


def test_png_texts() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Title", "Zwölf", zip=True)
    info.add_itxt("Author", "Łukasz")
    info.add_text("Copyright", "© me")
    info.add_text("Software", "gimp")
    assert scan(encoded(PICTURE, pnginfo=info)).fields == {"title": "Zwölf", "creator": "Łukasz", "rights": "© me"}


def test_texts_behind_the_pixels_and_raw_profiles_of_imagemagick() -> None:
    profile = b"\nxmp\n%8d\n" % len(MINING) + MINING.hex().encode()
    data = png_with(chunk(b"zTXt", b"Raw profile type xmp\0\0" + zlib.compress(profile)))
    assert scan(data).fields == {"data_mining": "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED"}


def test_a_flipped_bit_in_a_png_packet_is_damage() -> None:
    data = bytearray(png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + MINING)))
    data[data.index(b"DMI-PRO") + 5] ^= 1
    assert scan(bytes(data)).fields["damaged"] == "xmp"


def test_comments() -> None:
    assert scan(encoded(PICTURE, "GIF", comment=b"hello")).fields == {"comment": "hello"}
    assert scan(encoded(PICTURE, "JPEG", comment=b"gr\xfc\xdfe")).fields == {"comment": "grüße"}


@pytest.mark.parametrize(
    "data",
    [
        jpeg_with(segment(0xEB, b"JP\0\1\0\0\0\1\0\0\0\x2djumb\0\0\0\x1djumdc2pa")),
        png_with(chunk(b"caBX", b"\0")),
        webp_with(b"C2PA\2\0\0\0ab"),
        encoded(PICTURE, "GIF")[:-1] + b"\x21\xff\x0bC2PA_GIF\1\0\0\1a\0;",
        encoded(PICTURE, "AVIF") + b"\0\0\0\x18uuid" + bytes.fromhex("d8fec3d61b0e483c92975828877ec481"),
    ],
)
def test_content_credentials_are_noticed(data: bytes) -> None:
    assert scan(data).fields == {"has_c2pa": "true"}


@pytest.mark.parametrize(
    ("body", "attributes", "expected"),
    [
        (title(fr="un", en="one"), "", "one"),
        (title(fr="un", **{"en-GB": "one"}), "", "one"),
        (title(fr="un", en="one", **{"x-default": "uno"}), "", "uno"),
        (title(fr="un", de="eins"), "", "un"),
        ("<dc:title> a &amp; b&#33; </dc:title>", "", "a & b!"),
        ("<dc:title><![CDATA[<b>]]></dc:title>", "", "<b>"),
        ("", 'dc:title="attr"', "attr"),
        ('<dc:title rdf:parseType="Resource"><rdf:value>v</rdf:value></dc:title>', "", "v"),
        ("<dc:subject><dc:title>deep</dc:title></dc:subject>", "", None),  # of something else
        ("<dc:x><rdf:Description><dc:title>deep</dc:title></rdf:Description></dc:x>", "", None),
    ],
)  # fmt: skip
def test_a_title_in_all_its_spellings(body: str, attributes: str, expected: str | None) -> None:
    assert xmp.read(packet(body, attributes)).fields.get("title") == expected


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16"])
def test_packets_in_utf16(encoding: str) -> None:
    text = packet("<dc:title>Tïtel</dc:title>").decode()
    text = text if encoding == "utf-16" else text.replace("\ufeff", "", 1)
    mark = "" if encoding == "utf-16" else "\ufeff"
    assert xmp.read((mark + text).encode(encoding)) == ({"title": "Tïtel"}, False)


def test_a_packet_that_names_nothing_of_ours_openly_is_read_all_the_same() -> None:
    hidden = """<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
        xmlns:p="http://ns.use&#112;lus.org/ldf/xmp/1.0/" p:DataMining="DMI-PROHIBITED"/></rdf:RDF>"""
    assert xmp.read(hidden.encode()) == ({"data_mining": "DMI-PROHIBITED"}, False)
    assert xmp.read(hidden.replace("&#112;", "-").encode()) == ({}, False)


def test_every_statement_on_mining_counts() -> None:
    allowed = packet("<plus:DataMining>DMI-ALLOWED</plus:DataMining>")
    found = scan(jpeg_with(xmp_segment(allowed), xmp_segment(MINING))).fields["data_mining"]
    assert found.split("\n") == ["DMI-ALLOWED", "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED"]
    nested = packet("<dc:x><rdf:Description><plus:DataMining>DMI-PROHIBITED</plus:DataMining></rdf:Description></dc:x>")
    assert xmp.read(nested).fields == {"data_mining": "DMI-PROHIBITED"}
    inside = packet('<dc:x><rdf:Description plus:DataMining="DMI-PROHIBITED"/></dc:x>')
    assert xmp.read(inside).fields == {"data_mining": "DMI-PROHIBITED"}
    linked = packet('<plus:DataMining rdf:resource="http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED"/>')
    assert xmp.read(linked).fields == xmp.read(MINING).fields


BOMB = packet("<dc:title>&lol9;</dc:title>").replace(
    b"<x:xmpmeta",
    b'<!DOCTYPE l [<!ENTITY lol0 "lol">'
    + b"".join(b'<!ENTITY lol%d "%s">' % (i, b"&lol%d;" % (i - 1) * 10) for i in range(1, 10))
    + b"]><x:xmpmeta",
    1,
)


@pytest.mark.parametrize(
    "found",
    [
        BOMB,
        MINING[:-60],
        packet("<dc:title>\xff</dc:title>").replace("\xff".encode(), b"\xff"),
        packet("<dc:title>" * 100_000),
        packet("<dc:x>" * 70 + "</dc:x>" * 70),
        packet("<dc:x/>" * 30_000),
        packet("<dc:title>x</dc:title><dc:title>"),
        packet("x" * xmp.MAX_PACKET),
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>',
        b'<?xml version="1.0" encoding="nonsense"?><a/>',
        b"<x:xmpmeta><rdf",
    ],
)
def test_what_a_packet_must_not_do_is_damage(found: bytes) -> None:
    before = time.process_time()
    assert xmp.read(found).damaged
    assert time.process_time() - before < 0.5


def test_what_stood_before_the_damage_still_counts() -> None:
    torn = packet("<dc:title>x</dc:title><plus:DataMining>DMI-PROHIBITED</plus:DataMining><dc:rights>")
    assert xmp.read(torn) == ({"title": "x", "data_mining": "DMI-PROHIBITED"}, True)


def test_texts_are_cut() -> None:
    assert xmp.read(packet(f"<dc:title>{'x' * 5000}</dc:title>")).fields == {"title": "x" * 2000}
    assert len(xmp.read(packet(f"<dc:subject>{'<rdf:li>kw</rdf:li>' * 9000}</dc:subject>")).fields["keywords"]) <= 2000
    many = "".join(f"<plus:DataMining>DMI-{i:04}</plus:DataMining>" for i in range(1000))
    assert xmp.read(packet(many)).fields["data_mining"].endswith("\n...")  # which no vocabulary has


def test_inflating_is_bounded() -> None:
    many = [zlib.compress(bytes(9_000_000), 9)] * 1000
    bombs = [zlib.compress(bytes(200_000_000), 9), *many]
    data = png_with(*[chunk(b"zTXt", b"Title\0\0" + bomb) for bomb in bombs])
    tracemalloc.start()
    before = time.process_time()
    assert scan(data).fields == {"damaged": "text"}
    assert time.process_time() - before < 3
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("settings", "components", "sof", "transform"),
    [
        ({}, 3, 0xC0, None),
        ({"progressive": True}, 3, 0xC2, None),
        ({"keep_rgb": True}, 3, 0xC0, 0),
        ({"mode": "L"}, 1, 0xC0, None),
        ({"mode": "CMYK"}, 4, 0xC0, 0),
    ],
)
def test_jpeg_header(settings: dict[str, object], components: int, sof: int, transform: int | None) -> None:
    picture = PICTURE.convert(str(settings.pop("mode", "RGB")))
    header = scan(encoded(picture, "JPEG", **settings)).jpeg
    assert header == JpegHeader(24, 16, components, 8, sof, transform)
    assert header.progressive == (sof == 0xC2)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"<html>", b"RIFF\0\0\0\0WEBP", b"GIF89a"])
def test_no_picture_no_header(data: bytes) -> None:
    found = scan(data)
    assert (found.jpeg, found.orientation) == (None, 1)
    assert found.fields in ({}, {"damaged": "container"})


def test_garbage_between_segments_is_skipped_as_decoders_do() -> None:
    plain = jpeg_with(xmp_segment(MINING))
    data = plain[:2] + b"\0\xe1\0\x10garbage\xff\xff" + plain[2:]
    assert scan(data).fields == scan(plain).fields
    assert scan(data).jpeg == scan(plain).jpeg


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF"])
def test_what_stands_behind_the_picture_is_no_damage(kind: str) -> None:
    assert scan(encoded(PICTURE, kind)).fields == {}
    assert scan(encoded(PICTURE, kind) + b"\xff\xe1some trailer").fields == {}


def test_endless_segments_are_damage() -> None:
    assert scan(b"\xff\xd8" + b"\xff\xe0\0\2" * 100_000 + b"\xff\xd9").fields == {"damaged": "container"}


SEEDS = (
    *EXIFTOOL.values(),
    jpeg_with(xmp_segment(MINING), segment(0xED, b"Photoshop 3.0\x008BIM\4\4\0\0\0\0\0\x09\x1c\2\x05\0\4abcd\0")),
    png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + MINING)),
)


@given(st.binary(max_size=2000))
@example(b"II*\0\x08\0\0\0\xff\xff")
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_scanned(data: bytes) -> None:
    for head in (
        b"",
        b"\xff\xd8",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\0\0\0\0WEBP",
        b"GIF89a",
        b"II*\0",
        b"\0\0\0\x20ftypavif",
    ):
        scan(head + data)
    exif.read_exif(data)
    exif.read_photoshop(b"8BIM" + data)
    xmp.read(data)


@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), max_size=6),
    st.floats(0, 1),
)
@settings(max_examples=300, deadline=None)
def test_any_mutation_is_scanned(seed: bytes, changes: list[tuple[float, bytes]], cut: float) -> None:
    data = bytearray(seed)
    for where, what in changes:
        at = int(where * (len(data) - 1))
        data[at : at + len(what)] = what
    found = scan(bytes(data[: int(cut * len(data))]))
    assert 1 <= found.orientation <= 8
    assert sum(map(len, found.fields.values())) < 16 * 2100
    for text in found.fields.values():
        text.encode()  # no lone surrogates: Arrow takes none


@given(st.integers(0, MINING.rindex(b"<?xpacket") - 1))
@settings(max_examples=200, deadline=None)
def test_a_packet_that_was_cut_is_damaged(at: int) -> None:
    cut = xmp.read(MINING[:at])
    assert cut.damaged
    assert "data_mining" not in cut.fields or at > MINING.index(b"DMI-PROHIBITED")
