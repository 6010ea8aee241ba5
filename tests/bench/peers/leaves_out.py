"""What each tool leaves out: every tool is given a folder of difficult files, and is killed half-way and run again.

Nothing here is taken from a tool's documentation: what a cell says was read off the tool's own output.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from tests.bench.peers.corpus import Difficult, difficult
from tests.bench.peers.sides import Side, ToolError

Outcomes = dict[str, str]  # name of a file: what came of it
ENDS = "ends the whole run"


def _gone(scratch: Path, file: Difficult) -> str:
    """Of a file that the output does not know: whether at least the log does."""
    named = file.name in (scratch / "log.txt").read_bytes()
    return "gone, but for a line in the log" if named else "gone without a word"


def outcomes(side: Side, read: Callable[[Path, list[Difficult]], Outcomes], scratch: Path) -> Outcomes:
    """What came of every difficult file: all in one run, or each in a run of its own when that one dies."""
    files = difficult()
    found = _run(side, read, files, scratch)
    if found is not None:
        return found
    plain = [file for file in files if not file.what]
    found = {}
    for file in files:
        if file.what:
            alone = _run(side, read, [*plain, file], scratch)
            found[file.text] = ENDS if alone is None else alone[file.text]
    return found


def _run(
    side: Side, read: Callable[[Path, list[Difficult]], Outcomes], files: list[Difficult], scratch: Path
) -> Outcomes | None:
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder, empty = Path(name) / "pictures", Path(name) / "work"
        folder.mkdir()
        empty.mkdir()
        for file in files:
            with open(bytes(folder) + b"/" + file.name, "wb") as out:
                out.write(file.data)
        try:
            side.run(folder, empty)
        except ToolError:
            return None
        return read(empty, files)


def read_cleanplate(scratch: Path, files: list[Difficult]) -> Outcomes:
    """Every row of the manifest. Of two copies either may be the one that is kept."""
    manifest = Path(json.loads((scratch / "log.txt").read_text().strip().splitlines()[-1])["manifest"])
    columns = ["uri", "decision", "reason", "duplicate_of", "id", "image"]
    parts = [pq.read_table(part, columns=columns).to_pylist() for part in sorted(manifest.glob("*.parquet"))]
    rows = {_name(row["uri"]): row for part in parts for row in part}
    found = {}
    for file in files:
        row, twin = rows.get(file.text), rows.get(file.twin or "")
        if row is None:
            found[file.text] = _gone(scratch, file)
            continue
        stored = _picture(row["image"]["bytes"], files, file.text) if row["image"] else None
        said = stored or f"{row['decision']}: {row['reason']}"
        copied = twin is not None and (twin["duplicate_of"] == row["id"] or row["duplicate_of"] == twin["id"])
        found[file.text] = said if twin is None else f"{said}, copy of {file.twin}{'' if copied else ' not seen'}"
    return found


def read_img2dataset(scratch: Path, files: list[Difficult]) -> Outcomes:
    found = {}
    for part in sorted((scratch / "out").glob("*.parquet")):
        for row in pq.read_table(part).to_pylist():
            name = _name(row["url"])
            said = f"{row['status']}: {(row['error_message'] or '').split(':')[0].strip()[:40]}"
            found[name] = _picture(row["jpg"], files, name) if row["jpg"] else said
    return {file.text: found.get(file.text) or _gone(scratch, file) for file in files}


def read_data_juicer(scratch: Path, files: list[Difficult]) -> Outcomes:
    """The list of what is left. Of two copies the first in the list stays."""
    kept = {Path(json.loads(line)["images"][0]).name for line in (scratch / "out" / "kept.jsonl").open()}
    found = {}
    for file in files:
        there = file.name.decode(errors="surrogateescape") in kept
        if file.twin is None:
            found[file.text] = "kept" if there else _gone(scratch, file)
        else:
            found[file.text] = f"copy of {file.twin}{' not seen' if there and file.twin in kept else ''}"
    return found


def read_imagededup(scratch: Path, files: list[Difficult]) -> Outcomes:
    result = json.loads((scratch / "found.json").read_text())
    found = {}
    for file in files:
        name = file.name.decode(errors="surrogateescape")
        copies = [other[0] if isinstance(other, list) else other for other in result["duplicates"].get(name, [])]
        seen = f"copy of {file.twin}" if file.twin in copies else f"copy of {file.twin} not seen"
        found[file.text] = (seen if file.twin else "hashed") if name in result["hashed"] else _gone(scratch, file)
    return found


def _picture(data: bytes, files: list[Difficult], name: str) -> str:
    """Whether a stored picture is what a person sees in the file: mean difference of 32x32 grey values."""
    file = next(file for file in files if file.text == name)
    with Image.open(io.BytesIO(data)) as stored:
        if file.shows is None:
            return f"kept, {stored.width}x{stored.height}"
        seen = ImageOps.fit(file.shows, stored.size)
        small = [np.asarray(picture.convert("L").resize((32, 32)), np.float64) for picture in (stored, seen)]
    return "kept" if np.abs(small[0] - small[1]).mean() < 8 else "kept, a wrong picture"


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def _name(uri: str) -> str:
    return _text(unquote(uri.rsplit("/", 1)[-1], errors="surrogateescape").encode(errors="surrogateescape"))


def rerun_share(side: Side, pictures: Path, whole: float, scratch: Path) -> float:
    """CPU seconds of a second run after the first was killed half-way, as a share of those of an undisturbed run."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        side.kill(pictures, Path(name), whole / 2)
        return side.run(pictures, Path(name)).cpu / whole
