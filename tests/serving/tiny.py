"""A CLIP and a bundle so small that they load in a second, written by the project's own writers; weights are random."""

from __future__ import annotations

import json
from pathlib import Path

from curation.clip import ClipConfig
from training.bundle import DiffusionModel

TINY_CLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
}


def write_clip(folder: Path) -> ClipConfig:
    """A CLIP in open_clip's own format."""
    import torch

    from curation import torchvision_ops

    torchvision_ops.declare()
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(0)
    state = open_clip.CLIP(**TINY_CLIP["model_cfg"]).state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(TINY_CLIP))
    return ClipConfig(model=str(folder), device="cpu")


def write_bundle(
    folder: Path, clip: ClipConfig, *, image_size: int = 16, channels: tuple[int, ...] = (32, 32), seed: int = 0
) -> Path:
    """A bundle of an untrained U-Net, in `folder`/bundle."""
    import torch

    from training import bundle
    from training.network import build
    from training.sampling import SamplingParams
    from training.schedules import CosineSchedule
    from training.text import TextEncoder
    from training.unet import UnetConfig

    clip.build().export_text_tower(folder / "text")
    text = TextEncoder(folder / "text")
    torch.manual_seed(seed)
    shape = UnetConfig(block_out_channels=channels, layers_per_block=1, attention_heads=2)
    unet = build(shape, channels=3, side=image_size, width=text.width).eval()
    model = DiffusionModel(
        unet=unet,
        text=text,
        betas=CosineSchedule().betas(),
        prediction="v_prediction",
        image_size=image_size,
        patch_size=1,
    )
    info = bundle.BundleInfo(
        name="tiny", manifest_id="m" * 64, training_set_digest="0" * 64, training_rows=1, licences={"CC0-1.0": 1},
        config_sha256="0" * 64, job={}, images_seen=0, state_sha256="0" * 64, metrics={}, image_size=image_size,
        patch_size=1, prediction="v_prediction", channel_mean=(0, 0, 0), channel_std=(1, 1, 1), text_encoder=text.name,
        captions=["a red apple"], sampling=SamplingParams(steps=3, guidance_scale=2.0), parameters=1, libraries={},
    )  # fmt: skip
    bundle.write_bundle(folder / "bundle", model, info)
    return folder / "bundle"
