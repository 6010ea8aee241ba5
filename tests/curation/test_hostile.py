"""Hostile inputs through decoding, listing and measuring: each has its outcome, and costs the others nothing."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curation import workers
from curation.images import FORMATS, Decoded, ImageConfig, ImageError, decode
from curation.job import CurateJob
from curation.listing import listing
from tests.bench.fire import listed, special
from tests.curation.hostile import EXTENSIONS, PASSED, Hostile, file, hostiles, listed_as, mutated, write
from tests.curation.pictures import encoded, noise

CONFIG = ImageConfig()


@pytest.fixture(scope="module")
def items() -> list[Hostile]:
    return hostiles(0, 2**23)


def outcome(data: bytes) -> tuple[str, Decoded | None]:
    """The reason that decoding gives, and what it found; any exception but `ImageError` fails the test."""
    try:
        return "passed", decode(data, CONFIG)
    except ImageError as error:
        return error.reason.value, None


def likeness(found: np.ndarray, wanted: Image.Image) -> float:
    """Mean difference of two pictures as seen from afar, in grey levels."""
    near, far = (i.resize((8, 8), Image.Resampling.BOX) for i in (Image.fromarray(found), wanted.convert("RGB")))
    return float(np.abs(np.asarray(near, np.float64) - np.asarray(far, np.float64)).mean())


def test_every_kind_ends_as_it_must(items: list[Hostile]) -> None:
    wrong = {}
    for item in items:
        reason, found = outcome(item.data)
        if reason not in item.expected:
            wrong[item.kind] = f"{reason}, not {' or '.join(sorted(item.expected))}"
        elif found is not None and item.format not in (None, found.format):
            wrong[item.kind] = f"is said to be {found.format}, not {item.format}"
        elif found is not None and item.picture is not None:
            if (found.width, found.height) != item.picture.size:
                wrong[item.kind] = f"is {found.width} x {found.height} and not {item.picture.size}"
            elif (unlike := likeness(found.pixels, item.picture)) > 12:
                wrong[item.kind] = f"shows something else: {unlike:.0f} grey levels off"
    assert wrong == {}


def test_the_makers_are_deterministic_and_of_every_format() -> None:
    first, again, other = hostiles(1, 2**12), hostiles(1, 2**12), hostiles(2, 2**12)
    assert [(i.name, i.data) for i in first] == [(i.name, i.data) for i in again]
    assert len({i.name for i in (*first, *other)}) == len(first) + len(other)
    assert {i.format for i in first} >= set(FORMATS)
    assert set(EXTENSIONS) == set(FORMATS)


@settings(max_examples=400, deadline=None)
@given(kind=st.sampled_from(FORMATS), picture=st.integers(0, 3), seed=st.integers(0, 2**64))
def test_a_mutated_file_decodes_or_says_why(kind: str, picture: int, seed: int) -> None:
    reason, found = outcome(mutated(file(noise(picture, (40, 24)), kind), random.Random(seed)))
    if found is not None:
        assert found.pixels.dtype == np.uint8
        assert found.pixels.ndim == 3
        assert found.pixels.shape[2] == 3
        assert found.width * found.height <= CONFIG.max_pixels
    else:
        assert reason != "passed"


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(("JPEG", "PNG")), share=st.floats(0, 0.98))
def test_half_a_picture_is_no_picture(kind: str, share: float) -> None:
    """Whatever is left of it: of what follows the pixels, there are no two hundredths."""
    data = encoded(noise(5, (200, 160)), kind)
    assert outcome(data[: int(len(data) * share)])[0] in {"empty", "truncated", "corrupt", "not_an_image"}


# Prints for each file what decoding it gave, and the memory it took above what there was, in bytes.
_DECODING = """
import re, resource, sys
from pathlib import Path
from curation.images import FORMATS, ImageConfig, ImageError, decode
from tests.curation.hostile import file, noise

def memory(field):
    return 1024 * int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def outcome(data):
    try:
        return "passed" if decode(data, ImageConfig()) else ""
    except ImageError as error:
        return error.reason.value

for kind in FORMATS:
    outcome(file(noise(0), kind))
resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + 2**30,) * 2)
for name in sys.argv[1:]:
    data = Path(name).read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = memory("VmRSS")
    print(Path(name).name, outcome(data), memory("VmHWM") - before)
