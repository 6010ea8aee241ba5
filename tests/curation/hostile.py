"""Hostile inputs: one small file of every kind of trouble that a heap of images brings, and what must come of it.

`hostiles(seed)` makes the files, the same bytes for the same seed; other seeds give other pictures and other damage.
"""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pillow_heif
from PIL import Image

from tests.curation.pictures import encoded, noise

PASSED = frozenset({"passed"})
REFUSED = frozenset({"not_an_image"})
UNSUPPORTED = frozenset({"unsupported_format"})
HUGE = frozenset({"too_many_pixels"})
CUT = frozenset({"truncated"})
BROKEN = frozenset({"truncated", "corrupt", "not_an_image"})
ODD = BROKEN | UNSUPPORTED
ANYTHING = ODD | HUGE | PASSED | {"empty"}

EXTENSIONS = {
    "JPEG": ".jpg",
    "PNG": ".png",
    "WEBP": ".webp",
    "GIF": ".gif",
    "TIFF": ".tif",
    "AVIF": ".avif",
    "HEIF": ".heic",
}


@dataclass(frozen=True)
class Hostile:
    """A file, and the reasons one of which its row must have: `passed` says that a picture must come out."""

    kind: str
    name: bytes
    data: bytes
    expected: frozenset[str]
    format: str | None = None
    picture: Image.Image | None = None  # what must be seen, upright, where something must


def hostiles(seed: int = 0, big: int = 2**24) -> list[Hostile]:
    """One file of every kind; `big` is the size of the huge metadata, in bytes."""
    picture = noise(1_000_000 + seed)
    groups = (
        _modes(picture),
        _wrappings(picture),
        _orientations(picture),
        _metadata(picture, big),
        _shapes(picture),
        _animations(picture),
        _truncated(picture),
        _headers(picture),
        _tiffs(picture),
        _bombs(picture),
        _unsupported(picture),
        _no_images(picture, seed),
        _mutants(picture, seed),
    )
    found = [_named(item, seed) for group in groups for item in group]
    return [*found, *_names(seed)]


def write(folder: Path, items: Iterable[Hostile]) -> None:
    """Writes the files into a folder."""
    for item in items:
        with open(bytes(folder) + b"/" + item.name, "wb") as file:
            file.write(item.data)


def listed_as(name: bytes) -> str:
    """What a manifest calls a file of that name: bytes that are not UTF-8 become backslash escapes."""
    return name.decode("utf-8", "backslashreplace")


def _named(item: Hostile, seed: int) -> Hostile:
    kind, dot, extension = item.name.partition(b".")
    return Hostile(
        item.kind, kind + f"-{seed:05d}".encode() + dot + extension, item.data, item.expected, item.format, item.picture
    )


def _passes(kind: str, data: bytes, writer: str, picture: Image.Image | None, extension: str | None = None) -> Hostile:
    name = kind + (extension or EXTENSIONS[writer])
    return Hostile(kind, name.encode(), data, PASSED, writer, picture)


def _fails(kind: str, data: bytes, expected: frozenset[str], extension: str = ".jpg") -> Hostile:
    return Hostile(kind, (kind + extension).encode(), data, expected)


@lru_cache(maxsize=256)
def _cached(kind: str, pixels: bytes, size: tuple[int, int]) -> bytes:
    return encoded(Image.frombytes("RGB", size, pixels), kind)


def file(picture: Image.Image, writer: str) -> bytes:
    """The picture as a plain file of a format; AVIF and HEIC are slow to write, so they are remembered."""
    if writer == "HEIF":
        pillow_heif.register_heif_opener()
    return _cached(writer, picture.tobytes(), picture.size)


