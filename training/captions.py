"""The captions of a training set: which one a sample is told, and what the network sees of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training import randomness
from training.conditioning import PromptEncoder
from training.data import Options, TrainingSet
from training.randomness import Purpose
from training.text import Conditioning

STATES_CAP_BYTES = 2 << 30  # of encoded captions kept in memory; above it they are encoded batch by batch


class CaptionChoice:
    """Which of its captions a row is told.

    Attributes:
        distinct: all captions that any row may be told, and the empty one, sorted.
    """

    def __init__(self, options: Sequence[Options]) -> None:
        self.distinct = sorted({"", *(caption for row in options for caption, _ in row)})
        number = {caption: i for i, caption in enumerate(self.distinct)}
        self._empty = number[""]
        # (N, S): the number of each of a row's captions, and where on [0, 1) the next one begins. The last one has no
        # end, so that rounding leaves no gap; a row with fewer captions is filled up with such, which no draw reaches.
        most = max(map(len, options), default=1)
        self._number = torch.full((len(options), most), self._empty)
        self._end = torch.full((len(options), most), 2.0, dtype=torch.float64)
        for row, told in enumerate(options):
            self._number[row, : len(told)] = torch.tensor([number[caption] for caption, _ in told])
            share = torch.tensor([share for _, share in told], dtype=torch.float64)
            self._end[row, : len(told) - 1] = share.cumsum(0)[:-1]

    def told(self, rows: Tensor, dropped: Tensor, draw: Tensor) -> Tensor:
        """The captions of training rows, as places in `distinct`: int64 (N,).

        Args:
            rows: int64 (N,).
            dropped: bool (N,), where the empty caption stands in.
            draw: float64 (N,) in [0, 1), which of a row's captions is told.
        """
        which = (draw[:, None] >= self._end[rows]).sum(dim=1)
        return torch.where(dropped, self._empty, self._number[rows, which])


def first_captions(data: TrainingSet, choice: CaptionChoice, seed: int, images: int) -> list[str]:
    """The distinct captions of the first samples of a run, sorted; those that dropout leaves out count, too."""
    index = torch.arange(images)
    draw = randomness.uniform(seed, Purpose.CAPTION, index)
    told = choice.told(data.shown(seed, index), torch.zeros(images, dtype=torch.bool), draw)
    return [choice.distinct[i] for i in told.unique().tolist()]


class CaptionStates:
    """The captions of a training set, encoded.

    The tower is frozen, so every distinct caption is encoded once. Should the states not fit `cap` bytes, each batch
    encodes its own. What a batch is told depends on its own captions to the bit, and not on what else is in the set:
    kept states were encoded one caption at a time, and positions that no caption of the batch uses are cut off.

    Attributes:
        resident: whether the states are kept.
    """

    def __init__(self, text: PromptEncoder, choice: CaptionChoice, *, cap: int = STATES_CAP_BYTES) -> None:
        self._text = text
        self._choice = choice
        self._encoded: Conditioning | None = None
        self.resident = len(choice.distinct) * text.length * text.width * 4 <= cap
        if self.resident:
            self._encoded = text.encode(choice.distinct).cropped()
            self._used = self._encoded.mask.sum(dim=1).cpu()  # here, so that a batch need not wait for the device

    def lookup(self, rows: Tensor, dropped: Tensor, draw: Tensor) -> Conditioning:
        """What to condition training rows on; the arguments are those of `CaptionChoice.told`."""
        number = self._choice.told(rows, dropped, draw)
        if self._encoded is None:
            return self._text.encode([self._choice.distinct[i] for i in number.tolist()], chunk=len(rows)).cropped()
        used = int(self._used[number].max())
        return self._encoded[number.to(self._encoded.states.device)].cropped(used)
