"""What a file says about itself: authorship, rights and orientation, read from its original bytes.

`scan` walks the containers (JPEG, PNG, WebP, GIF; TIFF, AVIF and HEIC are searched for an XMP packet) up to the
pixels and reads EXIF, IPTC-IIM, XMP and PNG texts where they are present. It decodes nothing and re-encodes nothing,
costs microseconds where there is nothing to be read, and takes any bytes: what is damaged is said to be damaged, so
that an opt-out that could not be read is not taken for none.

Where several say the same, XMP goes before IPTC-IIM, that before PNG texts, and those before EXIF.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from curation import exif, xmp
from curation.xmp import tidy

_MAX_SEGMENTS = 10_000
_MAX_CHUNKS = 100_000
_MAX_PACKETS = 8
_XMP, _EXTENDED = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
_PNG_TEXTS = {
    **{"title": "title", "author": "creator", "description": "description", "copyright": "rights"},
    "comment": "comment",
}
_C2PA_BOX = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")


class JpegHeader(NamedTuple):
    """A JPEG's frame header.

    Attributes:
        width, height: as stored, before orientation, in pixels.
        components: 1 grey, 3 colour, 4 CMYK or YCCK.
        precision: bits of a sample.
        sof: the frame's marker: 0xC0 and 0xC1 sequential, 0xC2 progressive, others are rare (lossless, arithmetic).
        adobe_transform: of the Adobe segment: 0 RGB or CMYK, 1 YCbCr, 2 YCCK; None without one. Adobe's CMYK is
            inverted.
    """

    width: int
    height: int
    components: int
    precision: int
    sof: int
    adobe_transform: int | None

    @property
    def progressive(self) -> bool:
        return self.sof in (0xC2, 0xC6, 0xCA, 0xCE)


class Embedded(NamedTuple):
    """What was found in a file.

    Attributes:
        fields: of `title`, `description`, `creator`, `rights`, `web_statement`, `licence`, `credit`, `source`,
            `keywords`, `comment`, `data_mining` (plus:DataMining, a value on each line), `other_constraints`,
            `digital_source_type`, `has_c2pa` ("true") and `damaged` those that are there; at most some 2,000
            characters each. `damaged` lists what could not be read whole: `container`, `xmp`, `exif`, `iptc`, `text`.
        orientation: EXIF's, 1 to 8; 1 where none is stated.
        jpeg: the frame header, where the file is a JPEG that has one.
    """

    fields: dict[str, str]
    orientation: int = 1
    jpeg: JpegHeader | None = None


class _Parts:
    """The pieces of metadata that a container held, not yet read."""

    __slots__ = ("comment", "damaged", "exif", "extended", "has_c2pa", "inflated", "photoshop", "texts", "xmp")

    def __init__(self) -> None:
        self.exif: bytes | None = None
        self.xmp: list[bytes] = []
        self.extended: list[bytes] = []  # segments: GUID, full length, offset, data
        self.photoshop: list[bytes] = []
        self.texts: dict[str, str] = {}
        self.comment: bytes | None = None
        self.has_c2pa = False
        self.inflated = 0
        self.damaged: set[str] = set()

    def add_xmp(self, packet: bytes) -> None:
        if len(self.xmp) < _MAX_PACKETS:
            self.xmp.append(packet)
        else:
            self.damaged.add("xmp")


def scan(data: bytes) -> Embedded:
    """Finds what the original bytes of an image say about themselves. Takes any bytes and never raises."""
    parts = _Parts()
    jpeg = None
    try:
        if data.startswith(b"\xff\xd8"):
            jpeg = _jpeg(data, parts)
        elif data.startswith(b"\x89PNG\r\n\x1a\n"):
            _png(data, parts)
        elif data.startswith(b"RIFF") and data.startswith(b"WEBP", 8):
            _webp(data, parts)
        elif data.startswith((b"GIF87a", b"GIF89a")):
            _gif(data, parts)
        elif data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")) or data.startswith(b"ftyp", 4):
            _searched(data, parts)
    except (struct.error, IndexError):  # the file ends within a header
        parts.damaged.add("container")
    return _read(parts, jpeg)


def _read(parts: _Parts, jpeg: JpegHeader | None) -> Embedded:
    fields: dict[str, str] = {}
    damaged = parts.damaged
    if parts.xmp:
        _read_xmp(parts, fields)
    turned = fields.pop("orientation", "")
    if parts.photoshop:
        found, broken = exif.read_photoshop(b"".join(parts.photoshop))
        fields = found | fields
        if broken:
            damaged.add("iptc")
    if parts.texts:
        fields = parts.texts | fields
    orientation = None
    if parts.exif is not None:
        found, orientation, broken = exif.read_exif(parts.exif)
        if found:
            fields = found | fields
        if broken:
            damaged.add("exif")
    if parts.comment is not None and (text := tidy(exif.text(parts.comment[: 2 * xmp.MAX_TEXT]))):
        fields.setdefault("comment", text)
    if parts.has_c2pa:
        fields["has_c2pa"] = "true"
    if damaged:
        fields["damaged"] = ",".join(sorted(damaged))
    if orientation is None:  # as Pillow does: XMP's counts where EXIF states none
        orientation = int(turned) if len(turned) == 1 and turned in "12345678" else 1
    return Embedded(fields, orientation if 1 <= orientation <= 8 else 1, jpeg)


def _read_xmp(parts: _Parts, fields: dict[str, str]) -> None:
    packets = list(parts.xmp)
    mining: list[str] = []
    while packets:
        found, broken = xmp.read(packets.pop(0))
        if broken:
            parts.damaged.add("xmp")
        if guid := found.pop("extended", ""):
            whole = _extended(parts.extended, guid.encode())
            if whole is None:
                parts.damaged.add("xmp")
            else:
                packets.append(whole)
            parts.extended = []  # taken once: a packet that names itself would go on for ever
        if "data_mining" in found:
            mining.append(found.pop("data_mining"))
        for name, text in found.items():
            fields.setdefault(name, text)
    if mining:
        fields["data_mining"] = "\n".join(dict.fromkeys(line for text in mining for line in text.split("\n")))


def _extended(segments: list[bytes], guid: bytes) -> bytes | None:
    """The extended packet that the main one names, put together from its segments; None unless it is all there."""
    pieces: dict[int, bytes] = {}
    full = None
    for segment in segments:
        if segment[:32] == guid and len(segment) >= 40:
            full, offset = struct.unpack_from(">II", segment, 32)
            pieces[offset] = segment[40:]
    whole = bytearray()
    for offset in sorted(pieces):
        if offset != len(whole):
            return None
        whole += pieces[offset]
    return bytes(whole) if full == len(whole) else None


def _jpeg(data: bytes, parts: _Parts) -> JpegHeader | None:
    """Walks the segments up to the first scan."""
    frame: tuple[int, ...] | None = None
    transform = None
    position, size = 2, len(data)
    for _ in range(_MAX_SEGMENTS):
        if data[position] != 0xFF:  # decoders skip to the next marker, and so do we
            position = data.find(b"\xff", position)
            if position < 0:
                parts.damaged.add("container")
                break
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == 0xDA or marker == 0xD9:
            break
        if marker < 0xC0 or 0xD0 <= marker <= 0xD8:  # without a length
            position += 2
            continue
        end = position + 2 + (data[position + 2] << 8 | data[position + 3])
        start = position + 4
        if end < start:
            parts.damaged.add("container")
            break
        if end > size:
            parts.damaged.add("container")
        if marker >= 0xE0:
            if marker == 0xE1 or marker > 0xEA:
                found = _jpeg_segment(data, marker, start, end, parts)
                transform = found if transform is None else transform
        elif marker < 0xD0 and marker != 0xC4 and marker != 0xC8 and marker != 0xCC and frame is None:
            frame = (*struct.unpack_from(">BHHB", data, start), marker)
        position = end
    else:
        parts.damaged.add("container")
    if frame is None:
        return None
    precision, height, width, components, sof = frame
    return JpegHeader(width, height, components, precision, sof, transform)


def _jpeg_segment(data: bytes, marker: int, start: int, end: int, parts: _Parts) -> int | None:
    """Takes what is metadata; returns the transform of an Adobe segment."""
    if marker == 0xE1:
        if data.startswith(b"Exif\0", start):
            if parts.exif is None:
                parts.exif = data[start + 6 : end]
        elif data.startswith(_XMP, start):
            parts.add_xmp(data[start + len(_XMP) : end])
        elif data.startswith(_EXTENDED, start):
            parts.extended.append(data[start + len(_EXTENDED) : end])
    elif marker == 0xEB:
        parts.has_c2pa = parts.has_c2pa or data.find(b"c2pa", start, end) >= 0
    elif marker == 0xED:
        if data.startswith(_PHOTOSHOP, start):
            parts.photoshop.append(data[start + len(_PHOTOSHOP) : end])
    elif marker == 0xEE:
        if data.startswith(b"Adobe", start) and end - start >= 12:
            return data[start + 11]
    elif marker == 0xFE and parts.comment is None:
        parts.comment = data[start:end]
    return None


def _png(data: bytes, parts: _Parts) -> None:
    """Walks the chunks to the last: texts may stand behind the pixels."""
    position, size = 8, len(data)
    for _ in range(_MAX_CHUNKS):
        length, kind = struct.unpack_from(">I4s", data, position)
        start, end = position + 8, position + 8 + length
        if kind == b"IEND":
            return
        if end > size:
            parts.damaged.add("container")
        if kind == b"eXIf":
            if parts.exif is None:
                parts.exif = data[start:end]
        elif kind == b"caBX":
            parts.has_c2pa = True
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            sound = data[end : end + 4] == zlib.crc32(memoryview(data)[start - 4 : end]).to_bytes(4, "big")
            _png_text(kind, data[start:end], sound, parts)
        position = end + 4
    parts.damaged.add("container")


def _png_text(kind: bytes, chunk: bytes, sound: bool, parts: _Parts) -> None:
    keyword, _, rest = chunk.partition(b"\0")
    name = keyword.decode("latin-1").lower()
    profile = name.removeprefix("raw profile type ") if name.startswith("raw profile type ") else None
    is_xmp = name == "xml:com.adobe.xmp" or profile == "xmp"
    if not is_xmp and profile is None and name not in _PNG_TEXTS:
        return
    if kind == b"iTXt":
        compressed = rest[:1] == b"\1"
        text = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # behind language and translated keyword
    else:
        compressed = kind == b"zTXt"
        text = rest[1:] if compressed else rest
    if compressed:
        parts.inflated += 1  # many small bombs are one large one
        text, whole = _inflate(text) if parts.inflated <= 2 * _MAX_PACKETS else (b"", False)
        sound = sound and whole
    if not sound:
        parts.damaged.add("xmp" if is_xmp or profile else "text")
    if profile is not None:
        _raw_profile(profile, text, parts)
    elif is_xmp:
        parts.add_xmp(text)
    else:
        encoding = "utf-8" if kind == b"iTXt" else "latin-1"
        if words := tidy(text[: 4 * xmp.MAX_TEXT].decode(encoding, "replace")):
            parts.texts.setdefault(_PNG_TEXTS[name], words)


def _inflate(data: bytes) -> tuple[bytes, bool]:
    """Decompressed bytes, and whether they are all: neither damaged nor more than a packet may be."""
    stream = zlib.decompressobj()
    try:
        return stream.decompress(data, xmp.MAX_PACKET), stream.eof
    except zlib.error:
        return b"", False


def _raw_profile(kind: str, text: bytes, parts: _Parts) -> None:
    """ImageMagick's way of keeping profiles in PNG: a name, a length and hexadecimal digits."""
    try:
        profile = bytes.fromhex(b"".join(text.split()[2:]).decode("ascii"))
    except ValueError:
        parts.damaged.add({"xmp": "xmp", "iptc": "iptc"}.get(kind, "exif"))
        return
    if kind == "xmp":
        parts.add_xmp(profile)
    elif kind in ("exif", "app1"):
        if profile.startswith(_XMP):
            parts.add_xmp(profile[len(_XMP) :])
        elif parts.exif is None:
            parts.exif = profile.removeprefix(b"Exif\0\0")
    elif kind in ("iptc", "8bim"):
        parts.photoshop.append(profile.removeprefix(_PHOTOSHOP))


