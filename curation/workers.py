"""Ray Data's actors: they take units, run the stages that are missing of each, and store the results.

One actor does all of a unit on one decode. Where a job asks for scorers, its workers fetch, decode and hash, and pass
the pixels on to the scorers, which hold the GPUs and run the models.
"""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from curation import nodes
from curation.captions import CaptionInput, CaptionsConfig, Told
from curation.clip import Clip, ClipConfig
from curation.embed import Embed, frame_embeddings
from curation.heads import HeadsConfig
from curation.listing import Listing, Todo
from curation.manifest import CAPTIONS, GROUPS, SAFETY, SCORES, digest_rows, texts
from curation.measure import Chunk, Columns, Look, MeasureConfig
from curation.moving import middle_of
from curation.sources import INPUTS
from curation.sources.inputs import without_passwords
from curation.units import Stage, embedding_matrix

OF = b"cleanplate.of"  # in the metadata of heads' and captions' files: the measurement they were made of
STATED = ("title", "creator", "licence", "licence_url")
Item = dict[str, Any]


class WorkerConfig(BaseModel):
    """What an actor needs to know; shipped as values."""

    model_config = ConfigDict(frozen=True)

    measure: MeasureConfig
    heads: HeadsConfig | None
    captions: CaptionsConfig | None
    folders: dict[str, str]  # by stage


class Worker:
    """Runs the missing stages of one unit at a time. Models are loaded when a unit first wants them."""

    def __init__(self, config: WorkerConfig) -> None:
        self._config = config
        self._stages = {name: Stage(name, folder) for name, folder in config.folders.items()}

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """As Ray Data calls it: a batch of one unit."""
        return _batch([self.run(item) for item in _items(batch)])

    def run(self, item: Item) -> Item:
        """Does all that is missing of a unit."""
        clock = _Clock()
        return self.finish(item, *self.look(item)) | clock.told()

    def look(self, item: Item) -> tuple[Columns, Iterator[Chunk]]:
        """Begins to measure: columns that fill up while the chunks of pixels are taken."""
        columns: Columns = {}
        if "measure" not in item["stages"]:
            return columns, iter(())
        inputs = item["inputs"]
        again = item["again"]
        unwanted = [] if again is not None else item["unwanted"]
        return columns, self._look(inputs if again is None else inputs.take(again), columns, unwanted)

    def finish(self, item: Item, columns: Columns, chunks: Iterator[Chunk]) -> Item:
        """Runs the models on the pixels and stores the unit, stage by stage."""
        key, stages = item["key"], item["stages"]
        if "measure" in stages:
            measured = self._measured(item, columns, chunks)
            self._stages["measure"].write(key, measured)
        else:
            measured = self._stages["measure"].read(key)
        of = {OF: measurement(measured)}
        if "heads" in stages:
            self._stages["heads"].write(key, self._scored(measured).replace_schema_metadata(of))
        if "captions" in stages:
            self._stages["captions"].write(key, self._captioned(measured).replace_schema_metadata(of))
        failed = Counter(reason for reason in measured["failed_reason"].to_pylist() if reason is not None)
        fetched = sum(filter(None, columns.get("bytes", ())))
        return {"key": key, "rows": measured.num_rows, "stages": stages, "failed": failed, "bytes": fetched}

    def _measured(self, item: Item, columns: Columns, chunks: Iterator[Chunk]) -> pa.Table:
        again = item["again"]
        if again is None:
            return self._embed(_without_passwords(item["inputs"]), columns, chunks)
        fresh = self._embed(_without_passwords(item["inputs"].take(again)), columns, chunks)
        stored = self._stages["measure"].read(item["key"])
        place = np.arange(stored.num_rows)
        place[again] = stored.num_rows + np.arange(len(again))
        return pa.concat_tables([stored, fresh]).take(place)

    def _scored(self, measured: pa.Table) -> pa.Table:
        assert self._config.heads is not None
        present = measured["pixel_hash"].combine_chunks().is_valid().to_numpy(zero_copy_only=False)
        found = self._heads(embedding_matrix(measured["embedding"]), present)
        for row, frames in enumerate(frame_embeddings(measured) or ()):
            if frames is not None:  # one forbidden frame among many would be lost in their mean
                found["safety"][row] = self._heads.worst(frames)
        kinds = {"safety": SAFETY, "groups": GROUPS, "scores": SCORES}
        return pa.table({name: pa.array(found[name], kind) for name, kind in kinds.items()})

    def _captioned(self, measured: pa.Table) -> pa.Table:
        embeddings = embedding_matrix(measured["embedding"]).astype(np.float32) if self.clip is not None else None
        assert self._config.captions is not None
        shown = any(captioner.kind in ("coca", "endpoint") for captioner in self._config.captions.captioners)
        moving = ["frames"] if "frames" in measured.column_names else []
        names = [*STATED, "metadata", "embedded", "pixel_hash", *(["image", *moving] if shown else [])]
        rows = measured.select(names).to_pylist()
        inputs = []
        for i, row in enumerate(rows):
            stated = {name: row[name] for name in STATED if row[name]}
            inputs.append(
                CaptionInput(
                    metadata={**dict(row["metadata"] or ()), **stated},
                    embedded=texts(row["embedded"]),
                    picture=_one_picture(row) if row.get("image") else None,
                    embedding=embeddings[i] if row["pixel_hash"] and embeddings is not None else None,
                )
            )
        told = self._captions.tell(inputs)
        captions = [[vars(caption) for caption in row.captions] or None for row in told]
        columns = {"captions": pa.array(captions, CAPTIONS)}
        for name, may_pass in (("failed", True), ("refused", False)):
            columns[name] = pa.array([_failures(row, may_pass=may_pass) for row in told], pa.string())
        return pa.table(columns)

    @cached_property
    def clip(self) -> Clip | None:
        config = self._config.measure.clip
        if config is None:
            return None
        import torch

        torch.set_num_threads(self._config.measure.threads)
        return config.build()

    @cached_property
    def _look(self) -> Look:
        return Look(self._config.measure, None if self.clip is None else self.clip.image_size)

    @cached_property
    def _embed(self) -> Embed:
        return Embed(self._config.measure, self.clip)

    @cached_property
    def _heads(self) -> Any:
        assert self._config.heads is not None
        assert self.clip is not None
        return self._config.heads.build(self.clip)

    @cached_property
    def _captions(self) -> Any:
        assert self._config.captions is not None
        if any(captioner.kind == "coca" for captioner in self._config.captions.captioners):
            import torch

            torch.set_num_threads(self._config.measure.threads)
        return self._config.captions.build(self.clip)


