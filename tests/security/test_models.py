"""Models from elsewhere: bundles, autoencoders, text towers, CLIPs, exports, indexes and checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from curation import clip as clips
from curation.clip import ClipConfig
from curation.errors import UserError
from curation.storage import sha256_of
from tests.security.planted import Program, secret
from tests.serving import tiny
from tests.training.test_checkpoint import OWN, STATE, info
from training import checkpoint, exported, foreign
from training.bundle import load_bundle
from training.latents import AutoencoderConfig, LatentSpace, settled
from training.neighbours.index import IndexInfo
from training.onnx_denoiser import OnnxDenoiser
from training.text import TextEncoder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A CLIP's folder and a bundle."""
    clip = tiny.write_clip(tmp_path_factory.mktemp("clip"))
    return Path(clip.model), tiny.write_bundle(tmp_path_factory.mktemp("bundle"), clip)


@pytest.fixture
def bundle(made: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "bundle"))


@pytest.fixture
def clip(made: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "clip"))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def vouched(bundle: Path, name: str) -> Path:
    """The bundle with the digest of one of its files as it now is: who makes a bundle writes its digests, too."""
    edit(bundle / "cleanplate.json", lambda raw: raw["files"].update({name: sha256_of(bundle / name)}))
    return bundle


@pytest.mark.parametrize(
    "change",
    [
        {"_class_name": "DiffusionPipeline"},
        {"_class_name": "utils"},
        {"_class_name": ["custom_pipeline", "Network"]},
        {"_class_name": "../../evil"},
        {"_class_name": None},
        {"quantization_config": {"quant_method": "torchao", "quant_type": "int8_weight_only"}},
        {"auto_map": {"AutoModel": "evil.Network"}},
    ],
)
def test_a_bundle_s_network_is_one_of_ours(bundle: Path, change: dict[str, Any]) -> None:
    edit(bundle / "unet" / "config.json", lambda raw: raw.update(change))
    with pytest.raises(UserError, match=r"names the class|would run more"):
        load_bundle(vouched(bundle, "unet/config.json"))


@pytest.mark.parametrize(
    "name", ["unet/diffusion_pytorch_model.bin", "scheduler/x.pkl", "evil.py", "text_encoder/m.pt"]
)
def test_a_bundle_holds_no_pickle_and_no_program(bundle: Path, tmp_path: Path, name: str) -> None:
    torch.save(Program(tmp_path / "ran"), bundle / name)
    (bundle / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="program or a pickle"):
        load_bundle(vouched(bundle, name))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "unet/../../secret.png", "s3://b/x"])
def test_a_bundle_names_files_of_its_own(bundle: Path, tmp_path: Path, name: str) -> None:
    secret(tmp_path)
    edit(bundle / "cleanplate.json", lambda raw: raw["files"].update({name: "0" * 64}))
    with pytest.raises(UserError, match="no name of a file below"):
        load_bundle(bundle)


def test_a_bundle_s_links_lead_nowhere_else(bundle: Path, tmp_path: Path) -> None:
    """Whoever registers it would send what the link leads to."""
    (bundle / "notes.txt").symlink_to(secret(tmp_path))
    with pytest.raises(UserError, match="leads out"):
        load_bundle(bundle)
    (bundle / "notes.txt").unlink()
    os.mkfifo(bundle / "notes.txt")
    with pytest.raises(UserError, match="no regular file"):
        load_bundle(bundle)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/x.safetensors", "a/b.safetensors", "model.bin"])
