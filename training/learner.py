"""One model in training: the network, its average, its optimizer, and what a step does to them."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from training import layout, moments, network, objective, randomness, sharding, timesteps
from training import space as spaces
from training.captions import CaptionChoice, CaptionStates, first_captions
from training.conditioning import PromptEncoder
from training.data import TrainingSet
from training.ema import Ema, PowerEma, ShardedEma, part
from training.job import OptimizerConfig, TrainJob
from training.randomness import Purpose
from training.schedules import alphas_cumprod
from training.space import Space
from training.text import Conditioning


@dataclass(frozen=True)
class Place:
    """Where in a group of workers this process stands. With more than one, torch.distributed is set up already."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the workers, on every worker."""
        if self.world_size > 1:
            torch.distributed.all_reduce(value)
            value = value / self.world_size
        return value

    def agree(self, path: str | None) -> str | None:
        """The first worker's choice, on every worker: another may look at the storage a moment later."""
        if self.world_size == 1:
            return path
        choice = [path]
        torch.distributed.broadcast_object_list(choice, src=0)
        return choice[0]


def learning_rate(config: OptimizerConfig, images: float, budget: int) -> float:
    """The learning rate at a number of images seen: a linear rise, then a half cosine to 0 at the budget, or level."""
    rise = min(1.0, images / config.warmup_images) if config.warmup_images else 1.0
    if config.decay == "constant":
        return config.lr * rise
    span = max(budget - config.warmup_images, 1)
    done = min(max((images - config.warmup_images) / span, 0.0), 1.0)
    return config.lr * rise * 0.5 * (1 + math.cos(math.pi * done))