def _one_picture(row: dict[str, Any]) -> bytes:
    """A row's training-size picture; of a strip the frame in the middle."""
    picture: bytes = row["image"]["bytes"]
    return middle_of(picture, row["frames"]) if row.get("frames") else picture


def _failures(told: Told, *, may_pass: bool) -> str | None:
    """Which captioners did not get to say anything about a row, those that may another time or those that will not."""
    failures = ((name, f) for name, f in told.failed.items() if f.may_pass == may_pass)
    return "; ".join(f"{name}: {f.reason} {f.detail}".strip() for name, f in failures) or None


def measurement(measured: pa.Table) -> bytes:
    """Tells one measurement of a unit from another: what later stages say they were made of."""
    return digest_rows(measured.select(["id", "failed_reason", "pixel_hash"])).encode()


class _Looker:
    """The half of a worker that needs no model: its units come with pixels, packed for the way to a scorer."""

    def __init__(self, config: WorkerConfig) -> None:
        clip: ClipConfig | None = config.measure.clip
        self._look = Look(config.measure, None if clip is None else clip.image_size())
        self._worker = Worker(config)
        self._worker.__dict__["_look"] = self._look

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        packed = []
        for item in _items(batch):
            clock = _Clock()
            columns, chunks = self._worker.look(item)
            taken = [chunk.cut() for chunk in chunks]
            packed.append(pickle.dumps((columns, taken, clock.told()), protocol=5))
        return {**{name: list(values) for name, values in batch.items()}, "looked": packed}


