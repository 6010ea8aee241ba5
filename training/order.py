"""The order of a run: which slot of its base set each sample shows. One definition for training, traces and proofs.

Nothing is drawn in sequence and nothing is stored: all of it is a function of the seed and of a sample's index
(`training.randomness`). There are three kinds.

Whole: every epoch is a permutation of all slots. That is what a set in memory is read in.

Windowed: the slots are cut into blocks, which lie together on disk. An epoch permutes the blocks, and inside a window
of so many consecutive permuted blocks it permutes the slots. So a reader needs the blocks of one window at a time.

By shape: pictures of several shapes cannot share a batch, so that each step is given one shape. The k-th batch of shape
b, of n_b slots, is due at (k + u_bk) B / n_b epochs, where B is the batch size and u_bk a uniform draw, and the steps
take the batches as they are due. So after any number of epochs each shape had its share to within one batch, no partial
batch is ever dropped, and every worker knows which shape the others have. Each shape has an order of its own, of either
kind, whose epochs run on from batch to batch.

A sample whose slot was removed walks on until it lands on one that is still there, so that a removal moves no other
sample. In a window it walks inside it; a shape of which nothing is left is stood in for by others, batch by batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from training import randomness
from training.randomness import Purpose, keys, permuted, unpermuted
from training.roster import OrderInfo, Roster, Shapes
from training.shape_schedule import ShapeSchedule

_CHUNK = 1 << 20  # samples whose slots are computed at once
_WALK = 64  # steps inside a window before a walk leaves it


class Stream(Protocol):
    """An endless order over `count` places, epoch by epoch."""

    count: int

    def places(self, position: Tensor) -> Tensor:
        """The places (N,) of positions (N,)."""
        ...

    def times_seen(self, positions: int) -> Tensor:
        """How often the first so many positions show each place: int64 (count,)."""
        ...

    def first_seen(self, positions: int) -> Tensor:
        """The first of so many positions that shows each place: int64 (count,), `positions` where none does."""
        ...


class Whole:
    """Every epoch a permutation of all places (`randomness.rows`)."""

    def __init__(self, seed: int, count: int, removed: Tensor | None) -> None:
        self.count = count
        self._seed = seed
        self._removed = removed

    def places(self, position: Tensor) -> Tensor:
        return randomness.rows(self._seed, position, self.count, self._removed)

    def times_seen(self, positions: int) -> Tensor:
        return randomness.times_seen(self._seed, positions, self.count, self._removed)

    def first_seen(self, positions: int) -> Tensor:
        return randomness.first_seen(self._seed, positions, self.count, self._removed)


class Windowed:
    """Permuted blocks, and permuted places inside windows of them.

    Where `count` is no multiple of `block`, one block is short; an epoch puts it at a place of its own. Positions are
    then padded behind it, so that in padded positions every block begins at a multiple of `block`.
    """

    def __init__(self, seed: int, count: int, removed: Tensor | None, *, window: int, block: int) -> None:
        self.count = count
        self._seed = seed
        self._removed = removed
        self._block = block
        self._full, self._short = divmod(count, block)
        self._blocks = self._full + (self._short > 0)
        self._per = max(1, window // block)  # blocks of a window
        self._windows = -(-self._blocks // self._per)

    def places(self, position: Tensor) -> Tensor:
        position = position.to(torch.int64)
        epoch = position // self.count
        short = self._place_of_short(epoch)
        at = position % self.count
        window = self._padded(at, short) // self._block // self._per
        begin, size = self._window(window, short)
        inside = permuted(self._keys(epoch, window), at - begin, size)
        place = self._place(epoch, short, begin + inside)
        return place if self._removed is None else self._still_there(epoch, short, window, inside, place, self._removed)

    def blocks(self, epoch: int, window: int) -> list[int]:
        """The blocks of one window of an epoch, in order."""
        number = torch.arange(window * self._per, min((window + 1) * self._per, self._blocks))
        at = torch.full_like(number, epoch)
        found: list[int] = self._block_at(at, self._place_of_short(at), number).tolist()
        return found

    def window_of(self, position: int) -> tuple[int, int]:
        """The epoch and the window of a position."""
        epoch, at = divmod(position, self.count)
        short = self._place_of_short(torch.tensor([epoch]))
        return epoch, int(self._padded(torch.tensor([at]), short)) // self._block // self._per

    @property
    def windows(self) -> int:
        """Windows of an epoch."""
        return self._windows

    def _place_of_short(self, epoch: Tensor) -> Tensor:
        """Which of an epoch's blocks, by order, the short one is; behind all where there is none."""
        if not self._short:
            return torch.full_like(epoch, self._blocks)
        return (randomness.uniform(self._seed, Purpose.ORDER_SHORT, epoch) * self._blocks).to(torch.int64)

    def _padded(self, at: Tensor, short: Tensor) -> Tensor:
        behind = at >= short * self._block + self._short
        return at + behind * (self._block - self._short)

    def _begin(self, number: Tensor, short: Tensor) -> Tensor:
        """Positions before an epoch's block of this number, by order."""
        return number * self._block - (number > short) * (self._block - self._short)

    def _window(self, window: Tensor, short: Tensor) -> tuple[Tensor, Tensor]:
        """The first position of a window, and how many it has."""
        begin = self._begin(window * self._per, short)
        return begin, self._begin(((window + 1) * self._per).clamp(max=self._blocks), short) - begin

    def _keys(self, epoch: Tensor, window: Tensor, step: int = 0) -> Tensor:
        return keys(self._seed, Purpose.ORDER_WINDOW, epoch * self._windows + window, step)

    def _block_at(self, epoch: Tensor, short: Tensor, number: Tensor) -> Tensor:
        """Which block is an epoch's block of this number, by order."""
        is_short = number == short
        full = torch.where(is_short, 0, number - (number > short).to(torch.int64))
        found = permuted(keys(self._seed, Purpose.ORDER_BLOCKS, epoch), full, max(self._full, 1))
        return torch.where(is_short, self._full, found)

    def _place(self, epoch: Tensor, short: Tensor, at: Tensor) -> Tensor:
        """The place that stands at a position of an epoch before its windows are permuted."""
        padded = self._padded(at, short)
        return self._block_at(epoch, short, padded // self._block) * self._block + padded % self._block

    def _still_there(
        self, epoch: Tensor, short: Tensor, window: Tensor, inside: Tensor, place: Tensor, removed: Tensor
    ) -> Tensor:
        """The places (N,) where walks end that begin `inside` the windows of these epochs, which is at `place`."""
        place, inside = place.clone(), inside.clone()
        lost = removed[place].nonzero().flatten()
        begun = place[lost]
        left, step = lost, 0
        while len(left) and step < _WALK:
            step += 1
            begin, size = self._window(window[left], short[left])
            inside[left] = permuted(self._keys(epoch[left], window[left], step), inside[left], size)
            place[left] = self._place(epoch[left], short[left], begin + inside[left])
            left = left[removed[place[left]]]
        if len(left):  # all but nothing is left of its window
            first = torch.empty_like(place)
            first[lost] = begun
            place[left] = randomness.still_there(self._seed, epoch[left], first[left], removed)
        return place

    def _instead(self, epoch: Tensor, place: Tensor, removed: Tensor) -> Tensor:
        """What epochs (N,) show instead of removed places (N,)."""
        short = self._place_of_short(epoch)
        block = place // self._block
        key, full = keys(self._seed, Purpose.ORDER_BLOCKS, epoch), max(self._full, 1)
        number = unpermuted(key, block.clamp(max=full - 1), full)
        number = torch.where(block == self._full, short, number + (number >= short).to(torch.int64))
        window = number // self._per
        begin, _ = self._window(window, short)
        inside = self._begin(number, short) + place % self._block - begin
        return self._still_there(epoch, short, window, inside, place, removed)

    def times_seen(self, positions: int) -> Tensor:
        epochs, rest = divmod(positions, self.count)
        seen = torch.full((self.count,), epochs, dtype=torch.int64)
        if self._removed is not None and epochs:
            gone = self._removed.nonzero().flatten()
            seen[gone] = 0
            together = max(1, _CHUNK // max(len(gone), 1))
            for first in range(0, epochs, together):
                epoch = torch.arange(first, min(first + together, epochs)).repeat_interleave(len(gone))
                instead = self._instead(epoch, gone.repeat(len(epoch) // max(len(gone), 1)), self._removed)
                seen += torch.bincount(instead, minlength=self.count)
        for part in torch.arange(positions - rest, positions).split(_CHUNK):
            seen += torch.bincount(self.places(part), minlength=self.count)
        return seen

    def first_seen(self, positions: int) -> Tensor:
        first = torch.full((self.count,), positions, dtype=torch.int64)
        for part in torch.arange(min(positions, self.count)).split(_CHUNK):  # an epoch shows all that are there
            first.scatter_reduce_(0, self.places(part), part, "amin")
        return first


class Order:
    """The order of one run: the slots of its base set by sample index.

    Attributes:
        info: what it depends on.
        base_rows: slots.
    """

    def __init__(
        self, info: OrderInfo, seed: int, base_rows: int, removed: np.ndarray, shapes: Shapes | None = None
    ) -> None:
        """Args:
        removed: bool (base_rows,), the empty slots.
        shapes: of the slots' pictures; None where all have one.
        """
        self.info = info
        self.base_rows = base_rows
        self._seed = seed
        self._removed = torch.from_numpy(removed) if removed.any() else None
        self._shapes = shapes

    @classmethod
    def of(cls, roster: Roster, seed: int) -> Order:
        """The order of a run on a roster."""
        return cls(roster.info.order, seed, roster.info.base_rows, roster.removed, roster.shapes)

    def slots(self, index: Tensor) -> Tensor:
        """The slot that each global sample index (N,) shows: int64 (N,).

        Raises:
            ValueError: when no slot is left.
        """
        if self._shapes is None:
            return self._stream.places(index)
        index = index.to(torch.int64)
        shape, batch = self._schedule.at(index // self._batch)
        position = batch * self._batch + index % self._batch
        found = torch.empty_like(index)
        for number in shape.unique().tolist():
            mine = shape == number
            found[mine] = self._of_shape(number, position[mine])
        return found

    def times_seen(self, images: int) -> Tensor:
        """How often the first `images` samples show each slot: int64 (base_rows,)."""
        if self._shapes is None:
            return self._stream.times_seen(images)
        seen = torch.zeros(self.base_rows, dtype=torch.int64)
        for number, positions in self._positions(images):
            if self._is_there(number):
                seen[self._members[number]] += self._streams[number].times_seen(positions)
            else:
                for part in torch.arange(positions).split(_CHUNK):
                    seen += torch.bincount(self._of_shape(number, part), minlength=self.base_rows)
        return seen

    def first_seen(self, images: int) -> Tensor:
        """The first of `images` samples that shows each slot: int64 (base_rows,), `images` where none does."""
        if self._shapes is None:
            return self._stream.first_seen(images)
        first = torch.full((self.base_rows,), images, dtype=torch.int64)
        steps = self._schedule.upto(-(-images // self._batch))
        for number, positions in self._positions(images):
            step_of = (steps == number).nonzero().flatten()
            if self._is_there(number):
                found = self._streams[number].first_seen(positions)
                there = (found < positions).nonzero().flatten()
                self._note(first, self._members[number][there], found[there], step_of)
            else:
                for part in torch.arange(positions).split(_CHUNK):
                    self._note(first, self._of_shape(number, part), part, step_of)
        return first

    def _note(self, first: Tensor, slots: Tensor, position: Tensor, step_of: Tensor) -> None:
        """Lowers `first` to the samples at positions of a shape's own order, whose batches are at these steps."""
        sample = step_of[position // self._batch] * self._batch + position % self._batch
        first.scatter_reduce_(0, slots, sample, "amin")

    # --- one shape ---

    @cached_property
    def _stream(self) -> Stream:
        return self._new_stream(self._seed, self.base_rows, self._removed)

    def _new_stream(self, seed: int, count: int, removed: Tensor | None) -> Stream:
        if self.info.window is None:
            return Whole(seed, count, removed)
        assert self.info.block is not None, "a window is one of blocks"
        return Windowed(seed, count, removed, window=self.info.window, block=self.info.block)

    # --- several shapes ---

    @property
    def _batch(self) -> int:
        assert self.info.batch_size is not None, "an order of shapes is one of batches"
        return self.info.batch_size

    @cached_property
    def _members(self) -> list[Tensor]:
        """By shape, its slots, ascending."""
        assert self._shapes is not None
        return [torch.from_numpy(np.flatnonzero(self._shapes.of == i)) for i in range(len(self._shapes.sizes))]

    @cached_property
    def _streams(self) -> list[Stream]:
        return [self._stream_of(number, number) for number in range(len(self._members))]

    @cached_property
    def _schedule(self) -> ShapeSchedule:
        assert self._shapes is not None
        marks = [_mark(size) for size in self._shapes.sizes]
        return ShapeSchedule(self._seed, marks, [len(slots) for slots in self._members], self._batch)

    def _stream_of(self, number: int, instead_of: int) -> Stream:
        """The order of a shape's slots, its own or the one in which it stands in for another shape."""
        assert self._shapes is not None
        marks = [_mark(self._shapes.sizes[i]) for i in (number, instead_of)]
        seed = int(keys(self._seed, Purpose.SHAPE, torch.tensor([marks[0]]), marks[1])[0]) & ((1 << 63) - 1)
        members = self._members[number]
        removed = None if self._removed is None else self._removed[members]
        return self._new_stream(seed, len(members), removed)

    @cached_property
    def _left(self) -> list[bool]:
        return [self._removed is None or not bool(self._removed[slots].all()) for slots in self._members]

    def _is_there(self, number: int) -> bool:
        return self._left[number]

    def _of_shape(self, number: int, position: Tensor) -> Tensor:
        """The slots that positions (N,) of a shape's own order show."""
        if self._is_there(number):
            return self._members[number][self._streams[number].places(position)]
        found = torch.empty_like(position)
        batch = position // self._batch
        for b in batch.unique().tolist():
            other = self._stands_in(number, b)
            mine = batch == b
            found[mine] = self._members[other][self._stream_of(other, number).places(position[mine])]
        return found

    def _stands_in(self, number: int, batch: int) -> int:
        """The shape whose slots a batch of an empty shape shows: the first of a permutation of its own that has any."""
        assert self._shapes is not None
        if not any(self._left):
            raise ValueError("every slot was removed")
        key = keys(self._seed, Purpose.SHAPE_INSTEAD, torch.tensor([batch]), _mark(self._shapes.sizes[number]))
        count = len(self._members)
        for other in permuted(key.expand(count), torch.arange(count), count).tolist():
            if self._left[other]:
                return int(other)
        raise AssertionError

    def _positions(self, images: int) -> Sequence[tuple[int, int]]:
        """By shape, how many positions of its own order the first `images` samples show."""
        steps = self._schedule.upto(images // self._batch)
        positions = (torch.bincount(steps, minlength=len(self._members)) * self._batch).tolist()
        if images % self._batch:
            shape, _ = self._schedule.at(torch.tensor([images // self._batch]))
            positions[int(shape)] += images % self._batch
        return [(number, count) for number, count in enumerate(positions) if count]


def _mark(size: tuple[int, int]) -> int:
    """A shape as a number that no other has, whichever else a set holds."""
    return size[0] * (1 << 20) + size[1]
