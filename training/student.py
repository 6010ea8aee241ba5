"""A student in distillation: its network, its teacher, its optimizer, and what a step does to them."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor

from training import distill, layout, moments, network, objective, randomness
from training.bundle import DiffusionModel
from training.captions import CaptionChoice, CaptionStates
from training.checkpoint import State
from training.data import TrainingSet
from training.distill import Denoise, Grid
from training.distill_job import ConsistencyConfig, DistillJob
from training.learner import Place
from training.randomness import Purpose
from training.text import Conditioning


def shares(job: DistillJob, images_seen: int, place: Place) -> tuple[Tensor, ...]:
    """The indices of a worker's samples of the global batch after `images_seen`, in `accumulation` parts or fewer.

    Over all workers, of any number, they are the same `batch_size` indices.
    """
    first, end = (job.batch_size * rank // place.world_size for rank in (place.rank, place.rank + 1))
    parts: tuple[Tensor, ...] = torch.arange(images_seen + first, images_seen + end).chunk(job.accumulation)
    return parts


class Student:
    """The state of a distillation and its one operation, `step`.

    Samples are numbered over all stages. A stage begins with the first step after the end of the one before: then the
    student's weights become the teacher's and the optimizer starts anew, so that a checkpoint at the boundary is like
    any other.

    Attributes:
        unet: the student's network, never wrapped: what is saved has plain names. Whoever draws with it takes a copy of
            its weights, as it may be hastened or compiled.
        keeps_latents: see `learner.Learner`.
    """

    def __init__(
        self, job: DistillJob, model: DiffusionModel, data: TrainingSet, *, guidance_scale: float, place: Place
    ) -> None:
        """Args:
        model: the teacher, on the device to distil on; it is not changed.
        guidance_scale: that the teacher is guided by in the first stage.
        """
        self._job = job
        self._place = place
        self._model = model
        self._data = data
        self._device = model.device
        self._guidance = guidance_scale
        self._captions = CaptionStates(model.text, CaptionChoice(data.options), stored=data.states)
        self._flip = bool(model.info.job.get("flip", False))
        self.keeps_latents = data.keep_latents(model.space, flip=self._flip)
        self.unet = copy.deepcopy(model.unet).to(self._device, memory_format=layout.memory_format(self._device))
        self.unet.requires_grad_(True).train()
        self._teacher = copy.deepcopy(self.unet).eval().requires_grad_(False)
        # the moving average of a consistency model, which sets its target
        self._average = copy.deepcopy(self._teacher) if isinstance(job.method, ConsistencyConfig) else None
        if job.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        for unet in filter(None, (self.unet, self._teacher, self._average)):
            layout.hasten(unet, self._device)
            if job.compile:
                unet.compile()  # in place, so that what is saved has plain names
        self._named: list[tuple[str, Tensor]] = list(self.unet.named_parameters())
        self._parameters = [parameter for _, parameter in self._named]
        self._optimizer = self._new_optimizer()
        self._forward: Any = self.unet
        if place.world_size > 1:
            self._forward = torch.nn.parallel.DistributedDataParallel(
                self.unet, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    @property
    def resident_captions(self) -> bool:
        """Whether captions were encoded beforehand, one by one; else each batch encodes its own."""
        return self._captions.resident

    def step(self, images_seen: int) -> tuple[Tensor, Tensor]:
        """One optimizer step on the global batch that follows `images_seen`.

        Returns:
            This worker's part of the mean loss times the number of workers, and the norm of the global gradient
            before clipping, both scalars on the device.
        """
        job = self._job
        stage, done = divmod(images_seen, job.stage_images)
        if stage and not done:
            self._teacher.load_state_dict(self.unet.state_dict())
            self._optimizer = self._new_optimizer()
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate(images_seen + job.batch_size / 2)
        loss = self._gradients(images_seen, stage)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, job.grad_clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None and isinstance(job.method, ConsistencyConfig):
            with torch.no_grad():
                torch._foreach_lerp_(list(self._average.parameters()), self._parameters, 1 - job.method.ema_decay)
        return loss, norm

    def settle(self, images_seen: int) -> None:
        """Lets DDP arrange its buckets by a backward pass that is thrown away, as `Learner.settle` does."""
        if self._place.world_size > 1:
            self._gradients(images_seen, images_seen // self._job.stage_images)
            self._optimizer.zero_grad(set_to_none=True)

    def learning_rate(self, images: float) -> float:
        """The learning rate at a number of images seen: in each stage a straight line to 0."""
        return self._job.optimizer.lr * (1 - images % self._job.stage_images / self._job.stage_images)

    def _new_optimizer(self) -> torch.optim.AdamW:
        config = self._job.optimizer
        return torch.optim.AdamW(
            self._parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )

    def _gradients(self, images_seen: int, stage: int) -> Tensor:
        parts = shares(self._job, images_seen, self._place)
        total = torch.zeros((), device=self._device)
        for number, index in enumerate(parts):
            last = number == len(parts) - 1
            with contextlib.nullcontext() if last or self._forward is self.unet else self._forward.no_sync():
                # DDP takes the mean over the workers, whose shares may differ by a sample
                loss = self._loss(index, stage) * (len(index) * self._place.world_size / self._job.batch_size)
                loss.backward()
            total += loss.detach()
        return total

    def _loss(self, index: Tensor, stage: int) -> Tensor:
        """The loss of the samples with these global indices (N,)."""
        job, device = self._job, self._device
        x0, told, untold = self._samples(index)
        index = index.to(device)
        noise = randomness.normal(job.seed, Purpose.NOISE, index, tuple(x0.shape[1:]))
        if isinstance(job.method, ConsistencyConfig):
            grid = self._grid(job.method.solver_steps)
            level = 1 + randomness.timesteps(job.seed, index, len(grid))
        else:
            grid = self._grid(2 * job.student_steps(stage))
            level = 2 + 2 * randomness.timesteps(job.seed, index, job.student_steps(stage))
        xt = layout.laid_out(objective.q_sample(x0, noise, grid.level[level], self._model.prediction))
        guided = self._guidance > 1 and stage == 0
        with torch.no_grad():
            teacher = self._denoise(self._teacher, grid, told, untold if guided else None)
            if isinstance(job.method, ConsistencyConfig):
                average = self._denoise(self._average, grid, told)
                target = distill.consistency_target(teacher, average, grid, xt, level)
            else:
                target = distill.two_steps(teacher, grid, xt, level)
        output = self._output(self.unet, grid, xt, level, told, through=self._forward)
        answer = objective.to_x0(self._model.prediction, output, xt, grid.level[level])
        if isinstance(job.method, ConsistencyConfig):
            answer = distill.consistent(answer, xt, grid.thousandths[level])
            return distill.pseudo_huber(answer, target, job.method.huber_c)
        return distill.halving_loss(answer, target, distill.truncated_snr(grid, level, job.method.most_weight))

    def _grid(self, steps: int) -> Grid:
        return Grid.of(self._model.betas, steps, self._device, prediction=self._model.prediction)

    def _samples(self, index: Tensor) -> tuple[Tensor, Conditioning, Conditioning]:
        """Clean patches, what the network is told of them, and what it is told where it is told nothing."""
        seed = self._job.seed
        rows, x0 = self._data.samples(seed, index, self._model.space, self._device, flip=self._flip)
        dropped = randomness.uniform(seed, Purpose.CAPTION_DROPOUT, index) < self._job.caption_dropout
        draw = randomness.uniform(seed, Purpose.CAPTION, index)
        told = self._captions.lookup(rows, dropped, draw)
        untold = self._captions.lookup(rows, torch.ones_like(dropped), draw)
        return x0, told, untold

    def _denoise(self, unet: Any, grid: Grid, told: Conditioning, untold: Conditioning | None = None) -> Denoise:
        """A network as the sampler asks it: guided where `untold` is given, its clean picture clipped."""

        def denoise(xt: Tensor, level: Tensor) -> Tensor:
            output = self._output(unet, grid, xt, level, told)
            if untold is not None:
                without = self._output(unet, grid, xt, level, untold)
                output = without + self._guidance * (output - without)
            clean = objective.to_x0(self._model.prediction, output, xt, grid.level[level])
            clip = self._model.space.clip
            return clean if clip is None else clean.clamp(-clip, clip)

        return denoise

    def _output(
        self, unet: Any, grid: Grid, xt: Tensor, level: Tensor, told: Conditioning, *, through: Any = None
    ) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._job.precision == "bf16"):
            output = network.predict(unet, xt, grid.timesteps[level], told, through=through)
        return output.float()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """All that a checkpoint stores: `weights`, `teacher`, `optimizer` and for consistency `average`, by name."""
        parts = {
            "weights": dict(self.unet.state_dict()),
            "teacher": dict(self._teacher.state_dict()),
            "optimizer": moments.stored(self._optimizer, self._named),
        }
        return parts if self._average is None else {**parts, "average": dict(self._average.state_dict())}

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Takes the place of the run that `state` was taken from."""
        self.unet.load_state_dict(state["weights"])
        self._teacher.load_state_dict(state["teacher"])
        if self._average is not None:
            self._average.load_state_dict(state["average"])
        moments.restore(self._optimizer, self._named, state["optimizer"])
