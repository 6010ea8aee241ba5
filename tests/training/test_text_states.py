"""Text states from shards: to the bit those that memory would hold, whoever made them and whatever else is in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from curation.errors import UserError
from curation.manifest import Manifest
from tests.training.conftest import derive, many, row_id, write_manifest
from training import conditioning, distillation, prepare, text_shards
from training.captions import CaptionChoice, CaptionStates, first_captions
from training.data import TrainingSet, load
from training.data_shards import INFO_FILE
from training.distill_job import DistillJob
from training.job import TrainJob
from training.launch import launch
from training.learner import Place
from training.loop import train
from training.order import Order
from training.progress import Point
from training.retraining import earliest
from training.text import TextEncoder
from training.text_states import StoredStates, TextsInfo

MakeJob = Callable[..., TrainJob]
ROWS = many(30)
MIX = {"metadata": 1.0, "coca": 3.0}
SHARDS = {"kind": "shards", "window": 16, "block": 4, "file_bytes": 2**16}
COLUMNS: dict[str, Any] = {
    "captions": lambda caption: [
        {"text": text, "source": source, "language": "en", "words": 3, "score": None}
        for text, source in ((caption, "metadata"), (f"{caption[::-1]} by a model", "coca"))
    ],
    "dataset": lambda caption: caption[-1] if caption[-1] != "9" else None,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Two captions a row, which are of nine classes or of none."""
    return write_manifest(tmp_path_factory.mktemp("base"), ROWS, **COLUMNS)


