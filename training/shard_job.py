"""Making shards (`training.data_shards`) from a manifest, once: by a Ray Data job, or in this process.

A manifest's rows lie in the order of its inputs, shards in that of the ids. So rows are first sorted into bins, each of
some consecutive files, and then every bin's files are made, one row group at a time. Both steps leave whole files only,
and a rerun does what is missing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from curation import storage
from curation.manifest import Manifest
from training.data_shards import INFO_FILE, Part, Places, ShardsInfo, ShardsPlan, missing, refuse_other
from training.roster import Roster, slots_by_part
from training.shard_faults import faults_told
from training.shard_maker import WORK, Item, Maker, Splitter, attempted

OnStage = Callable[[str, int, int], None]
"""Told of a stage, rows done and rows in all."""
_BINS = 256  # at most, so that sorting makes few files of a large manifest


class Made(Protocol):
    """What is written of shards when they are whole."""

    @property
    def spec(self) -> Any: ...
    @property
    def parts(self) -> tuple[Part, ...]: ...
    def model_dump_json(self) -> str: ...


Info = TypeVar("Info", bound=Made, covariant=True)


class Plan(Protocol[Info]):
    """Shards before they are made."""

    @property
    def uri(self) -> str: ...
    @property
    def parts(self) -> tuple[Part, ...]: ...
    @property
    def spec(self) -> Any: ...
    def known(self) -> Info | None: ...
    def info(self, parts: tuple[Part, ...]) -> Info: ...


@dataclass(frozen=True)
class How:
    """What makes a plan's files.

    Attributes:
        kind: of `shard_maker.contents`.
        columns: of the manifest, that it needs beside the ids.
        told: what it is told beside what every kind is.
        gpus: of each worker.
    """

    kind: Literal["pictures", "texts"]
    columns: tuple[str, ...]
    told: dict[str, Any]
    gpus: int = 0


def make(
    plan: ShardsPlan,
    manifest: Manifest,
    roster: Roster,
    *,
    autoencoder: str | None = None,
    workers: int = 0,
    gpus: int = 0,
    on_stage: OnStage | None = None,
) -> ShardsInfo:
    """Makes what is missing of a plan's shards.

    Args:
        roster: of the manifest; which of its rows does not matter.
        autoencoder: its folder, on storage that all workers reach.
        workers: Ray Data's; 0 works in this process, without Ray.
        gpus: of each worker.

    Raises:
        UserError: a picture is missing or damaged, shards of something else are in the folder, or the storage fails.
    """
    where = None if autoencoder is None else storage.absolute(autoencoder)
    told = {"arrays": plan.arrays, "autoencoder": where}
    how = How("pictures", ("image",), told, gpus if where is not None else 0)
    return make_with(how, plan, manifest, roster, workers=workers, on_stage=on_stage)


def make_with(
    how: How,
    plan: Plan[Info],
    manifest: Manifest,
    roster: Roster,
    *,
    workers: int = 0,
    on_stage: OnStage | None = None,
) -> Info:
    """As `make`, of shards of any kind."""
    with faults_told(plan.uri):
        known = plan.known()
        done = _done(plan, known)
        todo = [part for part in plan.parts if part.name not in done]
        if known is not None and not todo:
            return known
        job = _Job(how, plan, manifest, roster, todo)
        stages = (("sort", job.splits(), Splitter, 0), ("shards", job.bins(), Maker, how.gpus)) if todo else ()
        for name, items, run, gpus in stages:
            total, finished = sum(item["rows"] for item in items), 0
            for item in _run(run, job.told, items, workers, gpus):
                finished += item["rows"]
                if on_stage is not None:
                    on_stage(name, finished, total)
        made = [done.get(part.name) or attempted(plan.uri, part.name) for part in plan.parts]
        whole = tuple(part for part in made if part is not None)
        if len(whole) < len(plan.parts):
            raise AssertionError(f"{plan.uri} is not whole: this is a defect of cleanplate")
        info = plan.info(whole)
        storage.write_bytes(storage.join(plan.uri, INFO_FILE), info.model_dump_json().encode())
        storage.remove_tree(storage.join(plan.uri, WORK))
        return info


def _done(plan: Plan[Info], known: Info | None) -> dict[str, Part]:
    """The files that are there, by name.

    Raises:
        UserError: they are of something else.
    """
    if known is None:
        found = [told for part in plan.parts if (told := attempted(plan.uri, part.name)) is not None]
    else:
        refuse_other(plan.uri, known.spec, plan.spec)
        found = list(known.parts)
    gone = {part.name for part in missing(plan.uri, found)}
    return {part.name: part for part in found if part.name not in gone}


class _Job:
    """What is to be done, in items that a worker does one at a time."""

    def __init__(self, how: How, plan: Plan[Any], manifest: Manifest, roster: Roster, todo: Sequence[Part]) -> None:
        self._slots = slots_by_part(manifest)
        self._places = Places.of(roster)
        self._bins = [list(part) for part in np.array_split(np.arange(len(plan.parts)), min(_BINS, len(plan.parts)))]
        self._parts = plan.parts
        self._todo = {part.name for part in todo}
        # of the bins only that are wanted now: what was sorted for others is no use
        key = hashlib.sha256("".join(sorted(self._todo)).encode()).hexdigest()[:12]
        self._block = plan.spec.block
        self.told: dict[str, Any] = {
            "uri": plan.uri,
            "spec": plan.spec.model_dump(mode="json"),
            "work": storage.join(plan.uri, WORK, key),
            "manifest": storage.absolute(manifest.uri),
            "kind": how.kind,
            "columns": how.columns,
            **how.told,
        }

    def _bin_of(self) -> np.ndarray:
        """int32 (base_rows,): the bin of each slot; -1 where none of its files is wanted, or its shape is not known."""
        block = self._places.place // self._block
        found = np.full(len(block), -1, np.int32)
        for number, members in enumerate(self._bins):
            for part in (self._parts[i] for i in members):
                if part.name in self._todo:
                    mine = (
                        (self._places.shape == part.shape) & (block >= part.first) & (block < part.first + part.blocks)
                    )
                    found[mine] = number
        return found

    def splits(self) -> list[Item]:
        bin_of = self._bin_of()
        items = []
        for index, slots in enumerate(self._slots):
            wanted = {"slots": slots.tobytes(), "bins": bin_of[slots].tobytes()}
            items.append({"index": index, "rows": len(slots), **wanted})
        return items

    def bins(self) -> list[Item]:
        items = []
        there = np.concatenate([*self._slots, np.zeros(0, np.int64)])
        block, shape = self._places.place[there] // self._block, self._places.shape[there]
        for number, members in enumerate(self._bins):
            parts = [self._parts[i] for i in members if self._parts[i].name in self._todo]
            rows, told = 0, []
            for part in parts:
                mine = (shape == part.shape) & (block >= part.first) & (block < part.first + part.blocks)
                slots = np.sort(there[mine])
                rows += len(slots)
                places = self._places.place[slots] // self._block - part.first
                told.append({"part": part.model_dump(), "slots": slots.tolist(), "blocks": places.tolist()})
            if told:
                items.append({"index": number, "rows": rows, "parts": json.dumps(told)})
        return items


def _run(run: type[Any], told: dict[str, Any], items: list[Item], workers: int, gpus: int) -> Iterator[Item]:
    if workers == 0:
        worker = run(told)
        for item in items:
            yield worker.run(item)
        return
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        run,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(items))),
        fn_constructor_args=[told],
        num_cpus=1,
        num_gpus=gpus,
    )
    yield from dataset.iter_rows()
