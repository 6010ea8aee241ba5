"""One picture under way: what it asks the network next, and its own solver's state.

Forward passes are shared, nothing else is: each picture has its own solver, its own random numbers and its own row
arithmetic, elementwise, on tensors of one picture. So it ends at the same bytes in any company, wherever the network
answers a row the same in any company.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from training.onnx_denoiser import Denoiser, Rows
from training.sampling import SamplingParams
from training.space import shape
from training.stepper import Stepper

if TYPE_CHECKING:
    from training.bundle import DiffusionModel


class Told:
    """A prompt as the network is told it, with what guidance steers away from; shared by a request's pictures.

    Attributes:
        states, mask, pooled: one row, or with guidance two: with the prompt and without (`training.onnx_denoiser`).
        scale: of guidance.
    """

    def __init__(self, model: DiffusionModel, prompt: str, negative: str, scale: float) -> None:
        told = model.text.encode([prompt, negative] if scale > 1 else [prompt])
        self.states, self.mask, self.pooled = (part.cpu().numpy() for part in (told.states, told.mask, told.pooled))
        self.scale = scale


class Trajectory(Protocol):
    """What an engine takes forward, one question at a time."""

    @property
    def rows(self) -> int:
        """How many rows of a pass its question takes."""
        ...

    @property
    def bucket(self) -> Hashable:
        """Equal where two can share a pass."""
        ...

    @property
    def evaluations(self) -> int:
        """Questions in all."""
        ...

    @property
    def done(self) -> int:
        """Solver steps behind it."""
        ...

    @property
    def steps(self) -> int:
        """Solver steps in all."""
        ...

    @property
    def finished(self) -> bool: ...

    @property
    def clean(self) -> Tensor:
        """float32 (1, C, h, w): the clean picture as it looks now; in the end, the picture."""
        ...

    def ask(self) -> Rows: ...

    def advance(self, output: np.ndarray) -> None:
        """Takes the answer, float32 (rows, C, h, w)."""
        ...


class PictureTrajectory:
    """A picture of a diffusion model, from its seed on."""

    def __init__(
        self, model: DiffusionModel, told: Told, seed: int, params: SamplingParams, size: tuple[int, int] | None = None
    ) -> None:
        """
        Args:
            size: width and height in pixels; None: the model's own side, square.

        Raises:
            UserError: a sampler that cannot draw with this model.
        """
        of = shape(model.space, size or model.image_size)
        self._told = told
        self._timestep = np.float32 if model.prediction == "flow" else np.int64
        # The solver's few operations on one picture are quicker on the CPU than their launches on a GPU are.
        self._stepper = Stepper(
            [seed],
            of,
            betas=model.betas,
            prediction=model.prediction,
            sampler=params.sampler,
            steps=params.steps,
            clip=model.space.clip,
        )
        self.rows = len(told.states)
        self.bucket: Hashable = (of, told.states.shape[1:])
        self.evaluations = self._stepper.evaluations
        self.steps = self._stepper.steps

    @property
    def done(self) -> int:
        return self._stepper.done

    @property
    def finished(self) -> bool:
        return self._stepper.finished

    @property
    def clean(self) -> Tensor:
        stepper = self._stepper
        return stepper.x if stepper.finished or stepper.clean is None else stepper.clean

    def ask(self) -> Rows:
        told, x = self._told, self._stepper.x.numpy()
        return Rows(
            x=np.concatenate([x] * self.rows),
            timestep=np.full(self.rows, self._stepper.timestep, self._timestep),
            states=told.states,
            mask=told.mask,
            pooled=told.pooled,
        )

    def advance(self, output: np.ndarray) -> None:
        answer = torch.from_numpy(output)
        if self.rows == 2:
            conditional, unconditional = answer[:1], answer[1:]
            answer = unconditional + self._told.scale * (conditional - unconditional)
        self._stepper.advance(answer)


@torch.inference_mode()
def step(denoiser: Denoiser, pictures: Sequence[Trajectory]) -> list[Exception | None]:
    """One forward pass for all, after which each is one question further.

    Returns:
        What went wrong, picture by picture. Where the pass fails for several, each is tried by itself, so that only
        those fail that are at fault.
    """
    try:
        outputs = denoiser.predict(Rows.join([picture.ask() for picture in pictures]))
    except Exception as error:
        if len(pictures) == 1:
            return [error]
        return [step(denoiser, [picture])[0] for picture in pictures]
    failures: list[Exception | None] = []
    start = 0
    for picture in pictures:
        rows = picture.rows
        try:
            picture.advance(outputs[start : start + rows])
            failures.append(None)
        except Exception as error:
            failures.append(error)
        start += rows
    return failures


def finish(
    denoiser: Denoiser, pictures: Sequence[Trajectory], *, together: int = 1, after_pass: Callable[[], object]
) -> None:
    """Takes pictures to their ends in the calling thread.

    Args:
        together: rows of a pass at most; 1 takes one picture after the other.
        after_pass: called after every pass; what it raises ends it.
    """
    waiting = list(pictures)
    while waiting:
        share = [waiting[0]]
        rows = waiting[0].rows
        for picture in waiting[1:]:
            if picture.bucket == share[0].bucket and rows + picture.rows <= together:
                share.append(picture)
                rows += picture.rows
        for failure in step(denoiser, share):
            if failure is not None:
                raise failure
        after_pass()
        waiting = [picture for picture in waiting if not picture.finished]