def _modes(picture: Image.Image) -> Iterator[Hostile]:
    """Colours as files have them: all of these are pictures."""
    cmyk = encoded(picture.convert("CMYK"), "JPEG", quality=95)
    yield _passes("cmyk", cmyk, "JPEG", picture)
    at = cmyk.index(b"Adobe") + 11
    yield _passes("ycck", cmyk[:at] + b"\x02" + cmyk[at + 1 :], "JPEG", None)
    yield _passes("adobe-rgb", encoded(picture, "JPEG", keep_rgb=True, quality=95), "JPEG", picture)
    yield _passes("grey-jpeg", encoded(picture.convert("L"), "JPEG"), "JPEG", picture.convert("L").convert("RGB"))
    for mode in ("L", "LA", "P", "RGBA", "1"):
        shown = picture.convert("L" if mode == "LA" else "RGB").convert(mode)
        yield _passes(f"png-{mode.lower()}", encoded(shown), "PNG", shown.convert("RGB"))
    palette = picture.quantize(16)
    yield _passes("palette-transparent", encoded(palette, "PNG", transparency=palette.getpixel((0, 0))), "PNG", None)
    yield _passes("rgb-transparent", encoded(picture, "PNG", transparency=picture.getpixel((0, 0))), "PNG", None)
    clear = picture.convert("RGBA")
    clear.putalpha(0)
    white = Image.new("RGB", picture.size, "white")
    for writer in ("PNG", "WEBP", "TIFF"):
        yield _passes(f"clear-{writer.lower()}", encoded(clear, writer), writer, white)
    grey = np.asarray(picture.convert("L"), np.uint16) * 257
    yield _passes("grey-16", encoded(Image.fromarray(grey)), "PNG", picture.convert("L").convert("RGB"))
    deep = np.asarray(picture).astype(">u2") * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    yield _passes("rgb-16", png(*picture.size, zlib.compress(rows), depth=16, colour=2), "PNG", picture)
    yield _passes("interlaced", _interlaced(picture), "PNG", picture)


def _wrappings(picture: Image.Image) -> Iterator[Hostile]:
    """Right pictures in wrong wrappings."""
    for writer in EXTENSIONS:
        data = file(picture, writer)
        yield _passes(f"plain-{writer.lower()}", data, writer, picture)
        wrong = ".png" if writer != "PNG" else ".jpg"
        yield _passes(f"misnamed-{writer.lower()}", data, writer, picture, wrong)
    jpeg = file(picture, "JPEG")
    yield _passes("no-extension", jpeg, "JPEG", picture, "")
    yield _passes("called-html", jpeg, "JPEG", picture, ".html")
    yield _passes("trailing-garbage", jpeg + bytes(range(256)) * 40, "JPEG", picture)
    yield _passes("trailing-zip", jpeg + b"PK\x03\x04" + bytes(200), "JPEG", picture)
    yield _passes("two-in-one", jpeg + encoded(noise(1), "JPEG"), "JPEG", picture)
    yield _passes("png-trailing", file(picture, "PNG") + b"<script>alert(1)</script>", "PNG", picture)
    yield _passes("progressive", encoded(picture, "JPEG", progressive=True), "JPEG", picture)
    yield _passes("restarts", encoded(picture, "JPEG", restart_marker_blocks=2), "JPEG", picture)
    yield _passes("subsampled-none", encoded(picture, "JPEG", subsampling=0), "JPEG", picture)
    yield _passes("quality-1", encoded(picture, "JPEG", quality=1), "JPEG", None)
    yield _passes("mpo", encoded(picture, "MPO", save_all=True, append_images=[noise(1)]), "JPEG", picture)
    yield _passes("thumbnail", _with_segments(jpeg, [(0xE0, b"JFXX\0\x10" + jpeg[:4000])]), "JPEG", picture)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def _orientations(picture: Image.Image) -> Iterator[Hostile]:
    """Every orientation EXIF knows, and some that it does not; those are not to turn anything."""
    for writer in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"):
        for value in (*range(1, 9), 0, 9, 65535) if writer not in ("AVIF", "HEIF") else (1, 3, 6, 8):
            exif = Image.Exif()
            exif[0x0112] = value
            # HEIC turns pictures by a property of its own, and what EXIF says beside it does not count (HEIF, 6.5.10).
            stored = picture.transpose(_TURNS[value]) if value in _TURNS and writer != "HEIF" else picture
            yield _passes(f"turned-{writer.lower()}-{value}", encoded(stored, writer, exif=exif), writer, picture)
    for kind, block in _exif_blocks():
        jpeg = _with_segments(file(picture, "JPEG"), [(0xE1, b"Exif\0\0" + block)])
        yield _passes(f"exif-{kind}", jpeg, "JPEG", picture)
        yield _passes(f"exif-png-{kind}", _with_chunk(file(picture, "PNG"), b"eXIf", block), "PNG", picture)