def test_weights_in_shards_lie_beside_their_index(bundle: Path, shard: str) -> None:
    name = "unet/diffusion_pytorch_model.safetensors.index.json"
    (bundle / name).write_text(json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": shard}}))
    with pytest.raises(UserError, match=r"no name of a file|no file of weights"):
        load_bundle(vouched(bundle, name))


def test_a_header_that_is_all_of_the_memory_is_refused(bundle: Path) -> None:
    name = "text_encoder/model.safetensors"
    (bundle / name).write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(UserError, match="does not load"):
        load_bundle(vouched(bundle, name))


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer": {"hf_tokenizer_name": "evil/tokenizer", "tokenizer_kwargs": {"trust_remote_code": True}}},
        {"tokenizer": {"hf_tokenizer_name": "/tmp/evil"}},
        {"tokenizer": {"architecture": "local-dir:/tmp/evil"}},
        {"tokenizer": {"architecture": "hf-hub:evil/model"}},
        {"tokenizer": {"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}}},
        {"tokenizer": ["x"]},
        {"text_cfg": {"hf_model_name": "evil/model"}},
        {"text_cfg": "x"},
    ],
)
def test_a_text_tower_brings_no_code(bundle: Path, change: dict[str, Any]) -> None:
    edit(bundle / "text_encoder" / "open_clip_text.json", lambda raw: raw.update(change))
    with pytest.raises(UserError, match=r"open_clip_text\.json is damaged"):
        TextEncoder(bundle / "text_encoder")


@pytest.mark.parametrize(
    ("tower", "change"),
    [
        ("text_cfg", {"hf_tokenizer_name": "evil/t", "tokenizer_kwargs": {"trust_remote_code": True}}),
        ("text_cfg", {"hf_tokenizer_name": "/tmp/evil"}),
        ("text_cfg", {"hf_model_name": "../evil"}),
        ("text_cfg", {"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}}),
        ("vision_cfg", {"timm_model_name": "local-dir:/tmp/evil"}),
        ("vision_cfg", {"timm_model_name": "hf-hub:evil/model"}),
    ],
)
def test_a_clip_s_folder_brings_no_code(clip: Path, tower: str, change: dict[str, Any]) -> None:
    edit(clip / "open_clip_config.json", lambda raw: raw["model_cfg"][tower].update(change))
    with pytest.raises(UserError, match="asks for"):
        ClipConfig(model=str(clip)).build()


def test_both_who_read_descriptions_refuse_the_same() -> None:
    """Training may not import the CLIP of curation; both read `curation.hub`."""
    assert foreign.TOKENIZER_OPTIONS is clips.TOKENIZER_OPTIONS
    assert foreign.HUB_ID is clips.HUB_ID


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "model.pth"])
def test_weights_of_a_clip_that_are_a_pickle_run_nothing(clip: Path, tmp_path: Path, name: str) -> None:
    (clip / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": Program(tmp_path / "ran")}, clip / name)
    with pytest.raises(UserError, match="weights"):
        ClipConfig(model=str(clip), device="cpu").build()
    assert not (tmp_path / "ran").exists()


def test_an_autoencoder_is_one_of_the_known_and_has_no_pickle(tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    folder.mkdir()
    torch.save(Program(tmp_path / "ran"), folder / "diffusion_pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", "latent_channels": 4}))
    with pytest.raises(UserError, match="is missing"):
        settled(AutoencoderConfig(path=str(folder)))
    torch.save(Program(tmp_path / "ran"), folder / "diffusion_pytorch_model.safetensors")  # a pickle by another name
    with pytest.raises(UserError):
        LatentSpace(folder)
    for change in ({"_class_name": "DiffusionPipeline"}, {"quantization_config": {"quant_method": "gguf"}}):
        edit(folder / "config.json", lambda raw, change=change: raw.update(change))
        with pytest.raises(UserError, match=r"names the class|would run more"):
            LatentSpace(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../../elsewhere", "/tmp/x.safetensors", "..", ""])
def test_a_checkpoint_names_files_of_its_own(tmp_path: Path, name: str) -> None:
    path = checkpoint.save(str(tmp_path / "checkpoints"), STATE, info(8), keep=1)
    edit(Path(path) / "checkpoint.json", lambda raw: raw["files"].update({name: "0" * 64}))
    with pytest.raises(UserError, match="damaged"):
        checkpoint.read_info(path)
    assert checkpoint.latest(str(tmp_path / "checkpoints")) is None


def test_a_checkpoint_that_is_a_pickle_runs_nothing(tmp_path: Path) -> None:
    path = Path(checkpoint.save(str(tmp_path / "checkpoints"), STATE, info(8), keep=1))
    torch.save(Program(tmp_path / "ran"), path / "weights.safetensors")
    digest = sha256_of(path / "weights.safetensors")
    edit(path / "checkpoint.json", lambda raw: raw["files"].update({"weights.safetensors": digest}))
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(str(path), OWN)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd"])
def test_an_index_names_files_of_its_own(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        IndexInfo.model_validate({"files": {name: "0" * 64}})
    assert ("files", name, "[key]") in [problem["loc"] for problem in caught.value.errors()]


def test_an_export_s_graph_reads_no_file_outside(tmp_path: Path) -> None:
    """ONNX may keep its numbers in a file beside the graph, which the graph names."""
    onnx = pytest.importorskip("onnx")
    (tmp_path / "secret").write_bytes(bytes(16))
    (tmp_path / "onnx").mkdir()
    weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4], data_location=1)
    weights.external_data.add(key="location", value="../secret")
    output = onnx.helper.make_tensor_value_info("prediction", onnx.TensorProto.FLOAT, [4])
    node = onnx.helper.make_node("Identity", ["w"], ["prediction"])
    graph = onnx.helper.make_graph([node], "g", [], [output], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    (tmp_path / "onnx" / "denoiser.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="no ONNX graph"):
        OnnxDenoiser(tmp_path / "onnx" / "denoiser.onnx")


def test_an_export_s_report_names_files_of_its_own() -> None:
    with pytest.raises(ValueError, match="no name of a file below"):
        exported.Artifact.model_validate({"file": "../../x.onnx", "files": {}, "size": 0, "checks": {}})
