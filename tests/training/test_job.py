"""The job file: defaults, refusals, and what its hash covers."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from curation.errors import UserError
from training.job import TrainJob
from training.network import build
from training.unet import UnetConfig

REQUIRED = {"manifest": "m", "output": "o"}


def job(**changes: object) -> TrainJob:
    return TrainJob.model_validate({**REQUIRED, **changes})


def test_the_defaults_are_the_recipe() -> None:
    plain = job()
    assert plain.network.shape().block_out_channels == (32, 64, 96)
    assert plain.prediction == "v_prediction"
    assert plain.schedule.kind == "cosine"
    assert plain.steps == 1250


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 3}, "Extra inputs"),
        ({"schedule": {"kind": "exponential"}}, "linear"),
        ({"schedule": {"kind": "linear", "offset": 1}}, "Extra inputs"),
        ({"prediction": "score"}, "epsilon"),
        ({"batch_size": 10, "workers": 4}, "use batch_size 12"),
        ({"batch_size": 8, "workers": 2, "accumulation": 8}, "use batch_size 16"),
        ({"workers": {"min": 3, "max": 2}}, "1 validation error for TrainJob\nworkers.range\n.*min 3 is above max 2"),
        ({"workers": {"max": 3}}, "use batch_size 33"),
        ({"workers": -1}, "1 validation error for TrainJob\nworkers.number\n.*greater than or equal to 0"),
        ({"caption_dropout": 1.5}, "less than or equal to 1"),
        ({"name": "Two Words"}, "lower-case"),
        ({"consent_max_age_days": 0}, "greater than 0"),
        ({"milestones": 0}, "greater than or equal to 1"),
        ({"caption_mix": {}}, "at least 1"),
        ({"caption_mix": {"coca": 0.0}}, "above 0"),
        ({"caption_mix": {"coca": float("nan")}}, "above 0"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "below 1"),
        ({"ema": {"profiles": [0.05, 0.05]}}, "two are the same"),
        ({"ema": {"profiles": [0.5]}}, "less than or equal to 0.25"),
    ],
)
def test_mistakes_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        job(**change)


def test_the_hash_covers_what_the_weights_depend_on() -> None:
    base = job().config_sha256("id")
    for same in (
        {"workers": 2}, {"accumulation": 2}, {"output": "elsewhere"}, {"manifest": "moved"}, {"checkpoint_every": 7},
        {"tracking": {"experiment": "x"}}, {"sample": {"steps": 7}}, {"gradient_checkpointing": True},
        {"ledger": "l"}, {"consent_max_age_days": None}, {"milestones": 5}, {"resume_from": "c"},
        {"workers": {"min": 1, "max": 4}}, {"labels": {"zone": "a"}}, {"compile": True}, {"keep_best_checkpoints": 3},
    ):  # fmt: skip
        assert job(**same).config_sha256("id") == base, same
    for other in ({"seed": 1}, {"images": 5}, {"prediction": "epsilon"}, {"network": {"layers_per_block": 2}},
                  {"caption_mix": {"coca": 1}}, {"conditioning_images": 5}):  # fmt: skip
        assert job(**other).config_sha256("id") != base, other
    assert job().config_sha256("another manifest") != base


def test_a_run_from_before_a_field_is_still_the_same_run() -> None:
    """Fields that came later are not in the identity while they say what there was before."""
    told = job().identity()
    assert told["schedule"] == {"kind": "cosine", "timesteps": 1000, "offset": 0.008}
    assert told["loss"] == {"min_snr_gamma": None}
    assert told["ema"] == {"decay": 0.995, "warmup": True}
    assert job(ema={"profiles": [0.1]}).config_sha256("id") != job().config_sha256("id")
    assert "timestep_sampling" not in told
    changed = {"schedule": {"kind": "cosine", "zero_terminal_snr": True}}, {"loss": {"soft_min_snr_gamma": 4}}
    for other in (*changed, {"timestep_sampling": {"kind": "uniform", "stratified": True}}):
        assert job(**other).config_sha256("id") != job().config_sha256("id"), other


def test_flow_has_its_own_defaults_and_says_so() -> None:
    flow = job(prediction="flow")
    assert (flow.schedule.kind, flow.timestep_sampling.kind, flow.sample.sampler) == ("flow", "logit_normal", "euler")
    assert TrainJob.model_validate(flow.model_dump(mode="json")) == flow
    some = job(prediction="flow", schedule={"timesteps": 500}, sample={"steps": 7}, timestep_sampling={"mean": 0.5})
    assert (some.schedule.timesteps, some.sample.steps, some.sample.sampler) == (500, 7, "euler")
    assert job(prediction="flow", sample={"sampler": "heun"}).sample.sampler == "heun"


ZERO = {"kind": "cosine", "zero_terminal_snr": True}


@pytest.mark.parametrize(
    ("change", "field", "remedy"),
    [
        ({"prediction": "epsilon", "schedule": ZERO}, "prediction", "v_prediction or sample"),
        ({"schedule": ZERO, "sample": {"sampler": "pndm"}}, "sample.sampler", "ddim"),
        ({"schedule": ZERO, "loss": {"min_snr_gamma": 5}}, "loss.min_snr_gamma", "leave it out"),
        ({"schedule": {"kind": "linear", "beta_end": 0.999}}, "schedule", "smaller beta_end"),
        ({"loss": {"min_snr_gamma": 5, "soft_min_snr_gamma": 4}}, "loss", "keep one"),
        ({"prediction": "flow", "schedule": {"kind": "cosine"}}, "schedule.kind", "leave schedule out"),
        ({"schedule": {"kind": "flow"}}, "schedule.kind", "set prediction to flow"),
        ({"prediction": "flow", "loss": {"soft_min_snr_gamma": 4}}, "loss.soft_min_snr_gamma", "timestep_sampling"),
        ({"prediction": "flow", "sample": {"sampler": "ddim"}}, "sample.sampler", "euler or heun"),
        ({"prediction": "flow", "sample": {"sampler": "ddpm"}}, "sample.sampler", "euler or heun"),
        ({"sample": {"sampler": "heun"}}, "sample.sampler", "ddim"),
    ],
)
def test_choices_that_cannot_go_together_are_refused(change: dict[str, object], field: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        job(**change)
    assert caught.value.field == field
    assert remedy in str(caught.value.remedy)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmsolver++"])
def test_zero_terminal_snr_goes_with_what_predicts_the_picture(prediction: str, sampler: str) -> None:
    assert job(prediction=prediction, schedule=ZERO, sample={"sampler": sampler}).prediction == prediction


def test_what_is_put_on_record_names_no_places() -> None:
    told = job(ledger="s3://b/l", resume_from="/c").public()
    assert not {"manifest", "output", "tracking", "ledger", "resume_from"} & told.keys()


def test_unet_presets_and_overrides() -> None:
    unet = build(UnetConfig(), channels=12, side=16, width=64)
    assert 2.3e6 < sum(p.numel() for p in unet.parameters()) < 2.7e6
    assert unet.config.down_block_types == ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D")
    shape = UnetConfig(preset="small", block_out_channels=(32, 64)).shape()
    assert shape.cross_attention == (False, True)
    assert shape.layers_per_block == 2


@pytest.mark.parametrize(
    ("unet", "size", "field"),
    [
        ({}, 36, "patch_size"),
        ({"cross_attention": (True,)}, 32, "network.cross_attention"),
        ({"block_out_channels": (33, 64)}, 32, "network.block_out_channels"),
    ],
)
def test_sizes_that_do_not_fit_are_named(unet: dict[str, object], size: int, field: str) -> None:
    with pytest.raises(UserError) as caught:
        build(UnetConfig.model_validate(unet), channels=12, side=size // 2, width=8)
    assert caught.value.field == field