def _exif_blocks() -> Iterator[tuple[str, bytes]]:
    """TIFF blocks as they should not be; none of them says 2 to 8."""
    head = b"II*\0\x08\0\0\0"
    yield "empty", b""
    yield "header-only", head
    yield "noise", random.Random(0).randbytes(500)
    yield "orientation-text", head + struct.pack("<HHHI4sI", 1, 0x0112, 2, 4, b"six\0", 0)
    yield "orientation-many", head + struct.pack("<HHHIHHI", 1, 0x0112, 3, 2**31, 1, 0, 0)
    yield "orientation-rational", head + struct.pack("<HHHIII", 1, 0x0112, 5, 1, 10**6, 0)
    yield "ten-thousand-entries", head + struct.pack("<H", 10_000) + bytes(24)
    yield "loop", head + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8)
    yield "count", head + struct.pack("<HHHIII", 1, 0x010E, 2, 2**32 - 1, 8, 0)
    yield "offset", b"II*\0" + struct.pack("<I", 2**32 - 2) + bytes(8)
    yield "byte-order", b"XX*\0\x08\0\0\0" + bytes(20)
    yield "not-text", head + struct.pack("<HHHI4sI", 1, 0x013B, 2, 4, b"\xff\xfe\xc3\x28", 0)


def _metadata(picture: Image.Image, big: int) -> Iterator[Hostile]:
    """Metadata by the megabyte, and metadata that is a trap for whoever parses it."""
    jpeg, shape = file(picture, "JPEG"), picture
    part = 65_000
    count = max(1, big // part)
    xmp = b"http://ns.adobe.com/xap/1.0/\0"
    yield _passes("huge-xmp", _with_segments(jpeg, [(0xE1, xmp + b" " * part)] * count), "JPEG", shape)
    extended = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32
    parts = [(0xE1, extended + struct.pack(">II", 2**32 - 1, n * part) + b"<" * part) for n in range(count)]
    yield _passes("huge-xmp-extension", _with_segments(jpeg, parts), "JPEG", shape)
    profile = [(0xE2, b"ICC_PROFILE\0" + bytes([n % 255 + 1, 255]) + bytes(part)) for n in range(min(count, 255))]
    yield _passes("huge-icc", _with_segments(jpeg, profile), "JPEG", shape)
    yield _passes("huge-comment", _with_segments(jpeg, [(0xFE, b"\xff\xd8" * (part // 2))] * count), "JPEG", shape)
    yield _passes(
        "huge-iptc", _with_segments(jpeg, [(0xED, b"Photoshop 3.0\x008BIM" + bytes(part))] * count), "JPEG", shape
    )
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x9286, 7, part - 40, 26, 0) + b"U" * (part - 40)
    yield _passes("huge-exif-comment", _with_segments(jpeg, [(0xE1, exif)]), "JPEG", shape)
    plain = file(picture, "PNG")
    yield _passes("huge-text", _with_chunk(plain, b"tEXt", b"Comment\0" + b"x" * big), "PNG", shape)
    itxt = b"XML:com.adobe.xmp\0\0\0\0\0" + b" " * big
    yield _passes("huge-itxt", _with_chunk(plain, b"iTXt", itxt), "PNG", shape)
    yield Hostile(
        "text-bomb", b"text-bomb.png", _with_chunk(plain, b"zTXt", b"Comment\0\0" + _zeros(2**28)), PASSED | BROKEN
    )
    profile_bomb = _with_chunk(plain, b"iCCP", b"icc\0\0" + _zeros(2**28))
    yield Hostile("icc-bomb", b"icc-bomb.png", profile_bomb, PASSED | BROKEN)
    yield _passes("many-texts", _with_chunk(plain, b"tEXt", b"Comment\0x", 20_000), "PNG", shape)
    webp = file(picture, "WEBP")
    body = webp[12:] if webp[12:16] == b"VP8X" else _vp8x(picture.size, 0x04) + webp[12:]
    body += b"XMP " + struct.pack("<I", big) + b" " * big
    yield _passes("huge-webp-xmp", b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body, "WEBP", shape)
    gif = encoded(picture.quantize(64), "GIF")
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * (big // 256) + b"\0"
    at = gif.index(b",", 13 + 3 * 2 ** ((gif[10] & 7) + 1))
    yield _passes("huge-gif-comment", gif[:at] + comment + gif[at:], "GIF", shape)
    laughs = b"<!DOCTYPE x [<!ENTITY a0 'ha'>%s]><x:xmpmeta xmlns:x='adobe:ns:meta/'>&a29;</x:xmpmeta>" % b"".join(
        b"<!ENTITY a%d '&a%d;&a%d;'>" % (n, n - 1, n - 1) for n in range(1, 30)
    )
    yield _passes("xmp-laughs", _with_segments(jpeg, [(0xE1, xmp + laughs)]), "JPEG", shape)
    outside = (
        b"<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><x:xmpmeta xmlns:x='adobe:ns:meta/'>&a;</x:xmpmeta>"
    )
    yield _passes("xmp-entity", _with_segments(jpeg, [(0xE1, xmp + outside)]), "JPEG", shape)
    yield _passes("xmp-deep", _with_segments(jpeg, [(0xE1, xmp + b"<a>" * 20_000)]), "JPEG", shape)
    yield _passes(
        "xmp-not-utf8",
        _with_segments(jpeg, [(0xE1, xmp + b"<x:xmpmeta>\xff\xfe\0\xc3\x28</x:xmpmeta>")]),
        "JPEG",
        shape,
    )


def _shapes(picture: Image.Image) -> Iterator[Hostile]:
    """Sizes at the edges of what a picture is."""
    for writer in EXTENSIONS:
        dot = picture.crop((0, 0, 1, 1))
        yield _passes(f"dot-{writer.lower()}", file(dot, writer), writer, dot)
    for writer in ("JPEG", "PNG", "WEBP"):
        tall = picture.resize((1, 10_000))
        yield _passes(f"tall-{writer.lower()}", encoded(tall, writer), writer, tall)
        yield _passes(
            f"wide-{writer.lower()}", encoded(tall.transpose(Image.Transpose.ROTATE_90), writer), writer, None
        )
    yield _passes("two-wide", file(picture.crop((0, 0, 2, 64)), "JPEG"), "JPEG", None)


def _animations(picture: Image.Image) -> Iterator[Hostile]:
    """Several pictures in a file: the first one counts."""
    others = [noise(n) for n in (2, 3, 4)]
    for writer, kind in (("GIF", "gif"), ("WEBP", "webp"), ("PNG", "apng"), ("TIFF", "tiff"), ("AVIF", "avif")):
        settings = {"lossless": True} if writer == "WEBP" else {}
        data = encoded(picture, writer, save_all=True, append_images=others, **settings)
        data = _undated(data) if writer == "AVIF" else data
        yield _passes(f"animated-{kind}", data, writer, picture)
    hidden = encoded(picture, "PNG", save_all=True, append_images=others, default_image=True)
    yield _passes("apng-hidden-default", hidden, "PNG", picture)
    long = encoded(picture.quantize(8), "GIF", save_all=True, append_images=[noise(n).quantize(8) for n in range(40)])
    yield _passes("long-gif", long, "GIF", picture.quantize(8).convert("RGB"))
    yield _fails("animated-cut-in-frame-3", long[: len(long) // 2], PASSED | CUT, ".gif")


def _truncated(picture: Image.Image) -> Iterator[Hostile]:
    """Files that end early, at several points."""
    large = picture.resize((256, 256))
    for writer, extension in EXTENSIONS.items():
        data = file(large, writer)
        for share in (0.02, 0.1, 0.5, 0.9):
            certain = writer in ("JPEG", "PNG", "GIF") and share >= 0.5
            # A TIFF keeps its directory at either end, and a WebP says "broken" for all that ails it. Of an AVIF or a
            # HEIC so little may be left that nobody can say whether it was one that can be decoded.
            expected = CUT if certain else ODD if writer in ("AVIF", "HEIF") else BROKEN
            yield _fails(f"cut-{writer.lower()}-{share}", data[: int(len(data) * share)], expected, extension)
        yield _fails(f"cut-{writer.lower()}-last", data[:-1], BROKEN | PASSED, extension)
    for writer in ("JPEG", "PNG", "WEBP", "GIF"):
        for size in (2, 4, 12, 25):
            yield _fails(f"stub-{writer.lower()}-{size}", file(large, writer)[:size], BROKEN, EXTENSIONS[writer])
    progressive = encoded(large, "JPEG", progressive=True)
    yield _fails("cut-progressive", progressive[: len(progressive) // 2], CUT)
    hole = bytearray(file(large, "JPEG"))
    hole[len(hole) // 2 :] = bytes(len(hole) - len(hole) // 2)
    yield _fails("zeros-after-half", bytes(hole), CUT | BROKEN | PASSED)  # as a download that was preallocated


def _headers(picture: Image.Image) -> Iterator[Hostile]:
    """JPEGs and PNGs whose headers say what few decoders can do, or what nobody can."""
    jpeg = file(picture, "JPEG")
    frame = jpeg.index(b"\xff\xc0")
    for kind, marker, expected in (
        ("arithmetic", 0xC9, ODD | PASSED),
        ("lossless", 0xC3, ODD),
        ("hierarchical", 0xC5, ODD),
        ("extended", 0xC1, PASSED),
    ):
        yield _fails(f"sof-{kind}", jpeg[: frame + 1] + bytes([marker]) + jpeg[frame + 2 :], expected)
    yield _fails("twelve-bit", _patched(jpeg, frame + 4, b"\x0c"), ODD)
    yield _fails("no-height", _patched(jpeg, frame + 5, b"\0\0"), ODD)
    yield _fails("no-width", _patched(jpeg, frame + 7, b"\0\0"), ODD)
    yield _fails("five-components", _patched(jpeg, frame + 9, b"\x05"), ODD)
    yield _fails("taller-than-told", _patched(jpeg, frame + 5, struct.pack(">H", 2_000)), BROKEN)
    yield _fails("sampling-zero", _patched(jpeg, frame + 11, b"\0"), ODD)
    tables = jpeg.index(b"\xff\xc4")
    scan = jpeg.index(b"\xff\xda")
    yield _fails("no-huffman", jpeg[:tables] + jpeg[scan:], BROKEN | PASSED)
    yield _fails("no-quantisation", jpeg.replace(b"\xff\xdb", b"\xff\xfe"), BROKEN | PASSED)
    yield _fails("no-frame", jpeg[:frame] + jpeg[scan:], ODD)
    yield _fails("leading-garbage", b"\r\n" + jpeg, REFUSED)
    yield _fails("only-start-and-end", b"\xff\xd8\xff\xd9", BROKEN)
    yield _fails("only-fill", b"\xff\xd8" + b"\xff" * 5_000, BROKEN)
    png_file = file(picture, "PNG")
    yield _fails("png-no-width", png(0, 8, zlib.compress(bytes(64))), ODD, ".png")
    yield _fails("png-bad-crc", _patched(png_file, 29, b"\0\0\0\0"), BROKEN, ".png")
    yield _fails("png-bad-depth", png(8, 8, zlib.compress(bytes(80)), depth=3), ODD, ".png")
    yield _fails("png-no-data", png(8, 8, b""), BROKEN, ".png")
    yield _fails("png-bad-zlib", png(64, 64, b"\x78\x9c" + b"\xff" * 200), BROKEN, ".png")
    yield _fails("png-short-data", png(64, 64, zlib.compress(bytes(65 * 10))), BROKEN | PASSED, ".png")
    yield _fails("png-chunk-length", png_file[:33] + b"\xff\xff\xff\xff" + png_file[37:], BROKEN | PASSED, ".png")
    yield _fails("png-no-palette", png(8, 8, zlib.compress(bytes(72)), colour=3), BROKEN | PASSED, ".png")
    # What a transfer in text mode leaves of a PNG.
    yield _fails("png-text-mode", png_file.replace(b"\r\n", b"\n"), BROKEN, ".png")


def _tiffs(picture: Image.Image) -> Iterator[Hostile]:
    """A TIFF can be nearly anything."""
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield _passes(f"tiff-{compression}", encoded(picture, "TIFF", compression=compression), "TIFF", picture)
    bilevel = picture.convert("1")
    yield _passes("tiff-fax", encoded(bilevel, "TIFF", compression="group4"), "TIFF", bilevel.convert("RGB"))
    yield _passes("tiff-cmyk", encoded(picture.convert("CMYK"), "TIFF"), "TIFF", picture)
    yield _passes("tiff-big", encoded(picture, "TIFF", big_tiff=True), "TIFF", picture)
    grey = picture.convert("L")
    deep = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    yield _passes("tiff-16", encoded(deep, "TIFF"), "TIFF", grey.convert("RGB"))
    yield _passes("tiff-float", encoded(grey.convert("F"), "TIFF"), "TIFF", grey.convert("RGB"))
    yield _fails(
        "tiff-float-nan", encoded(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF"), PASSED, ".tif"
    )
    yield _fails("tiff-odd-compression", tiff(8, 8, bytes(64), compression=34_892), ODD, ".tif")
    yield _fails("tiff-far-strip", tiff(8, 8, bytes(64), offset=2**31), BROKEN, ".tif")
    yield _fails("tiff-no-directory", b"II*\0\x08\0\0\0\0\0\0\0\0\0", ODD, ".tif")
    yield _fails("tiff-loop", tiff(8, 8, bytes(64), following=8), PASSED, ".tif")


def _bombs(picture: Image.Image) -> Iterator[Hostile]:
    """Little files that unpack to much."""
    yield _fails("bomb-png-header", png(60_000, 60_000, zlib.compress(bytes(8))), HUGE, ".png")
    yield _fails("bomb-png", png(60_000, 60_000, _zeros(60_000 * 7_501), depth=1), HUGE, ".png")
    yield _fails("bomb-png-overfull", png(8, 8, _zeros(2**28)), PASSED | BROKEN, ".png")
    yield _fails("bomb-png-wide", png(2**31 - 1, 1, zlib.compress(bytes(8))), HUGE | ODD, ".png")
    gif = encoded(picture.quantize(8), "GIF")
    yield _fails("bomb-gif", _patched(gif, 6, b"\xff\xff\xff\xff"), HUGE, ".gif")
    at = gif.index(b",", 13 + 3 * 2 ** ((gif[10] & 7) + 1)) + 5
    yield _fails("bomb-gif-frame", _patched(gif, at, b"\xff\xff\xff\xff"), HUGE | BROKEN, ".gif")
    webp = encoded(picture, "WEBP", save_all=True, append_images=[noise(2)])
    side = struct.pack("<I", 16_382)[:3]
    yield _fails("bomb-webp", _patched(webp, webp.index(b"VP8X") + 12, side * 2), HUGE | BROKEN, ".webp")
    yield _fails("bomb-tiff", tiff(100_000, 100_000, _zeros(10**6), compression=8), HUGE, ".tif")
    jpeg = file(picture, "JPEG")
    frame = jpeg.index(b"\xff\xc0")
    yield _fails("bomb-jpeg", _patched(jpeg, frame + 5, struct.pack(">HH", 65_500, 65_500)), HUGE)
    for writer in ("AVIF", "HEIF"):
        data = file(picture, writer)
        large = data.replace(
            b"ispe" + bytes(4) + struct.pack(">II", *picture.size), b"ispe" + bytes(4) + b"\0\0\xff\xff" * 2
        )
        yield _fails(f"bomb-{writer.lower()}", large, HUGE | ODD, EXTENSIONS[writer])
    yield _fails("bomb-scans", scans(2000, 2600), BROKEN)


def _unsupported(picture: Image.Image) -> Iterator[Hostile]:
    """Real pictures in formats that are not asked for."""
    for writer in ("BMP", "ICO", "PPM", "PCX", "JPEG2000", "DDS", "SGI", "EPS"):
        shown = picture.resize((32, 32)) if writer == "ICO" else picture
        yield _fails(f"format-{writer.lower()}", encoded(shown, writer), UNSUPPORTED, ".jpg")
    yield _fails("format-psd", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(200), ODD, ".jpg")


def _no_images(picture: Image.Image, seed: int) -> Iterator[Hostile]:
    """What comes instead of pictures."""
    yield _fails("empty", b"", frozenset({"empty"}))
    for value in (0, 10, 255):
        yield _fails(f"one-byte-{value}", bytes([value]), REFUSED)
    page = "<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>no such picture ü</body></html>"
    yield _fails("html", page.encode(), REFUSED)
    yield _fails("html-after-blank", b"\n\r\n  " + page.encode(), REFUSED)
    yield _fails("html-utf16", page.encode("utf-16"), REFUSED)
    yield _fails("svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', REFUSED, ".svg")
    yield _fails("svg-bom", b'\xef\xbb\xbf<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', REFUSED)
    yield _fails("json", json.dumps({"error": {"code": 429, "message": "slow down"}}).encode(), REFUSED)
    yield _fails("text", b"This image is no longer available.\n", REFUSED)
    yield _fails(
        "lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n", REFUSED
    )
    yield _fails("gzip", zlib.compress(file(picture, "JPEG"), wbits=31), REFUSED)
    yield _fails("zip", b"PK\x03\x04" + bytes(100), REFUSED)
    yield _fails("base64", b"data:image/png;base64,iVBORw0KGgo=", REFUSED)
    yield _fails("pdf", b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\n", ODD)
    yield _fails("mp4", b"\0\0\0\x20ftypisom" + bytes(200), ODD, ".mp4")
    yield _fails("zeros", bytes(10_000), REFUSED)
    chance = random.Random(seed)
    yield _fails("random", b"\x01" + chance.randbytes(4_000), REFUSED)
    for kind, magic in (
        ("jpeg", b"\xff\xd8\xff\xe0\0\x10JFIF\0"),
        ("png", b"\x89PNG\r\n\x1a\n"),
        ("gif", b"GIF89a"),
        ("webp", b"RIFF\xff\xff\0\0WEBPVP8 "),
        ("tiff", b"II*\0"),
        ("tiff-mm", b"MM\0*"),
        ("avif", b"\0\0\0\x1cftypavif\0\0\0\0mif1avif"),
        ("heic", b"\0\0\0\x1cftypheic\0\0\0\0mif1heic"),
    ):
        yield _fails(f"random-{kind}", magic + chance.randbytes(4_000), ODD | HUGE)


def _mutants(picture: Image.Image, seed: int) -> Iterator[Hostile]:
    """Valid files with some bytes changed, moved or left out: anything may come of them but a crash."""
    for writer, extension in EXTENSIONS.items():
        for turn in range(3):
            data = mutated(file(picture, writer), random.Random(f"{seed}/{writer}/{turn}"))
            yield _fails(f"mutant-{writer.lower()}-{turn}", data, ANYTHING, extension)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The file with up to 30 random damages: bytes changed, runs cut out, doubled or blanked."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 30)):
        if not found:
            break
        at, run = chance.randrange(len(found)), chance.randint(1, 64)
        what = chance.randrange(10)
        if what < 6:
            found[at] = chance.randrange(256)
        elif what == 6:
            del found[at : at + run]
        elif what == 7:
            found[at:at] = found[at : at + run]
        elif what == 8:
            found[at : at + run] = bytes(len(found[at : at + run]))
        else:
            found[at : at + 4] = chance.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"))
    return bytes(found)


_BYTE_NAMES = (
    *(b"caf\xe9 %s.jpg", b"\xff\xfe%s.jpg", b"\xed\xa0\x80%s.jpg", b"bad\xff%s.jpg"),
    *(b"line\nbreak %s.jpg", b"tab\t%s.jpg", b"bell\x07%s.jpg", b"return\r\n%s.jpg", b"\x7f%s.jpg"),
    *(b"'quotes' \"%s\".jpg", b"comma, %s; semicolon.jpg", b"back\\slash %s.jpg", b"dollar $(%s) `id`.jpg"),
    *(b"-rf %s.jpg", b" %s leading blank.jpg", b"trailing dot %s.", b"percent %%2e%%2e%%2f%s %%00.jpg"),
    *(b"hash#%s?query=1&b=2.jpg", b"http:%s.jpg", b"glob *?[a-z]{b,c} %s.jpg", b"~%s.jpg", b"CON%s.jpg"),
    *(b"x" * 246 + b"%s.jpg", b"a.tar.gz.part %s", b"pictures %s.csv"),
)
_TEXT_NAMES = (
    *("日本語 %s.jpg", "🦉 %s.jpg", "\u202egpj.%s.jpg", "e\u0301 %s.jpg", "é %s.jpg"),
    *("\u2028%s.jpg", "\ufeff%s.jpg", "ü" * 123 + "%s.jpg"),
)


def _names(seed: int) -> Iterator[Hostile]:
    """Good pictures under names that break tables, shells and decoders of text."""
    forms = (*_BYTE_NAMES, *(name.encode() for name in _TEXT_NAMES))
    for index, form in enumerate(forms):
        name = form.replace(b"%s", f"{seed:05d}".encode(), 1).replace(b"%%", b"%")
        shown = noise(2_000_000 + seed * 100 + index)
        yield Hostile(f"name-{index}", name, file(shown, "JPEG"), PASSED, "JPEG", shown)


def png(width: int, height: int, data: bytes, *, depth: int = 8, colour: int = 0, interlace: int = 0) -> bytes:
    """A PNG of the given header and zlib stream, whether they agree or not."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)


def tiff(
    width: int, height: int, data: bytes, *, compression: int = 1, offset: int | None = None, following: int = 0
) -> bytes:
    """A grey TIFF of one strip that lies behind the directory, or wherever `offset` says."""
    tags = {
        256: width,
        257: height,
        258: 8,
        259: compression,
        262: 1,
        273: 8 + 2 + 12 * 9 + 4 if offset is None else offset,
        277: 1,
        278: height,
        279: len(data),
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", following) + data


def scans(side: int, count: int) -> bytes:
    """A grey progressive JPEG whose last scan comes `count` times: each costs a pass over all of the picture."""
    jpeg = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * count + jpeg[-2:]


@lru_cache(maxsize=8)
def _zeros(size: int) -> bytes:
    """A zlib stream of that many zeros."""
    stream = zlib.compressobj(9)
    block = bytes(2**20)
    parts = [stream.compress(block[: min(2**20, size - at)]) for at in range(0, size, 2**20)]
    return b"".join(parts) + stream.flush()


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _with_chunk(data: bytes, name: bytes, body: bytes, times: int = 1) -> bytes:
    """A PNG with a chunk more behind its header."""
    return data[:33] + _chunk(name, body) * times + data[33:]


def _with_segments(data: bytes, segments: list[tuple[int, bytes]]) -> bytes:
    """A JPEG with some segments more at its start."""
    made = (b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in segments)
    return data[:2] + b"".join(made) + data[2:]


def _patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _undated(data: bytes) -> bytes:
    """An AVIF sequence without the hour of its making."""
    for box in (b"mvhd", b"tkhd", b"mdhd"):
        at = data.index(box) + 4
        data = _patched(data, at + 4, bytes(16 if data[at] else 8))
    return data


def _vp8x(size: tuple[int, int], flags: int) -> bytes:
    sides = b"".join(struct.pack("<I", side - 1)[:3] for side in size)
    return b"VP8X" + struct.pack("<II", 10, flags) + sides


def _interlaced(picture: Image.Image) -> bytes:
    """An Adam7 PNG, which Pillow reads but does not write."""
    pixels = np.asarray(picture)
    rows = []
    for x, y, across, down in (
        *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
        *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
    ):
        rows += [b"\0" + row.tobytes() for row in pixels[y::down, x::across] if row.size]
    return png(*picture.size, zlib.compress(b"".join(rows)), colour=2, interlace=1)