def _webp(data: bytes, parts: _Parts) -> None:
    position, size = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))  # what stands behind is not WebP's
    for _ in range(_MAX_CHUNKS):
        if position + 8 > size:
            return
        kind, length = struct.unpack_from("<4sI", data, position)
        start, end = position + 8, position + 8 + length
        if end > size:
            parts.damaged.add("container")
        if kind == b"EXIF":
            parts.exif = data[start:end].removeprefix(b"Exif\0\0")
        elif kind == b"XMP ":
            parts.add_xmp(data[start:end])
        elif kind == b"C2PA":
            parts.has_c2pa = True
        position = end + (length & 1)
    parts.damaged.add("container")


def _gif(data: bytes, parts: _Parts) -> None:
    """Extensions up to the first frame, which is where comments stand; XMP and C2PA wherever they are."""
    mark = data.find(b"\x21\xff\x0bXMP DataXMP")
    if mark >= 0:
        # The packet is not cut into sub-blocks: a trailer of 258 bytes makes readers of sub-blocks land behind it.
        end = data.find(b"\x01\xff\xfe\xfd\xfc", mark)
        parts.add_xmp(data[mark + 14 : end if end >= 0 else mark + 14 + xmp.MAX_PACKET])
        if end < 0:
            parts.damaged.add("xmp")
    parts.has_c2pa = data.find(b"\x21\xff\x0bC2PA_GIF") >= 0
    flags = data[10]
    position = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    for _ in range(_MAX_SEGMENTS):
        if data[position] != 0x21:
            return
        label, position = data[position + 1], position + 2
        block = bytearray()
        while size := data[position]:
            if len(block) < 4 * xmp.MAX_TEXT:
                block += data[position + 1 : position + 1 + size]
            position += 1 + size
        position += 1
        if label == 0xFE and parts.comment is None:
            parts.comment = bytes(block)


def _searched(data: bytes, parts: _Parts) -> None:
    """TIFF, AVIF, HEIC: XMP stands in them as one piece of plain text, so that a search finds it."""
    for opening, closing in ((b"<x:xmpmeta", b"</x:xmpmeta>"), (b"<?xpacket begin=", b"<?xpacket end=")):
        position = 0
        while not parts.damaged and (start := data.find(opening, position)) >= 0:
            end = data.find(closing, start)
            if end < 0:
                parts.damaged.add("xmp")
                end = min(len(data), start + xmp.MAX_PACKET)
            position = end + len(closing)
            parts.add_xmp(data[start : position if closing.startswith(b"</") else end])
        if parts.xmp:
            break
    if data.startswith(b"ftyp", 4):
        parts.has_c2pa = data.find(_C2PA_BOX) >= 0
    elif data[2] == 42 or data[3] == 42:  # BigTIFF has 64-bit offsets
        parts.exif = data
