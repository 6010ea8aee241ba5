"""EXIF and IPTC-IIM: the two old binary ways of writing authorship into a picture, read as data from strangers.

Only the first directory of EXIF is read (TIFF 6.0, section 2), which is where orientation, artist and copyright stand.
IIM (IPTC-NAA record 2) stands in a resource block of Photoshop's. Lengths and offsets are checked against the bytes
that are there; what breaks off yields what stood before.
"""

from __future__ import annotations

import struct

from curation.xmp import MAX_TEXT, tidy

_MAX_ENTRIES = 1000
_ORIENTATION = 0x0112
# Where two tags name the same field, the one listed first is taken. XP* are Windows' own, in UTF-16.
_TAGS = {
    0x010E: "description",  # ImageDescription
    0x013B: "creator",  # Artist
    0x8298: "rights",  # Copyright
    0x9C9B: "title",  # XPTitle
    0x9C9D: "creator",  # XPAuthor
    0x9C9E: "keywords",  # XPKeywords
    0x9C9F: "description",  # XPSubject
}
_WANTED = frozenset({_ORIENTATION, *_TAGS})
_UTF16 = 0x9C00
_ORDERS = {
    b"II": (struct.Struct("<I"), struct.Struct("<H"), struct.Struct("<HHII"), 0),
    b"MM": (struct.Struct(">I"), struct.Struct(">H"), struct.Struct(">HHII"), 16),
}
_DATASETS = {
    5: "title",
    25: "keywords",
    80: "creator",
    105: "title",  # Headline
    110: "credit",
    115: "source",
    116: "rights",
    120: "description",
}
_IIM, _URL = 0x0404, 0x040B


def read_exif(block: bytes) -> tuple[dict[str, str], int | None, bool]:
    """Reads a TIFF structure: fields, orientation (None where none is stated), and whether it is damaged."""
    order = _ORDERS.get(block[:2])
    if order is None or len(block) < 8:
        return {}, None, True
    pointer, short, entry, shift = order
    start = pointer.unpack_from(block, 4)[0]
    if start + 2 > len(block):
        return {}, None, True
    count = min(short.unpack_from(block, start)[0], _MAX_ENTRIES)
    entries = block[start + 2 : start + 2 + 12 * count]
    damaged = len(entries) < 12 * count
    orientation = None
    raw: dict[int, bytes] = {}
    for at, (tag, kind, length, value) in enumerate(entry.iter_unpack(entries[: len(entries) // 12 * 12])):
        if tag not in _WANTED:
            continue
        if tag == _ORIENTATION:
            orientation = value >> shift & 0xFFFF if kind == 3 else value
        elif kind in (1, 2, 7):
            begin = value if length > 4 else start + 10 + 12 * at
            damaged |= begin + length > len(block)
            raw[tag] = block[begin : begin + min(length, 4 * MAX_TEXT)]
    fields: dict[str, str] = {}
    for tag in sorted(raw):
        words = tidy(raw[tag].decode("utf-16-le", "replace") if tag >= _UTF16 else text(raw[tag]))
        if words:
            fields.setdefault(_TAGS[tag], words)
    return fields, orientation, damaged


def read_photoshop(resources: bytes) -> tuple[dict[str, str], bool]:
    """Reads Photoshop's resource blocks, IIM among them: fields, and whether they are damaged."""
    fields: dict[str, str] = {}
    position, size = 0, len(resources)
    damaged, iim = False, None
    while position + 12 <= size and resources.startswith(b"8BIM", position):
        kind = int.from_bytes(resources[position + 4 : position + 6], "big")
        start = position + 6 + (resources[position + 6] + 2 & ~1)  # behind the name, padded to even
        length = int.from_bytes(resources[start : start + 4], "big")
        block = resources[start + 4 : start + 4 + length]
        damaged |= len(block) < length or start + 4 > size
        if kind == _IIM and iim is None:
            iim = block
        elif kind == _URL and (url := tidy(text(block[:MAX_TEXT]))):
            fields["web_statement"] = url
        position = start + 4 + length + (length & 1)
    if resources[position : position + 4].strip(b"\0"):
        damaged = True
    if iim is not None:
        found, broken = _read_iim(iim)
        fields |= found
        damaged |= broken
    return fields, damaged


def _read_iim(block: bytes) -> tuple[dict[str, str], bool]:
    found: dict[int, list[bytes]] = {}
    position = 0
    while position + 5 <= len(block) and block[position] == 0x1C:
        record, dataset = block[position + 1], block[position + 2]
        length = int.from_bytes(block[position + 3 : position + 5], "big")
        if length & 0x8000:  # an extended length has no place in texts of at most 2,000 bytes
            return _iim_fields(found), True
        value = block[position + 5 : position + 5 + length]
        if record == 2 and dataset in _DATASETS:
            found.setdefault(dataset, []).append(value)
        position += 5 + length
    return _iim_fields(found), position > len(block) or bool(block[position:].strip(b"\0"))


def _iim_fields(found: dict[int, list[bytes]]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for dataset in sorted(found):
        texts = [text(value) for value in found[dataset][:200]]
        several = dataset in (25, 80)
        if words := tidy(", ".join(texts) if several else texts[0]):
            fields.setdefault(_DATASETS[dataset], words)
    return fields


def text(raw: bytes) -> str:
    """Text of unstated encoding, up to its first zero byte: UTF-8 where it is that, else Latin-1."""
    raw = raw.split(b"\0", 1)[0]
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
