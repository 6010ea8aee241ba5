"""Pictures from a request, in a plain process: the replica runs this, and so does `cleanplate generate` by itself.

The same seed gives the same bytes. A picture depends on the model, its prompts, its seed, steps, guidance and sampler,
and on nothing else: not on the other images of the request, nor on other requests; and an encoder's settings are fixed.
(Between machines, numbers of CPU threads or backends the last bits of the arithmetic may differ, and then so may the
bytes.) `generate` is the way of one request by itself; `serving.service` takes many at once, by the same parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from torch import Tensor

from curation import torchvision_ops
from curation.errors import UserError
from serving import backends, guard, marking, neighbours, takedowns
from serving.admission import Limits, ModelCard, Plan, SamplingDefaults, admit
from serving.api import (
    GenerationRequest,
    GenerationResponse,
    SamplerName,
    Timings,
)
from serving.backends import Backend
from serving.finishing import Finisher, Picture, Redraw, Seen
from serving.guard import Guard
from serving.job import ServeJob
from serving.marking import Marker, Marks
from serving.neighbours import Neighbours
from serving.prompts import guard as prompts
from serving.prompts.guard import PromptGuard
from serving.standing import TakedownStanding, Vocabulary
from serving.trajectory import PictureTrajectory, Told, finish
from training.bundle import CAPTION_CAP, DiffusionModel, load_bundle, local_bundle, words_of
from training.pairs import refuse_sampler
from training.sampling import SamplingParams, timestep_grid
from training.tracking import ModelVersion, resolve


class Stopped(Exception):  # noqa: N818 - not an error: whoever asked for the pictures has gone
    """Raised out of the sampling when `stop` says so."""


@dataclass(frozen=True)
class Generation:
    """What became of a request."""

    pictures: tuple[Picture, ...]
    plan: Plan
    card: ModelCard
    timings: Timings
    created: int

    def response(self) -> GenerationResponse:
        """The answer as it goes over the wire."""
        return GenerationResponse(
            created=self.created,
            data=[picture.datum() for picture in self.pictures],
            output_format=self.plan.output_format,
            size=self.plan.size,
            model=self.card.name,
            model_version=self.card.version,
            manifest_id=self.card.manifest_id,
            steps=self.plan.steps,
            sampler=self.plan.sampler,
            guidance_scale=self.plan.guidance_scale,
            timings=self.timings,
            backend=self.card.backend,
            exact=self.card.exact,
        )


class Generator:
    """One model version with its guard and the operator's limits. Not for two threads at once.

    Args:
        version: which version of the registry `model` is.
        model: the rebuilt model, on its device.
        guard: looks at finished pictures; None lets all pass.
        limits: what a request may ask for.
        defaults: what a silent request gets; None: what the bundle says.
        standing: how the version stands to the takedowns in force; None where nobody looked.
        backend: what runs the network; None: the network as it is, each picture by itself.
        marks: what pictures are marked with; None: with nothing.
        prompts: looks at prompts; None lets all pass.
        neighbours: knows the training pictures near to what is drawn; None: nobody does.
    """

    def __init__(
        self,
        version: ModelVersion,
        model: DiffusionModel,
        guard: Guard | None,
        limits: Limits,
        defaults: SamplingDefaults | None = None,
        standing: TakedownStanding | None = None,
        backend: Backend | None = None,
        marks: Marks | None = None,
        prompts: PromptGuard | None = None,
        neighbours: Neighbours | None = None,
    ) -> None:
        self.version = version
        self.model = model
        self.backend = backend or backends.plain(model)
        self._limits = limits
        self._prompts = prompts
        samplers = _samplers(model)
        levels = min(len(timestep_grid(model.betas, sampler, len(model.betas))) for sampler in samplers)
        silent = defaults or SamplingDefaults.model_validate(model.info.sampling.model_dump())
        if silent.sampler not in samplers:
            raise UserError(
                f"sampler {silent.sampler} cannot draw with this model",
                field="defaults.sampler",
                remedy=f"use {' or '.join(samplers)}, or leave defaults out",
            )
        # A bundle knows nothing of this server's limits; asking for nothing must not be refused.
        silent = silent.model_copy(update={"steps": min(silent.steps, limits.max_steps, levels)})
        self.card = ModelCard(
            name=version.name,
            version=str(version.version),
            alias=version.alias,
            manifest_id=model.info.manifest_id,
            image_size=model.image_size,
            # exported graphs are of one shape
            sizes=tuple(f"{w}x{h}" for w, h in model.info.sizes) if self.backend.name.startswith("torch") else (),
            frames=model.space.frames,
            noise_levels=levels,
            samplers=samplers,
            defaults=silent,
            loaded_at=int(time.time()),
            takedowns=standing,
            backend=self.backend.name,
            exact=self.backend.exact,
            attribution=neighbours is not None and neighbours.names,
            near_copies="off" if neighbours is None else neighbours.policy.action,
        )
        marker = None if marks is None else Marker(marks, self.card)
        self._finisher = Finisher(model, guard, marker, neighbours)

    def plan(self, request: GenerationRequest, ids: tuple[str, ...] | None = None) -> Plan:
        """What a request comes to; `ids` as `admit`.

        Raises RequestError when it asks for what is not to be had, or may not be had.
        """
        return self.judged(self.admit(request, ids))

    def admit(self, request: GenerationRequest, ids: tuple[str, ...] | None = None) -> Plan:
        """What a request comes to, whatever its prompt says. Raises RequestError when that is not to be had."""
        return admit(request, self.card, self._limits, ids)

    def judged(self, plan: Plan) -> Plan:
        """The plan, with what is to be said of its prompt. Raises RequestError when it may not be drawn."""
        return plan if self._prompts is None else replace(plan, moderation=self._prompts.check(plan.prompt))

    def vocabulary(self) -> Vocabulary:
        """What the model was told in training, as far as its bundle knows."""
        info = self.model.info
        whole = info.words is None and len(info.captions) < CAPTION_CAP
        words = words_of(info.captions) if whole else info.words
        return Vocabulary(captions=tuple(info.captions), words=None if words is None else tuple(words))

    def begin(self, plan: Plan) -> list[PictureTrajectory]:
        """A plan's pictures before their first step."""
        told = Told(self.model, plan.prompt, plan.negative_prompt or "", plan.guidance_scale)
        params = SamplingParams(steps=plan.steps, guidance_scale=plan.guidance_scale, sampler=plan.sampler)
        return [PictureTrajectory(self.model, told, seed, params, plan.pixels) for seed in plan.seeds]

    def look(self, plan: Plan, clean: Sequence[Tensor]) -> list[Seen]:
        """Decodes and checks a plan's pictures.

        Args:
            clean: float32 (1, C, h, w) of each, in the model's space; of a film (1, C, F, h, w).
        """
        return self._finisher.look(plan, clean)

    def again(self, plan: Plan, seen: Sequence[Seen]) -> Redraw | None:
        """Those of a plan's pictures that are to be drawn again, and how; None where there are none."""
        return self._finisher.again(plan, seen)

    def complete(
        self,
        plan: Plan,
        seen: Sequence[Seen],
        *,
        queue_s: float = 0.0,
        sample_s: float,
        first_step_s: float | None = None,
        first_preview_s: float | None = None,
    ) -> Generation:
        """Encodes a plan's pictures, of which none is to be drawn again.

        Args:
            queue_s, sample_s: seconds that they waited, and that drawing them took.
            first_step_s, first_preview_s: seconds from their arrival on, where somebody looked.
        """
        done = self._finisher.finish(plan, seen)
        timings = Timings(
            queue_ms=_ms(queue_s),
            sample_ms=_ms(sample_s + done.decode_s),
            guard_ms=_ms(done.guard_s),
            encode_ms=_ms(done.encode_s),
            first_step_ms=None if first_step_s is None else _ms(first_step_s),
            first_preview_ms=None if first_preview_s is None else _ms(first_preview_s),
        )
        return Generation(done.pictures, plan, self.card, timings, created=int(time.time()))

    def preview(self, plan: Plan, clean: Tensor, index: int = 0) -> bytes | None:
        """Picture `index` as it looks so far, encoded; None where the guard would withhold it."""
        return self._finisher.preview(plan, clean, index)

    def generate(self, request: GenerationRequest, *, stop: Callable[[], bool] = lambda: False) -> Generation:
        """Samples, checks and encodes a request's pictures, in the calling thread.

        Args:
            request: as it came; checked here again, whoever checked it before.
            stop: asked after every forward pass; True gives the request up.

        Raises:
            RequestError: when the request asks for what is not to be had.
            Stopped: when `stop` said so.
        """

        def after_pass() -> None:
            if stop():
                raise Stopped

        def draw(plan: Plan) -> list[Tensor]:
            pictures = self.begin(plan)
            finish(self.backend.denoiser, pictures, together=self.backend.together, after_pass=after_pass)
            return [picture.clean for picture in pictures]

        plan = self.plan(request)
        begun = time.perf_counter()
        clean = draw(plan)
        sampled = time.perf_counter() - begun
        seen = self.look(plan, clean)
        while (redraw := self.again(plan, seen)) is not None:
            begun = time.perf_counter()
            clean = draw(redraw.plan)
            sampled += time.perf_counter() - begun
            seen = redraw.into(seen, self.look(redraw.plan, clean))
        return self.complete(plan, seen, sample_s=sampled)


def _samplers(model: DiffusionModel) -> tuple[SamplerName, ...]:
    """Those that can draw with a model."""

    def fits(sampler: SamplerName) -> bool:
        try:
            refuse_sampler(sampler, model.prediction, model.betas)
        except UserError:
            return False
        return True

    return tuple(filter(fits, get_args(SamplerName)))


def load(job: ServeJob) -> Generator:
    """The generator of a job: its model from the registry or from a folder, on the device it asks for.

    Raises:
        UserError: a model, an alias or a CLIP model that is not there, or a version that the job's policy on takedowns
            refuses.
    """
    torchvision_ops.declare()  # before diffusers, which imports torchvision where that is installed
    version = resolve(job.model, tracking_uri=job.tracking_uri, cache=job.cache)
    standing = takedowns.heed(job, version)
    model = load_bundle(version.bundle, device=job.device)
    backend = backends.build(job.engine, local_bundle(version.bundle), model)
    watch, marks = guard.build(job.safety, job.clip), marking.build(job.credentials, job.watermark)
    asked, near = prompts.build(job.prompts, job.clip), neighbours.build(job, version)
    return Generator(version, model, watch, job.limits, job.defaults, standing, backend, marks, asked, near)


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)