def shares(job: TrainJob, images_seen: int, place: Place) -> tuple[Tensor, ...]:
    """The indices of a worker's samples of the global batch after `images_seen`, by parts of at most `micro_batch`.

    Over all workers, of any number, they are the same `batch_size` indices.
    """
    first, end = (job.batch_size * rank // place.world_size for rank in (place.rank, place.rank + 1))
    parts: tuple[Tensor, ...] = torch.arange(images_seen + first, images_seen + end).split(job.micro_batch)
    return parts


class Learner:
    """The state of a run and its one operation, `step`.

    Attributes:
        unet: the network, of any kind, never wrapped: what is saved has plain names.
        ema: its moving average.
        sharded: whether the workers hold a share each of both; then all of them have to take part in `state_sha256` of
            the state, `gather` and `averaged`.
        keeps_latents: whether latents of pictures in memory are encoded once (`training.kept_latents`).
        data_seconds: that batches took to make, so far.
    """

    def __init__(
        self, job: TrainJob, data: TrainingSet, text: PromptEncoder, place: Place, space: Space | None = None
    ) -> None:
        self._job = job
        self._place = place
        self._data = data
        choice = CaptionChoice(data.options)
        text.measure(first_captions(data, choice, job.seed, job.conditioning_window))
        self._captions = CaptionStates(text, choice, stored=data.states)
        self._abar = objective.table(alphas_cumprod(job.schedule.betas()), place.device)
        self._space = space or spaces.build(job.patch_size, frames=data.frames)
        self.keeps_latents = data.keep_latents(self._space, flip=job.flip)
        self._width = text.width
        self.data_seconds = 0.0
        self.sharded = job.strategy == "fsdp" and place.world_size > 1
        self.unet = self._build().train()
        if job.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.ema: Ema | ShardedEma
        if self.sharded:
            layout.hasten(self.unet, place.device)
            sharding.shard(self.unet, place.device, bf16=job.precision == "bf16", compile=job.compile)
            self.ema = ShardedEma(self.unet, decay=job.ema.decay, warmup=job.ema.warmup)
        else:
            self.unet.to(place.device, memory_format=layout.of_network(self.unet, place.device))
            self.ema = Ema(self.unet, decay=job.ema.decay, warmup=job.ema.warmup)
            layout.hasten(self.unet, place.device)  # after the copy, which draws as whoever loads it does
            if job.compile:
                self.unet.compile()  # in place, so that what is saved has plain names
        self._profiles = {part(length): PowerEma(self.unet, length) for length in job.ema.profiles}
        self._named: list[tuple[str, Tensor]] = list(self.unet.named_parameters())
        self._parameters = [parameter for _, parameter in self._named]
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            lr=job.optimizer.lr,
            betas=job.optimizer.betas,
            weight_decay=job.optimizer.weight_decay,
            fused=True,
        )
        self._forward: Any = self.unet
        if self.sharded:
            sharding.begin(self._optimizer)
        elif place.world_size > 1:
            self._forward = torch.nn.parallel.DistributedDataParallel(
                self.unet, broadcast_buffers=False, gradient_as_bucket_view=True
            )

    def _build(self) -> Any:
        """The network before its first step, on the host."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._job.seed)
            return network.build(
                self._job.network,
                channels=self._space.channels,
                side=self._data.image_size // self._space.factor,
                width=self._width,
            )

    @property
    def resident_captions(self) -> bool:
        """Whether captions were encoded beforehand, one by one; else each batch encodes its own."""
        return self._captions.resident

    def step(self, images_seen: int, before_change: Callable[[], None] = lambda: None) -> tuple[Tensor, Tensor]:
        """One optimizer step on the global batch that follows `images_seen`.

        Args:
            before_change: called between the passes, which change nothing that `state` has, and what does.

        Returns:
            This worker's part of the mean loss times the number of workers, and the norm of the global gradient
            before clipping, both scalars on the device.
        """
        job = self._job
        middle = images_seen + job.batch_size / 2
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(job.optimizer, middle, job.steps * job.batch_size)
        loss = self._gradients(images_seen)
        # after the all-reduce, so it is the norm of the whole batch's gradient on every rank
        norm = sharding.whole(torch.nn.utils.clip_grad_norm_(self._parameters, job.grad_clip))
        before_change()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        step = images_seen // job.batch_size + 1
        self.ema.update(step)
        for average in self._profiles.values():
            average.update(step)
        return loss, norm

    def settle(self, images_seen: int) -> None:
        """Lets DDP arrange its buckets by a backward pass that is thrown away.

        It does so after the first pass of a process, and sums of three or more workers depend on the arrangement in
        their last bit. With this pass a restarted run has the arrangement that the undisturbed one has at that step.
        """
        if self._forward is not self.unet:
            self._gradients(images_seen)
            self._optimizer.zero_grad(set_to_none=True)

    def _gradients(self, images_seen: int) -> Tensor:
        parts = shares(self._job, images_seen, self._place)
        total = torch.zeros((), device=self._place.device)
        for number, index in enumerate(parts):
            last = number == len(parts) - 1
            with self._exchanging(last):
                # DDP takes the mean over the workers, whose shares may differ by a sample
                loss = self._loss(index) / (self._job.batch_size / (len(index) * self._place.world_size))
                loss.backward()
            total += loss.detach()
        return total

    def _exchanging(self, now: bool) -> contextlib.AbstractContextManager[None]:
        """Whether workers exchange their gradients after the pass inside, or add them up until a later one."""
        if self.sharded:
            self.unet.set_requires_gradient_sync(now)
        elif self._forward is not self.unet and not now:
            unsynced: contextlib.AbstractContextManager[None] = self._forward.no_sync()
            return unsynced
        return contextlib.nullcontext()

    def _loss(self, index: Tensor) -> Tensor:
        """The loss of the samples with these global indices (N,)."""
        job, device = self._job, self._place.device
        began = time.monotonic()
        x0, told = self.batch(index)
        self.data_seconds += time.monotonic() - began
        index = index.to(device)
        noise = randomness.normal(job.seed, Purpose.NOISE, index, tuple(x0.shape[1:]))
        t, level = self._levels(index)
        xt = layout.laid_out(objective.q_sample(x0, noise, level, job.prediction))
        with torch.autocast(device.type, torch.bfloat16, enabled=job.precision == "bf16"):
            output = network.predict(self.unet, xt, t, told, through=self._forward)
        return objective.loss(output, x0, noise, level, prediction=job.prediction, **job.loss.model_dump())

    def batch(self, index: Tensor) -> tuple[Tensor, Conditioning]:
        """What the samples with these global indices (N,) show, (N, C, h, w) on the device, and what they are told."""
        job, device = self._job, self._place.device
        rows, x0 = self._data.samples(job.seed, index, self._space, device, flip=job.flip)
        dropped = randomness.uniform(job.seed, Purpose.CAPTION_DROPOUT, index) < job.caption_dropout
        told = self._captions.lookup(rows, dropped, randomness.uniform(job.seed, Purpose.CAPTION, index))
        return x0, told

    def _levels(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is told of the noise level, and the level as `objective` takes it, of each sample (N,)."""
        job = self._job
        time = timesteps.times(job.timestep_sampling, job.seed, index, job.batch_size)
        if job.prediction == "flow":
            return (time * job.schedule.timesteps).float(), time
        t = timesteps.levels(time, len(self._abar))
        return t, self._abar[t]

    def state(self) -> dict[str, dict[str, Tensor]]:
        """All that a checkpoint stores: parts `weights`, `ema` and `optimizer`, and `averages`, by plain parameter
        names."""
        return {
            **self.averages(),
            "weights": dict(self.unet.state_dict()),
            "ema": self.ema.state(),
            "optimizer": moments.stored(self._optimizer, self._named),
        }

    def averages(self) -> dict[str, dict[str, Tensor]]:
        """A part `ema_<sigma_rel>` for each of the job's `ema.profiles`."""
        return {name: average.weights for name, average in self._profiles.items()}

    def averaged(self) -> Any:
        """The averaged network, in evaluation mode; where the workers hold shares of it, put together on the first one,
        and None on the others."""
        if isinstance(self.ema, Ema):
            return self.ema.model
        weights = sharding.gather(self.ema.state(), keep=self._place.rank == 0)
        if self._place.rank != 0:
            return None
        model = self._build().eval().requires_grad_(False)
        model.load_state_dict(weights)
        return model.to(self._place.device, memory_format=layout.of_network(model, self._place.device))

    @torch.no_grad()
    def restore(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Takes the place of the run that `state` was taken from. Where the workers hold shares, `state()` is filled in
        place instead (`training.shards`)."""
        assert isinstance(self.ema, Ema)
        self.unet.load_state_dict(state["weights"])
        self.ema.model.load_state_dict(state["ema"])
        for name, average in self._profiles.items():
            average.restore(state[name])
        moments.restore(self._optimizer, self._named, state["optimizer"])