"""


def test_bombs_and_huge_metadata_cost_little_memory(items: list[Hostile], tmp_path: Path) -> None:
    chosen = {i.kind: i for i in items if "bomb" in i.kind or i.kind.startswith("huge")}
    assert len(chosen) > 20
    for kind, item in chosen.items():
        (tmp_path / kind).write_bytes(item.data)
    command = [sys.executable, "-c", _DECODING, *(str(tmp_path / kind) for kind in chosen)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    told = {kind: (reason, int(spent)) for kind, reason, spent in map(str.split, done.stdout.splitlines())}
    assert {kind: reason for kind, (reason, _) in told.items() if reason not in chosen[kind].expected} == {}
    # Whoever looks into a block of metadata copies it, some twice.
    assert {kind: spent for kind, (_, spent) in told.items() if spent > 64 * 2**20} == {}
    assert told.keys() == chosen.keys()


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of a folder by name, measured in this process in units of any size, without models."""
    source = {"kind": "folder", "path": str(folder)}
    fields = {"source": source, "output": str(folder.parent / "out"), "clip": None, "image_size": 32}
    found = listing(CurateJob.model_validate({**fields, "unit_size": 1_000}))
    worker = workers.Worker(workers.config_of(found))
    for todo in found.todo():
        worker.run(workers.item_of(todo))
    rows = [row for unit in found.units for row in found.stages["measure"].read(unit.key).to_pylist()]
    assert len(rows) == found.rows == len({row["uri"] for row in rows})
    return {row["uri"]: row for row in rows}


def told(row: dict[str, Any]) -> str:
    return row["failed_reason"] or "passed"


def test_a_unit_of_nothing_but_trouble_has_a_row_for_each(items: list[Hostile], tmp_path: Path) -> None:
    """What is measured of a picture between all others is what is measured of it alone."""
    crowd, alone = tmp_path / "crowd", tmp_path / "alone"
    crowd.mkdir()
    alone.mkdir()
    write(crowd, items)
    good = {f"good-{n}.png": encoded(noise(n)) for n in range(3)}
    for folder in (crowd, alone):
        for name, data in good.items():
            (folder / name).write_bytes(data)
            os.utime(folder / name, (1, 1))
    rows, others = rows_of(crowd), rows_of(alone)
    assert list(rows) == listed(crowd)
    expected = {listed_as(i.name): i.expected for i in items} | dict.fromkeys(good, PASSED)
    assert {name: told(row) for name, row in rows.items() if told(row) not in expected[name]} == {}
    location = {"location": None}
    assert [rows[name] | location for name in good] == [others[name] | location for name in good]
    for row in rows.values():
        assert (row["pixel_hash"] is None) == (row["failed_reason"] is not None) == (row["image"] is None)
        if row["image"] is not None:
            assert outcome(row["image"]["bytes"])[0] == "passed"


def test_what_a_folder_holds_beside_files(tmp_path: Path) -> None:
    expected = special(tmp_path / "heap")
    rows = rows_of(tmp_path / "heap")
    assert list(rows) == listed(tmp_path / "heap") == sorted(expected)
    assert {name: told(row) for name, row in rows.items() if told(row) not in expected[name].expected} == {}


def test_names_that_escape_to_the_same_text_are_two_inputs(tmp_path: Path) -> None:
    """A byte that is not UTF-8 is written as a backslash escape; a file can have that very text for a name."""
    folder = tmp_path / "heap"
    folder.mkdir()
    for name, picture in ((b"bad\xff.jpg", noise(1)), (b"bad\\xff.jpg", noise(2))):
        with open(os.fsencode(folder) + b"/" + name, "wb") as made:
            made.write(encoded(picture, "JPEG"))
    assert len(os.listdir(folder)) == 2
    assert len(rows_of(folder)) == 2


_PEAK = """
import resource, sys
from pathlib import Path
from tests.curation.test_hostile import rows_of
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = rows_of(Path(sys.argv[1]))
assert not any(row["failed_reason"] for row in rows.values())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_large_pictures_do_not_pile_up(tmp_path: Path) -> None:
    """A unit of large PNGs needs the memory of one of them."""
    side = 2_500
    data = encoded(Image.new("RGB", (side, side), "navy"), compress_level=1)
    spent = []
    for count in (2, 30):
        folder = tmp_path / str(count) / "heap"
        folder.mkdir(parents=True)
        for n in range(count):
            (folder / f"{n}.png").write_bytes(data)
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, str(folder)], capture_output=True, text=True, check=True, timeout=120
        )
        spent.append(int(done.stdout))
    assert spent[1] < spent[0] + 4 * 3 * side**2
