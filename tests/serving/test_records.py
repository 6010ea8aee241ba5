"""Records and pictures in a folder, on a clock that stands still until it is moved."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from serving.admission import Plan
from serving.api import GenerationResponse, ImageDatum, Timings
from serving.records import Archive, Record, RecordsConfig, records_of, sha256

IDS = ("img_" + "a" * 32, "img_" + "b" * 32)
NOW = int(time.time())
PLAN = Plan("a red apple", None, (4, 5), 3, 2.0, "ddim", "png", 100, "16x16", IDS)


def drawn() -> GenerationResponse:
    """An answer with two pictures, of which the second was withheld."""
    shown = ImageDatum(
        id=IDS[0], b64_json="", seed=4, finish_reason="stop", pixels_sha256="c" * 64, watermark_payload="c0ff"
    )
    withheld = ImageDatum(id=IDS[1], b64_json=None, seed=5, finish_reason="content_filtered")
    return GenerationResponse(
        created=NOW, data=[shown, withheld], output_format="png", size="16x16", model="tiny", model_version="3",
        manifest_id="m", steps=3, sampler="ddim", guidance_scale=2.0, backend="onnx-fp32", exact=True,
        timings=Timings(sample_ms=1, guard_ms=1, encode_ms=1),
    )  # fmt: skip


def records(*, prompts: bool = False) -> list[Record]:
    return records_of(drawn(), PLAN, request_id="req_1", key="key_1", prompts=prompts)


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def archive(tmp_path: Path, clock: Clock) -> Archive:
    return Archive(RecordsConfig(folder=str(tmp_path), days=1, pictures_s=60), clock)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_is_kept_is_found_by_another_gateway(archive: Archive, tmp_path: Path) -> None:
    archive.keep(records())
    other = Archive(archive.config, lambda: NOW + 1.0)
    assert [other.record(name) for name in IDS] == records()
    assert other.record("img_" + "c" * 32) is None


def test_a_marks_payload_leads_to_the_pictures_that_carry_it(archive: Archive, tmp_path: Path) -> None:
    archive.keep(records())
    again = records()[0].model_copy(update={"id": IDS[1]})
    archive.keep([again])
    assert archive.marked("c0ff") == list(IDS)
    assert archive.marked("c0fe") == []
    assert archive.marked("../records") == []


def test_a_record_has_the_prompts_hash_and_the_prompt_only_where_the_operator_says_so(
    archive: Archive, tmp_path: Path
) -> None:
    archive.keep(records())
    assert all(b"apple" not in file.read_bytes() for file in files(tmp_path))
    assert records()[0].prompt_sha256 == sha256("a red apple")
    assert records(prompts=True)[0].prompt == "a red apple"
    assert [(record.finish_reason, record.pixels_sha256) for record in records()] == [
        ("stop", "c" * 64),
        ("content_filtered", None),
    ]


def test_a_record_is_forgotten_in_time_and_then_removed(archive: Archive, clock: Clock, tmp_path: Path) -> None:
    archive.keep(records())
    clock.now += 86_399
    assert archive.record(IDS[0]) is not None
    archive.sweep(now=True)
    assert len(files(tmp_path)) == 3  # two records, and where the mark of the first one leads
    clock.now += 2
    assert archive.record(IDS[0]) is None
    clock.now += 3_600  # the files are a little younger than what they say
    archive.sweep(now=True)
    assert files(tmp_path) == []


def test_a_pictures_name_cannot_be_guessed_and_says_until_when(archive: Archive, clock: Clock, tmp_path: Path) -> None:
    first, second = (archive.put(b"picture", "png") for _ in range(2))
    assert first != second
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{64}\.png", first)
    assert archive.picture(first) == b"picture"
    clock.now += 59
    assert not archive.expired(first)
    clock.now += 1
    assert archive.expired(first)
    assert archive.picture(first) is None
    archive.sweep(now=True)
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["../records/aa/x.json", "", "x" * 1000, "000003e9-" + "0" * 64 + ".svg", "\0"])
def test_a_name_that_is_none_leads_nowhere(archive: Archive, name: str) -> None:
    assert archive.picture(name) is None
    assert not archive.expired(name)


def test_sweeping_is_done_once_an_hour(archive: Archive, clock: Clock, tmp_path: Path) -> None:
    archive.put(b"picture", "png")
    clock.now += 3_599
    archive.sweep()
    assert len(files(tmp_path)) == 1
    clock.now += 1
    archive.sweep()
    assert files(tmp_path) == []