@pytest.fixture
def job_of(make_job: MakeJob, base: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeJob:
    """Jobs whose captions' states do not fit into memory."""
    monkeypatch.setattr("training.captions.STATES_CAP_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(**changes: Any) -> TrainJob:
        return make_job(**{"manifest": base.uri, "caption_mix": MIX, "workers": 0, "data": SHARDS, **changes})

    return make


def made(job: TrainJob, tower: Path, **options: Any) -> tuple[str, TextsInfo]:
    prepared = prepare.prepare(job)
    plan = text_shards.plan_of(job, prepared.manifest, prepared.roster, tower)
    assert plan is not None
    return plan.uri, text_shards.make(plan, prepared.manifest, prepared.roster, str(tower), **options)


@pytest.fixture
def opened() -> Iterator[Callable[[TrainJob, str], StoredStates]]:
    found: list[StoredStates] = []

    def open_(job: TrainJob, uri: str) -> StoredStates:
        found.append(StoredStates.of(uri, job, prepare.prepare(job).roster))
        return found[-1]

    yield open_
    for states in found:
        states.close()


@pytest.mark.parametrize("kind", ["text", "both"])
@pytest.mark.parametrize("mix", [MIX, None], ids=["mixed", "chosen"])
@pytest.mark.parametrize("data", [SHARDS, {"kind": "memory"}], ids=["shards", "memory"])
def test_they_are_those_of_memory_to_the_bit(
    job_of: MakeJob, tower: Path, opened: Any, kind: str, mix: dict[str, float] | None, data: dict[str, Any]
) -> None:
    job = job_of(conditioning={"kind": kind}, caption_mix=mix, data=data)
    uri, info = made(job, tower)
    assert info.rows == 30 * (1 if mix is None else 2)
    stored = opened(job, uri)
    prepared = prepare.prepare(job)
    rows = load(prepared.manifest, None, mix, prepared.roster, job.conditioning)
    choice = CaptionChoice(rows.options)
    text = conditioning.encoder(job.conditioning, tower, rows.classes)
    text.measure(first_captions(rows, choice, 0, 16))
    ours, theirs = CaptionStates(text, choice, stored=stored), CaptionStates(text, choice)
    assert ours.resident
    draw = torch.Generator().manual_seed(0)
    for size in (1, 7, 64):
        told = (
            torch.randint(30, (size,), generator=draw),
            torch.rand(size, generator=draw) < 0.2,
            torch.rand(size, generator=draw, dtype=torch.float64),
        )
        one, other = ours.lookup(*told), theirs.lookup(*told)
        assert one.states.shape == other.states.shape
        for mine, kept in ((one.states, other.states), (one.mask, other.mask), (one.pooled, other.pooled)):
            assert torch.equal(mine, kept)
    nothing = torch.tensor([True])
    assert torch.equal(ours.lookup(told[0][:1], nothing, told[2][:1]).states, text.encode([""]).cropped().states)


def test_they_are_made_only_where_memory_is_too_small(
    job_of: MakeJob, tower: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of()
    prepared = prepare.prepare(job)
    for cap, planned in ((61 * 12 * 32 * 4, False), (61 * 12 * 32 * 4 - 1, True)):  # 60 texts and the empty one
        monkeypatch.setattr("training.captions.STATES_CAP_BYTES", cap)
        assert (text_shards.plan_of(job, prepared.manifest, prepared.roster, tower) is not None) == planned
    name = Path(made(job, tower)[0]).name
    assert name.startswith(f"text-{prepared.manifest.id[:12]}-{TextEncoder(tower).digest()[:12]}-")


def test_what_is_not_there_or_damaged_is_said(job_of: MakeJob, tower: Path, opened: Any) -> None:
    job = job_of()
    uri, info = made(job, tower)
    states = opened(job, uri)
    with pytest.raises(UserError, match="lack a caption"):
        states.read(torch.tensor([0]), ["nobody said this"])
    part = Path(uri, info.parts[0].name)
    part.write_bytes(part.read_bytes().replace(b"PAR1", b"PAR2"))
    captions = load(prepare.prepare(job).manifest).captions
    with pytest.raises(UserError, match="is damaged"):
        states.read(torch.arange(30), captions)
    part.unlink()
    assert made(job, tower)[1] == info
    assert len(states.read(torch.arange(30), captions)) == 30
    other = job_of(manifest=write_manifest(Path(job.output, "other"), ROWS[:20], **COLUMNS).uri)
    for attempt in (lambda: opened(other, uri), lambda: opened(job, f"{uri}-gone")):
        with pytest.raises(UserError, match="no text states of this training set"):
            attempt()


def test_a_cache_that_is_too_small_is_refused(job_of: MakeJob, tower: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(data={**SHARDS, "window": 4})
    info = made(job, tower)[1]
    text_shards.refuse_small_cache(job, info)
    big = info.model_copy(update={"parts": tuple(p.model_copy(update={"bytes": 2**40}) for p in info.parts)})
    with pytest.raises(UserError, match="read at a time") as refused:
        text_shards.refuse_small_cache(job, big)
    assert refused.value.field == "data.cache_bytes"
    monkeypatch.setattr("training.text_states._CACHE_BYTES", info.bytes - 1)
    with pytest.raises(UserError, match="read at a time") as refused:
        text_shards.refuse_small_cache(job_of(data={"kind": "memory"}), info)
    assert refused.value.field == "data.kind"


@pytest.mark.ray
def test_ray_data_makes_what_one_process_makes(job_of: MakeJob, tower: Path, tmp_path: Path, ray_cluster: None) -> None:
    def bytes_of(folder: str, **options: Any) -> dict[str, bytes]:
        uri, _ = made(job_of(data={**SHARDS, "folder": str(tmp_path / folder)}), tower, **options)
        return {path.name: path.read_bytes() for path in Path(uri).iterdir()}

    alone = bytes_of("alone")
    assert INFO_FILE in alone
    assert bytes_of("ray", workers=2) == alone


# --- training ---


SETTINGS: dict[str, Any] = {"images": 64, "conditioning_images": 8, "milestones": 16}


@pytest.mark.slow
def test_a_run_ends_in_the_bits_of_one_with_all_in_memory(
    job_of: MakeJob, tower: Path, text: TextEncoder, tracking_uri: str, tmp_path: Path
) -> None:
    """Straight, resumed, and retrained from a checkpoint of the other way."""
    tracking = {"uri": tracking_uri, "experiment": "text states"}
    job = job_of(**SETTINGS, tracking=tracking, data={"kind": "memory"})
    prepared = prepare.prepare(job)

    def stop(point: Point) -> None:
        if point.images == 40:
            raise KeyboardInterrupt

    def run(folder: str, data: TrainingSet, of: TrainJob = job, report: Any = None) -> str:
        return train(of, folder=folder, data=data, text=text, place=Place(), report=report).state_sha256

    in_memory = load(prepared.manifest, None, MIX, prepared.roster)
    resident = run(str(tmp_path / "resident"), in_memory)
    with pytest.raises(KeyboardInterrupt):
        run(prepared.folder, in_memory, report=stop)
    result = launch(job, text_encoder=str(tower))  # goes on where that run was
    assert (result.resumed_from, result.state_sha256) == (32, resident)
    assert [path.name[:5] for path in Path(job.output, "shards").iterdir()] == ["text-"]

    first = Order.of(prepared.roster, 0).first_seen(64)
    gone = prepared.roster.ids[int(((first >= 24) & (first < 32)).nonzero()[0])]
    point = earliest(prepared.folder, prepared.roster, {gone}, job)
    assert point is not None
    (caption,) = [caption for caption, picture in ROWS if row_id(picture) == gone]
    derived = derive(tmp_path / "derived", ROWS, {caption}, **COLUMNS)
    scratch = run(str(tmp_path / "scratch"), load(derived, None, MIX), job.model_copy(update={"manifest": derived.uri}))
    again = launch(
        job.model_copy(update={"manifest": derived.uri, "resume_from": point.checkpoint}), text_encoder=str(tower)
    )
    assert (again.resumed_from, again.state_sha256) == (point.images_seen, scratch)
    assert scratch != resident
    assert len(list(Path(job.output, "shards").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "both"])
def test_a_student_is_that_of_all_in_memory(
    job_of: MakeJob, tower: Path, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    job = job_of(images=16, conditioning={"kind": kind}, data={"kind": "memory"})
    prepared = prepare.prepare(job)
    data = load(prepared.manifest, None, MIX, prepared.roster, job.conditioning)
    text = conditioning.encoder(job.conditioning, tower, data.classes)
    teacher = train(job, folder=str(tmp_path / "teacher"), data=data, text=text, place=Place()).bundle
    assert teacher is not None

    def distilled(output: str, images: int) -> distillation.DistillResult:
        asked = {
            "teacher": teacher, "output": str(tmp_path / output), "batch_size": 8, "steps": 2, "precision": "fp32",
            "method": {"kind": "progressive", "teacher_steps": 4, "images_per_stage": images},
            "tracking": {"uri": tracking_uri, "experiment": "students"},
        }  # fmt: skip
        return distillation.launch(DistillJob.model_validate(asked))

    stored = distilled("stored", 32)
    (shards,) = (tmp_path / "stored" / "shards").iterdir()
    assert shards.name.startswith("text-")
    assert [leg.topology["resident_captions"] for leg in stored.legs] == [1]
    monkeypatch.setattr("training.captions.STATES_CAP_BYTES", 2**30)
    kept = distilled("kept", 32)
    assert not (tmp_path / "kept" / "shards").exists()
    assert stored.state_sha256 == kept.state_sha256 != distilled("kept", 24).state_sha256
