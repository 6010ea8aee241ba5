"""Credit and the near-copy guard: whom a server names, what it never names, and what it lets out."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curation.clip import ClipConfig
from curation.errors import UserError
from curation.takedowns import Ledger, Selector
from pipelines.evaluate import embedder
from serving import credit, neighbours
from serving.admission import Limits
from serving.api import GenerationRequest, RequestError
from serving.credit import CreditLog, Named
from serving.generator import Generation, Generator, load
from serving.job import ServeJob
from serving.nearness import AttributionConfig, NearCopiesConfig
from serving.neighbours import Neighbours, reseeded
from serving.records import RecordsConfig
from serving.revoked import Revoked
from serving.service import Preview, Service
from serving.trajectory import finish
from tests.serving.local import JOB, LocalBackend, error_of, post, send
from tests.training.conftest import row_id, write_manifest
from tests.training.test_memorization import draw
from tests.training.test_neighbours import embed, made
from training.bundle import DiffusionModel
from training.neighbours.index import Index
from training.tracking import ModelVersion, resolve

COPIED = 5
"""The seed whose picture stands in the training set, beside sixty others that look like nothing the model draws."""


def request(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": "a red apple", "num_inference_steps": 2, "guidance_scale": 1.0, **fields})


def drawn(version: ModelVersion, model: DiffusionModel, *seeds: int) -> list[np.ndarray]:
    plain = Generator(version, model, None, Limits())
    files = [plain.generate(request(seed=seed)).pictures[0].data for seed in seeds]
    return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files if data is not None]


class Training:
    """An index of pictures, some of which the model draws, and a ledger beside it."""

    def __init__(self, root: Path, pictures: Sequence[np.ndarray]) -> None:
        self.root = root
        rows = [(f"picture {i}", picture) for i, picture in enumerate([*pictures, *draw(60, 0)])]
        self.ids = [row_id(picture) for _, picture in rows]
        said = {"creator": lambda c: f"Painter {c[-1]}", "uri": lambda c: f"https://a.example/{c.split()[1]}.png"}
        self.index: Index = made(root, write_manifest(root / "manifests", rows, **said))
        self.ledger = Ledger.open(str(root / "ledger"))
        self.now = 0.0

    def neighbours(self, every_s: float = 0.0, log: CreditLog | None = None, **policy: Any) -> Neighbours:
        revoked = Revoked(
            self.index, self.root / "neighbours", [self.ledger.uri], every_s=every_s, clock=lambda: self.now
        )
        near = NearCopiesConfig.model_validate({"action": "flag", "ratio": 0.3, **policy})
        return Neighbours(self.index, lambda p: embed([p])[0], revoked, AttributionConfig(neighbours=3), near, log)

    def ask(self, *ids: str) -> str:
        selectors = [Selector.of("sha256", id_) for id_ in ids]
        return self.ledger.append_entry(requester="Jane", ground="no", selectors=selectors).id


@pytest.fixture(scope="module")
def copy(version: ModelVersion, model: DiffusionModel) -> np.ndarray:
    return drawn(version, model, COPIED)[0]


@pytest.fixture(scope="module")
def built(copy: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Training:
    return Training(tmp_path_factory.mktemp("built"), [copy])


@pytest.fixture
def training(built: Training, tmp_path: Path) -> Training:
    """With a ledger of its own."""
    shutil.copytree(built.root, tmp_path / "own")
    fresh = object.__new__(Training)
    fresh.__dict__ |= {**built.__dict__, "root": tmp_path / "own", "now": 0.0}
    fresh.ledger = Ledger.open(str(tmp_path / "own" / "ledger"))
    return fresh


@pytest.fixture
def generator(version: ModelVersion, model: DiffusionModel) -> Any:
    return lambda near: Generator(version, model, None, Limits(), neighbours=near)


class TestAttribution:
    def test_the_nearest_are_named_with_creator_and_licence(self, training: Training, generator: Any) -> None:
        answer = generator(training.neighbours()).generate(request(seed=COPIED, n=2, attribution=True)).response()
        first, second = answer.data
        assert first.attribution is not None
        assert len(first.attribution) == 3
        named = first.attribution[0]
        assert (named.sha256, named.creator, named.licence) == (training.ids[0], "Painter 0", "CC0-1.0")
        assert named.uri == "https://a.example/0.png"
        assert (named.thumbnail or "").startswith("data:image/webp;base64,")
        assert named.similarity > 0.9
        assert [n.similarity for n in first.attribution] == sorted(
            (n.similarity for n in first.attribution), reverse=True
        )
        assert second.attribution is not None
        assert all(n.similarity < 0.6 for n in second.attribution)

    def test_only_where_it_is_asked_for(self, training: Training, generator: Any) -> None:
        answer = generator(training.neighbours()).generate(request(seed=1)).response()
        assert answer.data[0].attribution is None

    def test_without_an_index_it_is_refused(self, generator: Any) -> None:
        with pytest.raises(RequestError, match="no index") as refused:
            generator(None).generate(request(attribution=True))
        assert refused.value.param == "attribution"

    @settings(deadline=None, max_examples=25)
    @given(gone=st.sets(st.integers(0, 60), max_size=61), picture=st.integers(0, 60))
    def test_what_was_taken_down_is_never_named(
        self, built: Training, copy: np.ndarray, gone: set[int], picture: int
    ) -> None:
        near = built.neighbours()
        near._revoked.look()
        near._revoked.mask = built.index.mask({built.ids[i] for i in gone})
        looked = near.look([copy, *draw(60, 0)][picture])
        assert looked.attribution is not None
        named = {one.sha256 for one in looked.attribution}
        assert not named & {built.ids[i] for i in gone}
        assert len(named) == min(3, 61 - len(gone))
        assert looked.copy is not None
        if picture in gone:
            assert (looked.copy.sha256, looked.copy.revoked, looked.copy.action) == (None, True, "block")
        else:
            assert looked.copy.action == "flag" or looked.copy.revoked
            assert looked.copy.sha256 in (None, built.ids[picture])

    def test_a_takedown_is_heeded_while_it_runs_at_the_next_interval(
        self, training: Training, copy: np.ndarray
    ) -> None:
        near = training.neighbours(every_s=30)

        def named() -> set[str]:
            return {one.sha256 for one in near.look(copy).attribution or ()}

        assert training.ids[0] in named()
        entry = training.ask(training.ids[0])
        training.now = 29
        assert training.ids[0] in named()
        training.now = 30
        assert training.ids[0] not in named()
        training.ledger.withdraw(entry, by="Jane", why="a mistake")
        training.now = 60
        assert training.ids[0] in named()

    def test_while_the_ledger_cannot_be_read_nobody_is_named_and_copies_are_still_caught(
        self, training: Training, copy: np.ndarray
    ) -> None:
        near = training.neighbours(action="block")
        training.ask(training.ids[0])
        assert near.look(copy).copy.revoked  # type: ignore[union-attr]
        events = training.root / "ledger" / "events"
        (events / "entry-torn.parquet").write_bytes(b"half a file")
        looked = near.look(copy)
        assert looked.attribution is None
        assert looked.copy is not None
        assert looked.copy.sha256 is None
        assert looked.withheld
        (events / "entry-torn.parquet").unlink()
        assert near.look(copy).attribution is not None
        shutil.rmtree(events)
        assert near.look(copy).attribution is None, "requests that are simply gone were lost"


class TestNearCopies:
    def test_flagged_it_leaves_and_is_told(self, training: Training, generator: Any) -> None:
        copy, other = generator(training.neighbours()).generate(request(seed=COPIED, n=2)).response().data
        assert copy.near_copy is not None
        assert (copy.near_copy.sha256, copy.near_copy.action) == (training.ids[0], "flag")
        assert copy.near_copy.similarity > 0.9
        assert (copy.finish_reason, other.finish_reason, other.near_copy) == ("stop", "stop", None)
        assert copy.b64_json

    def test_blocked_nothing_of_it_leaves_and_the_others_do(self, training: Training, generator: Any) -> None:
        blocking = generator(training.neighbours(action="block"))

        async def go() -> list[Preview | Generation]:
            asked = request(seed=COPIED, n=2, num_inference_steps=2)
            return [event async for event in Service(blocking).stream(asked, previews=1)]

        *previews, last = asyncio.run(go())
        assert isinstance(last, Generation)
        copy, other = last.response().data
        assert (copy.b64_json, copy.pixels_sha256, copy.finish_reason) == (None, None, "near_copy")
        assert (other.finish_reason, other.near_copy) == ("stop", None)
        assert len(previews) == 2

    def test_a_preview_that_is_a_copy_does_not_leave_either(self, training: Training, generator: Any) -> None:
        plain, blocking = generator(None), generator(training.neighbours(action="block"))
        plan = plain.plan(request(seed=COPIED))
        pictures = plain.begin(plan)
        finish(plain.backend.denoiser, pictures, together=1, after_pass=lambda: None)
        assert plain.preview(plan, pictures[0].clean) is not None
        assert blocking.preview(plan, pictures[0].clean) is None

    def test_drawn_again_it_is_the_picture_of_the_next_seed(self, training: Training, generator: Any) -> None:
        again = generator(training.neighbours(action="reseed"))
        copy, other = again.generate(request(seed=COPIED, n=2)).pictures
        assert copy.seed == reseeded(COPIED, 1)
        assert copy.data == generator(None).generate(request(seed=copy.seed)).pictures[0].data
        assert copy.datum().finish_reason == "stop"
        assert copy.near_copy is not None
        assert (copy.near_copy.action, copy.near_copy.redrawn, copy.near_copy.sha256) == ("reseed", 1, training.ids[0])
        assert (other.seed, other.near_copy) == (COPIED + 1, None)

    def test_after_the_last_attempt_it_is_withheld(
        self, version: ModelVersion, model: DiffusionModel, generator: Any, tmp_path: Path
    ) -> None:
        seeds = [COPIED, reseeded(COPIED, 1), reseeded(COPIED, 2)]
        training = Training(tmp_path, drawn(version, model, *seeds))
        (withheld,) = (
            generator(training.neighbours(action="reseed", max_reseeds=2)).generate(request(seed=COPIED)).pictures
        )
        assert withheld.data is None
        assert withheld.near_copy is not None
        assert (withheld.near_copy.action, withheld.near_copy.redrawn) == ("block", 2)
        (third,) = (
            generator(training.neighbours(action="reseed", max_reseeds=3)).generate(request(seed=COPIED)).pictures
        )
        assert third.seed == reseeded(COPIED, 3)
        assert third.data is not None

    @settings(deadline=None, max_examples=15)
    @given(seeds=st.lists(st.integers(COPIED - 3, COPIED + 3), min_size=1, max_size=4), n=st.integers(1, 3))
    def test_the_same_request_gives_the_same_bytes_in_any_company(
        self, built: Training, version: ModelVersion, model: DiffusionModel, seeds: list[int], n: int
    ) -> None:
        again = Generator(version, model, None, Limits(), neighbours=built.neighbours(action="reseed"))

        async def together() -> list[Generation]:
            service = Service(again)
            try:
                return await asyncio.gather(*(service.generate(request(seed=seed, n=n)) for seed in seeds))
            finally:
                await service.engine.close()

        for seed, shared in zip(seeds, asyncio.run(together()), strict=True):
            alone = again.generate(request(seed=seed, n=n))
            assert [(p.data, p.seed) for p in shared.pictures] == [(p.data, p.seed) for p in alone.pictures]

    def test_a_copy_of_what_was_taken_down_never_leaves_unless_the_policy_is_to_treat_all_alike(
        self, training: Training, copy: np.ndarray
    ) -> None:
        training.ask(training.ids[0])
        found = {revoked: training.neighbours(revoked=revoked).look(copy).copy for revoked in ("block", "alike")}
        assert {revoked: one.action for revoked, one in found.items() if one is not None} == {
            "block": "block",
            "alike": "flag",
        }
        assert {one.sha256 for one in found.values() if one is not None} == {None}

    def test_off_nothing_is_a_copy(self, training: Training, copy: np.ndarray) -> None:
        looked = training.neighbours(action="off").look(copy)
        assert looked.copy is None
        assert looked.attribution

    def test_of_a_film_the_worst_frame_counts(
        self, training: Training, copy: np.ndarray, version: ModelVersion, model: DiffusionModel
    ) -> None:
        others = drawn(version, model, 11, 12)
        assert training.neighbours().look(np.stack(others)).copy is None
        looked = training.neighbours().look(np.stack([others[0], copy, others[1]]))
        assert looked.copy is not None
        assert looked.copy.sha256 == training.ids[0]

    def test_seeds_follow_from_the_first_and_differ(self) -> None:
        seeds = [reseeded(seed, attempt) for seed in (0, 1, 2**53 - 10) for attempt in range(1, 9)]
        assert len(set(seeds)) == len(seeds)
        assert all(0 <= seed <= 2**53 - 10 for seed in seeds)
        assert reseeded(7, 1) == reseeded(7, 1)


class TestCredit:
    NAMED = (Named("a" * 64, "Ann", "CC-BY-4.0", "u/a", 0.9), Named("b" * 64, "Ben", None, None, 0.3))

    def log(self, folder: Path, **options: Any) -> CreditLog:
        days = iter(options.pop("days", [date(2026, 11, 25)] * 100))
        return CreditLog(
            str(folder), model="m", version="1", index="i" * 64, every_s=3600, day=lambda: next(days), **options
        )

    def test_each_picture_is_shared_out_by_similarity(self, tmp_path: Path) -> None:
        log = self.log(tmp_path, ledgers=["l"])
        log.add(self.NAMED, "a" * 64)
        log.add(self.NAMED[1:])
        log.add([])
        log.flush()
        rows, ledgers = credit.read(str(tmp_path))
        found = {row["sha256"]: (row["pictures"], row["weight"], row["near_copies"]) for row in rows.to_pylist()}
        assert found[None][0] == 3
        assert found["a" * 64] == (1, pytest.approx(0.75), 1)
        assert found["b" * 64] == (2, pytest.approx(1.25), 0)
        assert ledgers == ["l"]

    @settings(deadline=None, max_examples=20)
    @given(similar=st.lists(st.lists(st.floats(0, 1), max_size=4), max_size=6), writers=st.integers(1, 3))
    def test_the_shares_of_all_writers_add_up_to_what_was_served(
        self, similar: list[list[float]], writers: int, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("log")
        logs = [self.log(folder) for _ in range(writers)]
        for number, values in enumerate(similar):
            named = [Named(f"{i:064x}", None, None, None, value) for i, value in enumerate(values)]
            logs[number % writers].add(named)
            logs[number % writers].flush()
        rows = credit.read(str(folder))[0].to_pylist()
        assert sum(row["pictures"] for row in rows if row["sha256"] is None) == len(similar)
        assert sum(row["weight"] for row in rows) == pytest.approx(sum(bool(values) for values in similar))

    def test_days_are_kept_apart(self, tmp_path: Path) -> None:
        log = self.log(tmp_path, days=[date(2026, 11, 25), date(2026, 11, 26)])
        log.add(self.NAMED)
        log.add(self.NAMED)
        log.flush()
        assert sorted(path.name[:10] for path in tmp_path.iterdir()) == ["2026-11-25", "2026-11-26"]

    def test_what_cannot_be_written_is_kept(self, tmp_path: Path) -> None:
        (tmp_path / "log").write_text("a file where a folder is wanted")
        log = self.log(tmp_path / "log")
        log.add(self.NAMED)
        log.flush()
        (tmp_path / "log").unlink()
        log.add(self.NAMED)
        log.flush()
        rows = credit.read(str(tmp_path / "log"))[0].to_pylist()
        assert {row["pictures"] for row in rows} == {2}

    def test_what_is_left_is_written_when_nobody_holds_it_any_more(self, tmp_path: Path) -> None:
        log = self.log(tmp_path)
        log.add(self.NAMED)
        log._timer.cancel()  # type: ignore[union-attr]
        del log
        assert len(list(tmp_path.iterdir())) == 1

    def test_only_what_leaves_is_counted_and_nothing_of_the_prompt(
        self, training: Training, generator: Any, tmp_path: Path
    ) -> None:
        log = self.log(tmp_path / "log")
        blocking = generator(training.neighbours(action="block", log=log))
        blocking.generate(request(seed=COPIED, n=2, prompt="a very secret prompt"))
        log.flush()
        (path,) = (tmp_path / "log").iterdir()
        rows = pq.read_table(path).to_pylist()
        assert [row["pictures"] for row in rows if row["sha256"] is None] == [1]
        assert b"secret" not in path.read_bytes()
        assert set(rows[0]) == set(credit.SCHEMA.names)


class TestOverHttp:
    BODY: ClassVar = {"prompt": "a red apple", "num_inference_steps": 2, "guidance_scale": 1.0, "seed": COPIED}

    def test_pictures_and_models_tell_of_it(self, training: Training, generator: Any) -> None:
        backend = LocalBackend(generator(training.neighbours()))
        (datum,) = post(backend, self.BODY | {"attribution": True}).json()["data"]
        assert datum["attribution"][0]["sha256"] == training.ids[0]
        assert datum["near_copy"]["action"] == "flag"
        streamed = post(backend, self.BODY | {"attribution": True, "stream": True})
        last = json.loads(streamed.text.strip().rpartition("data: ")[2])
        assert (last["attribution"], last["near_copy"]) == (datum["attribution"], datum["near_copy"])
        entry = send(backend, "GET", "/v1/models").json()["data"][0]
        assert (entry["attribution"], entry["near_copies"]) == (True, "flag")
        assert (
            error_of(post(LocalBackend(generator(None)), self.BODY | {"attribution": True}))["param"] == "attribution"
        )

    def test_a_picture_that_was_drawn_again_is_reproduced_from_its_record(
        self, training: Training, generator: Any, tmp_path: Path
    ) -> None:
        job = JOB.model_copy(update={"records": RecordsConfig(folder=str(tmp_path / "records"))})
        backend = LocalBackend(generator(training.neighbours(action="reseed")))
        (datum,) = post(backend, self.BODY, job).json()["data"]
        assert datum["seed"] == reseeded(COPIED, 1)
        told = {"prompt": self.BODY["prompt"]}
        again = send(backend, "POST", f"/v1/images/{datum['id']}/reproduce", job, json=told).json()
        assert again["reproduction"]["pixels_equal"] is True
        assert again["data"][0]["b64_json"] == datum["b64_json"]


class TestBuild:
    """With the tiny CLIP, and the bundle's folder in place of a registered version."""

    @pytest.fixture
    def job(self, tiny_clip: ClipConfig, bundle: Path, tmp_path: Path) -> ServeJob:
        shutil.copytree(bundle, tmp_path / "bundle")
        return ServeJob(model=str(tmp_path / "bundle"), clip=tiny_clip)

    def index(self, job: ServeJob, folder: Path, **options: Any) -> None:
        clip = job.clip.build()
        rows = [(f"picture {i}", picture) for i, picture in enumerate(draw(8, 0))]
        manifest = write_manifest(folder / "manifests", rows)
        sha256 = resolve(job.model).tags["bundle_sha256"]
        given = {"clip": clip.name, "dim": clip.dim, "embed": embedder(clip), "bundle": sha256, **options}
        made(folder, manifest, **given)

    def test_the_index_beside_the_bundle_is_found_and_guards_by_default(self, job: ServeJob) -> None:
        self.index(job, Path(job.model))
        found = neighbours.build(job, resolve(job.model))
        assert found is not None
        assert found.policy.action == "block"
        looked = found.look(draw(8, 0)[3])
        assert looked.withheld
        assert (looked.attribution or ())[0].sha256 == row_id(draw(8, 0)[3])
        entry = load(job).card.entry()
        assert (entry.attribution, entry.near_copies) == (True, "block")

    def test_without_one_nothing_is_looked_at_unless_the_job_asks_for_it(self, job: ServeJob) -> None:
        assert neighbours.build(job, resolve(job.model)) is None
        entry = load(job).card.entry()
        assert (entry.attribution, entry.near_copies) == (False, "off")
        for changes, field in (
            ({"near_copies": NearCopiesConfig()}, "near_copies"),
            ({"attribution": AttributionConfig(log="x")}, "attribution.log"),
        ):
            with pytest.raises(UserError, match="no index") as refused:
                neighbours.build(job.model_copy(update=changes), resolve(job.model))
            assert refused.value.field == field
        off = job.model_copy(update={"near_copies": NearCopiesConfig(action="off")})
        assert neighbours.build(off, resolve(job.model)) is None

    def test_one_of_another_model_or_by_another_clip_is_refused(self, job: ServeJob, tmp_path: Path) -> None:
        for name, changes, field in (
            ("model", {"bundle": "c" * 64}, "attribution.index"),
            ("clip", {"clip": "another@12345678"}, "clip"),
        ):
            self.index(job, tmp_path / name, **changes)
            told = AttributionConfig(index=str(tmp_path / name / "neighbours"))
            with pytest.raises(UserError) as refused:
                neighbours.build(job.model_copy(update={"attribution": told}), resolve(job.model))
            assert refused.value.field == field
