"""Checkpoints of a network that is split over workers: each worker writes what it holds, through DCP.

`torch.distributed.checkpoint` plans who writes and who reads what; a checkpoint may be read by another number of
workers than wrote it. The files are `training.pieces`'s, without a pickle, under the rules of `training.checkpoint`:
the first worker publishes the folder once all have written, and `checkpoint.json` holds the sha256 of every file.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.futures import Future

from curation import storage
from training import checkpoint, pieces
from training.checkpoint import CheckpointInfo, Standing, State
from training.pieces import INDEX_FILE, Header, Index, Piece, Stored

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from training.writer import Write


@dataclass(frozen=True)
class Split:
    """How a tensor is split over the workers: its size as a whole, and where DTensor puts the shares."""

    size: torch.Size
    stride: tuple[int, ...]
    placements: tuple[Any, ...]


class ShardFiles:
    """The checkpoints of one group of workers. To be made by all of them at once.

    Its exchanges are on a group of its own (gloo), as they happen in another thread than training's.
    """

    def __init__(self) -> None:
        self._group: ProcessGroup = dist.new_group(backend="gloo")
        self._mesh = DeviceMesh.from_group(self._group, "cpu")

    def write_like(self, state: State) -> Write:
        """What `Writer` is to call, on every worker, with the shares of tensors that are split as those of a state."""
        split = {
            key: Split(tensor.size(), tensor.stride(), tensor.placements)
            for key, tensor in pieces.flat(state).items()
            if isinstance(tensor, DTensor)
        }
        return functools.partial(self._save, split=split)

    def _save(
        self,
        folder: str,
        state: State,
        info: CheckpointInfo,
        *,
        keep: int,
        keep_best: int,
        standing: Callable[[], Standing] | None,
        split: Mapping[str, Split],
    ) -> str:
        """Writes a checkpoint and returns its path; `state` has this worker's shares, in the host's memory.

        Raises:
            OSError: on every worker, when one of them could not write.
        """
        writer = _Writer(folder, info)
        given = {}
        for key, tensor in pieces.flat(state).items():
            if key not in split:
                given[key] = tensor
            elif tensor.numel():
                how = split[key]
                given[key] = DTensor.from_local(
                    tensor, self._mesh, how.placements, run_check=False, shape=how.size, stride=how.stride
                )
        planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        try:
            state_dict_saver.save(given, storage_writer=writer, planner=planner, process_group=self._group)
        except CheckpointException as error:
            raise OSError(_told(error)) from error
        finally:
            writer.sweep()
        if dist.get_rank(self._group) == 0:
            checkpoint.remove_old(folder, keep, keep_best, None if standing is None else standing())
        return writer.target

    def read(self, path: str, info: CheckpointInfo, *, into: State) -> State:
        """Fills the tensors of a state in place, each worker its shares. Returns the state.

        Raises:
            UserError: on every worker, for a checkpoint that is damaged.
        """
        workers, rank = dist.get_world_size(self._group), dist.get_rank(self._group)
        mine = dict(sorted(info.files.items())[rank::workers])
        found: list[str | None] = [None] * workers
        dist.all_gather_object(found, checkpoint.problem_of(path, mine), group=self._group)
        for problem in found:
            if problem is not None:
                raise checkpoint.damaged(path, problem)
        wanted = {
            key: tensor
            for key, tensor in pieces.flat(into).items()
            if not isinstance(tensor, DTensor) or tensor.to_local().numel()
        }
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        try:
            state_dict_loader.load(
                dict(wanted), storage_reader=_Reader(path, info), planner=planner, process_group=self._group
            )
        except CheckpointException as error:
            raise checkpoint.damaged(path, _told(error)) from error
        return into


def _told(error: CheckpointException) -> str:
    """What went wrong on the first worker where something did."""
    rank, (cause, _) = min(error.failures.items())
    return f"{type(cause).__name__} on worker {rank}: {cause}"


class _Writer(StorageWriter):
    """One checkpoint being written. `target` is where it will lie."""

    def __init__(self, folder: str, info: CheckpointInfo) -> None:
        self.target, self._staging = checkpoint.places(folder, info.images_seen)
        self._info = info
        self._coordinates = False

    def sweep(self) -> None:
        """Removes what is left when it was not published."""
        if self._coordinates and self._staging != self.target:
            storage.remove_tree(self._staging)

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._coordinates = is_coordinator

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """All write into the first worker's staging folder, whose name is its own."""
        count = len(plans)
        return [
            dataclasses.replace(plan, storage_data=(self._staging, f"{rank:05d}-of-{count:05d}.safetensors"))
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        staging, file = plan.storage_data
        tensors = {}
        for item in plan.items:
            data = planner.resolve_data(item)
            assert isinstance(data, Tensor)  # a state has nothing else
            tensors[item.index.fqn] = data.detach().contiguous()
        content = safetensors.torch.save(tensors)
        sha256 = hashlib.sha256(content).hexdigest()
        storage.write_bytes(storage.join(staging, file), content)
        header = Header.of(content)
        results = []
        for item in plan.items:
            dtype, size, start = header.tensors[item.index.fqn]
            offset = tuple(item.index.offset or (0,) * len(size))
            piece = Piece(file=file, start=start, offset=offset, size=size)
            results.append(WriteResult(item.index, tensors[item.index.fqn].nbytes, (dtype, piece, sha256)))
        written: Future[list[WriteResult]] = Future()
        written.set_result(results)
        return written

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the first worker, when all have written."""
        files: dict[str, str] = {}
        found: dict[str, tuple[str, list[Piece]]] = {}
        for result in (result for of_worker in results for result in of_worker):
            dtype, piece, sha256 = result.storage_data
            files[piece.file] = sha256
            found.setdefault(result.index.fqn, (dtype, []))[1].append(piece)
        tensors = {}
        for key, (dtype, held) in sorted(found.items()):
            told = metadata.state_dict_metadata[key]
            assert isinstance(told, TensorStorageMetadata)
            tensors[key] = Stored(dtype=dtype, size=tuple(told.size), pieces=tuple(held))
        index = Index(tensors=tensors).model_dump_json().encode()
        storage.write_bytes(storage.join(self._staging, INDEX_FILE), index)
        files[INDEX_FILE] = hashlib.sha256(index).hexdigest()
        checkpoint.publish(self.target, self._staging, self._info.model_copy(update={"files": files}))


class _Reader(StorageReader):
    """One checkpoint being read, written by workers or by one process."""

    def __init__(self, path: str, info: CheckpointInfo) -> None:
        self._path = path
        self._files = tuple(info.files)
        self._tensors: dict[str, Stored] = {}

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        self._tensors = pieces.index_of(self._path, self._files).tensors
        return Metadata(
            {
                key: TensorStorageMetadata(
                    TensorProperties(stored.torch_dtype),
                    torch.Size(stored.size),
                    [ChunkStorageMetadata(torch.Size(p.offset), torch.Size(p.size)) for p in stored.pieces],
                )
                for key, stored in self._tensors.items()
            }
        )

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[tuple[ReadItem, Piece]]] = {}
        for item in plan.items:
            offset = tuple(item.storage_index.offset or ())
            held = next(p for p in self._tensors[item.storage_index.fqn].pieces if p.offset == offset)
            by_file.setdefault(held.file, []).append((item, held))
        for file, wanted in by_file.items():
            with storage.open_file(storage.join(self._path, file)) as stream:
                for item, held in sorted(wanted, key=lambda pair: pair[1].start):
                    dtype = self._tensors[item.storage_index.fqn].torch_dtype
                    tensor = pieces.read(stream, held, dtype, item.storage_offsets, item.lengths)
                    target = planner.resolve_tensor(item)
                    target.detach().copy_(tensor)
                    planner.commit_tensor(item, target)
        read: Future[None] = Future()
        read.set_result(None)
        return read