class _Scorer:
    """The other half: takes a unit's pixels, runs the models, stores the unit."""

    def __init__(self, config: WorkerConfig) -> None:
        self._worker = Worker(config)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        done = []
        for item, looked in zip(_items(batch), batch["looked"], strict=True):
            columns, chunks, before = pickle.loads(looked)
            clock = _Clock()
            done.append(self._worker.finish(item, columns, iter(chunks)) | clock.told(before))
        return _batch(done)


def _without_passwords(inputs: pa.Table) -> pa.Table:
    """The inputs as they are kept: a location's password was for fetching it."""
    index = inputs.schema.get_field_index("location")
    places = without_passwords(inputs["location"])
    return inputs.set_column(index, inputs.schema.field(index), places)


class _Clock:
    """What a unit takes of a worker."""

    def __init__(self) -> None:
        self._began = time.monotonic(), time.process_time()

    def told(self, before: Item | None = None) -> Item:
        """The worker's node, whether it goes on with another's unit, and the time since it began.

        Args:
            before: what another worker has said of the same unit.
        """
        node, attempt = nodes.where()
        seconds, cpu = time.monotonic() - self._began[0], time.process_time() - self._began[1]
        spent = {"seconds": seconds, "cpu_seconds": cpu, "attempt": attempt}
        return {"node": node, **{name: value + (before[name] if before else 0) for name, value in spent.items()}}


def config_of(found: Listing) -> WorkerConfig:
    """What the actors of a job need to know."""
    return WorkerConfig(
        measure=found.measure,
        heads=found.heads,
        captions=found.captions,
        folders={name: stage.folder for name, stage in found.stages.items()},
    )


def item_of(todo: Todo) -> Item:
    """A unit as a worker takes it."""
    unit = todo.unit
    return {
        "key": unit.key,
        "inputs": unit.inputs,
        "unwanted": unit.unwanted,
        "again": todo.again,
        "stages": todo.stages,
    }


def run(found: Listing, todo: Sequence[Todo], worker: type[Worker] = Worker) -> Iterator[Item]:
    """Does what is to be done of a job's units, on the cluster that this process is connected to.

    Yields:
        For each unit, as it is stored: its `key`, `rows`, `stages` that were run, `failed`: how many rows by reason,
        `bytes` that were fetched, and what it took: `seconds`, `cpu_seconds`, the `node`, and whether it was begun
        before by a process that ended (`attempt` is not 0).
    """
    if not todo:
        return
    job, config = found.job, config_of(found)
    data = ray_data()
    units = data.from_items([_row(t) for t in todo], override_num_blocks=len(todo))

    def stage(units: Any, actor: type, size: int, gpus: float) -> Any:
        return units.map_batches(
            actor,
            batch_size=1,
            compute=data.ActorPoolStrategy(size=min(size, len(todo))),
            fn_constructor_args=[config],
            num_cpus=job.cpus_per_worker,
            num_gpus=gpus,
        )

    if job.scorers:
        done = stage(stage(units, _Looker, job.workers, 0), _Scorer, job.scorers, job.gpus_per_worker)
    else:
        done = stage(units, worker, job.workers, job.gpus_per_worker)
    for row in done.iter_rows():
        yield json.loads(row["done"])


def ray_data() -> Any:
    """Ray Data, without its talk."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray.data


def _row(todo: Todo) -> dict[str, Any]:
    """A unit as a row of plain Arrow types."""
    told = {"stages": todo.stages, "unwanted": todo.unit.unwanted, "again": todo.again}
    return {"key": todo.unit.key, "inputs": to_bytes(todo.unit.inputs), "todo": json.dumps(told)}


def _items(batch: dict[str, Any]) -> Iterator[Item]:
    for key, payload, told in zip(batch["key"], batch["inputs"], batch["todo"], strict=True):
        inputs = pa.ipc.open_stream(payload).read_all()
        yield {"key": str(key), "inputs": inputs.cast(INPUTS), **json.loads(told)}


def _batch(done: Sequence[Item]) -> dict[str, list[Any]]:
    return {"done": [json.dumps(item) for item in done]}


def to_bytes(table: pa.Table) -> bytes:
    """A table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
