"""The captions of a training set: which one a sample is told, and what the network sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from training import randomness
from training.conditioning import PromptEncoder
from training.data import Options, TrainingSet
from training.randomness import Purpose
from training.text import Conditioning

if TYPE_CHECKING:
    from training.text_states import StoredStates

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

    The tower is frozen, so every distinct caption is encoded once: into memory, or beforehand into shards. Without
    shards, and should the states not fit `cap` bytes, each batch encodes its own. What a batch is told depends on its
    own captions to the bit, and not on what else is in the set: states that are kept, here or in shards, were encoded
    one caption at a time, and positions that no caption of the batch uses are cut off.

    Attributes:
        resident: whether the states are kept, here or in shards.
    """

    def __init__(
        self,
        text: PromptEncoder,
        choice: CaptionChoice,
        *,
        stored: StoredStates | None = None,
        cap: int = STATES_CAP_BYTES,
    ) -> None:
        self._text = text
        self._choice = choice
        self._stored = stored
        self._encoded: Conditioning | None = None
        fits = len(choice.distinct) * text.length * text.width * 4 <= cap
        self.resident = fits or stored is not None
        if stored is not None:
            states, mask = text.tokens([""])
            self._empty = states[0, : int(mask.sum())].cpu()
        elif fits:
            self._encoded = text.encode(choice.distinct).cropped()
            self._used = self._encoded.mask.sum(dim=1).cpu()  # here, so that a batch need not wait for the device

    def lookup(self, rows: Tensor, dropped: Tensor, draw: Tensor) -> Conditioning:
        """What to condition training rows on; the arguments are those of `CaptionChoice.told`."""
        number = self._choice.told(rows, dropped, draw)
        if self._encoded is not None:
            used = int(self._used[number].max())
            return self._encoded[number.to(self._encoded.states.device)].cropped(used)
        prompts = [self._choice.distinct[i] for i in number.tolist()]
        if self._stored is None:
            return self._text.encode(prompts, chunk=len(rows)).cropped()
        return self._from_shards(self._stored, rows, prompts)

    def _from_shards(self, stored: StoredStates, rows: Tensor, prompts: list[str]) -> Conditioning:
        captions = [self._text.caption_of(prompt) for prompt in prompts]
        there = [i for i, caption in enumerate(captions) if caption]
        found = [self._empty] * len(captions)
        for i, states in zip(there, stored.read(rows[there], [captions[i] for i in there]), strict=True):
            found[i] = states
        tokens = torch.tensor([len(states) for states in found])
        mask = torch.arange(int(tokens.max()))[None, :] < tokens[:, None]
        states = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
        return self._text.told(prompts, states.to(self._text.device), mask.to(self._text.device))
