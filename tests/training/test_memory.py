"""The estimate of memory against what torch itself allocates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipelines import config, train
from training import memory, network
from training.data import TrainingSet
from training.job import TrainJob
from training.learner import Learner, Place
from training.text import TextEncoder

MakeJob = Callable[..., TrainJob]
WIDTH = 64


def tiny(**changes: Any) -> TrainJob:
    return TrainJob.model_validate({"manifest": "-", "output": "-", "batch_size": 8, **changes})


def allocated(state: dict[str, torch.Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in state.values())


def saved_for_backward(job: TrainJob) -> int:
    """Bytes that a real forward pass keeps for the backward pass, by torch's own hooks."""
    unet = network.build(job.network, channels=12, side=16, width=WIDTH).train()
    unet.to(memory_format=torch.channels_last)
    weights = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=job.precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        network.predict(unet, *memory.example(job.micro_batch, 12, 16, WIDTH))
    return sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)


def test_weights_and_states_are_what_a_learner_holds(make_job: MakeJob, data: TrainingSet, text: TextEncoder) -> None:
    job = make_job()
    learner = Learner(job, data, text, Place())
    learner.step(0)
    state = learner.state()
    told = memory.estimate(job, channels=3, side=data.image_size, width=text.width)
    assert told.parameters == told.gradients == allocated(state["weights"])
    assert told.average == allocated(state["ema"])
    moments = {name: tensor for name, tensor in state["optimizer"].items() if not name.startswith("step.")}
    assert told.optimizer == allocated(moments)
    assert told.total == 5 * told.parameters + told.activations
    assert told.gathered == 0


def test_averages_of_other_lengths_are_counted(make_job: MakeJob, data: TrainingSet, text: TextEncoder) -> None:
    job = make_job(ema={"profiles": [0.05, 0.1, 0.2]})
    learner = Learner(job, data, text, Place())
    held = [learner.state()["ema"], *learner.averages().values()]
    assert len(held) == 4
    told = memory.estimate(job, channels=3, side=data.image_size, width=text.width)
    assert told.average == sum(map(allocated, held))
    without = memory.estimate(make_job(), channels=3, side=data.image_size, width=text.width)
    parameters = sum(parameter.numel() for parameter in learner.unet.parameters())
    assert told.total - without.total == 3 * 4 * parameters


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_are_within_a_fifth_of_what_a_forward_pass_keeps(precision: str) -> None:
    job = tiny(precision=precision)
    ratio = memory.estimate(job, channels=12, side=16, width=WIDTH).activations / saved_for_backward(job)
    assert 0.8 < ratio < 1.25


def test_recomputing_and_smaller_parts_take_less() -> None:
    whole, recomputed, parts, workers = (
        memory.estimate(tiny(**changes), channels=12, side=16, width=WIDTH).activations
        for changes in ({}, {"gradient_checkpointing": True}, {"accumulation": 4}, {"workers": {"max": 4}})
    )
    assert 0.2 < recomputed / whole < 0.6
    assert 0.2 < parts / whole < 0.5
    assert workers == parts


def test_the_same_accounting_of_real_tensors_agrees() -> None:
    """With contents or without, to the sizes that kernels choose for themselves."""
    job = tiny(gradient_checkpointing=True)
    unet = network.build(job.network, channels=12, side=16, width=WIDTH).train()
    unet.enable_gradient_checkpointing()
    real = memory.peak(unet, *memory.example(job.micro_batch, 12, 16, WIDTH), bf16=True)
    assert memory.estimate(job, channels=12, side=16, width=WIDTH).activations == pytest.approx(real, rel=0.1)
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_a_dry_run_tells_it(make_job: MakeJob) -> None:
    told = train.plan(make_job())["memory_mib"]
    assert set(told) == {"parameters", "gradients", "optimizer", "average", "gathered", "activations", "total"}
    assert told["total"] == pytest.approx(sum(told.values()) / 2, abs=0.5)


def test_workers_that_split_a_network_hold_a_share_each() -> None:
    whole, split, most, in_parts = (
        memory.estimate(tiny(batch_size=16, precision="fp32", **changes), channels=12, side=16, width=WIDTH)
        for changes in (
            {"workers": 4, "strategy": "ddp"},
            {"workers": 4, "strategy": "fsdp"},
            {"workers": {"min": 2, "max": 4}, "strategy": "fsdp"},
            {"workers": 4, "strategy": "fsdp", "accumulation": 2},
        )
    )
    unet = network.build(tiny().network, channels=12, side=16, width=WIDTH)
    rows = [-(-len(p) // 4) * p[0].numel() for p in unet.parameters()]
    assert split.parameters == split.gradients == split.average == 4 * sum(rows)
    assert split.optimizer == 2 * split.parameters
    assert split.parameters == pytest.approx(whole.parameters / 4, rel=0.01)
    assert most.parameters == pytest.approx(whole.parameters / 2, rel=0.01)  # at the fewest workers
    assert (split.activations, split.total) == (whole.activations, sum(vars(split).values()))
    # a step in two parts adds up whole gradients before they are split
    assert (in_parts.gradients, in_parts.parameters) == (whole.gradients, split.parameters)
    largest = max(sum(p.numel() for p in block.parameters()) for block in (*unet.down_blocks, *unet.up_blocks))
    assert 4 * largest < split.gathered < 2 * whole.parameters


def test_a_worker_that_is_alone_splits_nothing() -> None:
    alone, plain = (
        memory.estimate(tiny(strategy=strategy), channels=12, side=16, width=WIDTH) for strategy in ("fsdp", "ddp")
    )
    assert alone == plain


def test_the_job_for_pictures_of_256_pixels_fits_a_gpu_of_12_gib() -> None:
    job = config.load_job("pipelines/jobs/pixels-256-train.yaml", kind="train")
    assert job.image_size == 256
    told = memory.estimate(job, channels=3 * job.patch_size**2, side=256 // job.patch_size, width=768)
    assert told.total < 11 * 2**30  # CUDA's own context and the allocator's gaps take the rest
