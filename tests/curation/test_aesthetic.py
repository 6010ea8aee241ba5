"""Aesthetic heads of LAION's two layouts, with generated weights, against torch's own modules."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from curation.aesthetic import AestheticConfig
from curation.clip import Clip
from curation.errors import UserError

# Of a CLIP, a head asks for no more than its width and its name.
L14 = cast(Clip, SimpleNamespace(dim=768, name="ViT-L-14/openai"))


class MLP(torch.nn.Module):
    """As in improved-aesthetic-predictor's simple_inference.py."""

    def __init__(self) -> None:
        super().__init__()
        linear, dropout = torch.nn.Linear, torch.nn.Dropout
        self.layers = torch.nn.Sequential(
            *(linear(768, 1024), dropout(0.2), linear(1024, 128), dropout(0.2), linear(128, 64), dropout(0.1)),
            *(linear(64, 16), linear(16, 1)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.layers(x))


def generated(kind: str) -> torch.nn.Module:
    torch.manual_seed(7)
    return (MLP() if kind == "mlp" else torch.nn.Linear(768, 1)).eval()


def units(count: int, dim: int = 768) -> np.ndarray:
    rows = np.random.default_rng(5).normal(size=(count, dim)).astype(np.float32)
    return cast(np.ndarray, rows / np.linalg.norm(rows, axis=1, keepdims=True))


def write(model: torch.nn.Module, path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file(dict(model.state_dict()), str(path))
    else:
        torch.save(model.state_dict(), path)
    return str(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_scores_are_those_of_the_network(tmp_path: Path, kind: str, suffix: str) -> None:
    model = generated(kind)
    config = AestheticConfig(weights=write(model, tmp_path / f"head{suffix}"))
    config.check()
    head, rows = config.build(L14), units(20)
    with torch.inference_mode():
        expected = model.double()(torch.from_numpy(rows).double())[:, 0].numpy()
    assert np.std(expected) > 1e-4
    assert head.scores(rows) == pytest.approx(expected, abs=1e-6)


def test_neighbours_change_no_bit(tmp_path: Path) -> None:
    head = AestheticConfig(weights=write(generated("mlp"), tmp_path / "head.pth")).build(L14)
    rows = units(33)
    together = head.scores(rows)
    assert together.dtype == np.float32
    assert together.tobytes() == b"".join(head.scores(rows[i : i + 1]).tobytes() for i in range(33))
    assert head.scores(rows[::-1])[::-1].tobytes() == together.tobytes()
    assert head.scores(rows[:0]).shape == (0,)


def test_the_name_is_that_of_the_weights(tmp_path: Path) -> None:
    first = AestheticConfig(weights=write(generated("linear"), tmp_path / "first.pth"))
    (tmp_path / "copy.pth").write_bytes((tmp_path / "first.pth").read_bytes())
    assert re.fullmatch(r"aesthetic@[0-9a-f]{8}", first.name())
    assert AestheticConfig(weights=str(tmp_path / "copy.pth")).name() == first.name()
    other = AestheticConfig(weights=write(generated("mlp"), tmp_path / "other.pth"))
    assert other.name() != first.name()


def test_a_head_for_another_width_is_the_users_mistake(tmp_path: Path) -> None:
    config = AestheticConfig(weights=write(generated("mlp"), tmp_path / "head.pth"))
    with pytest.raises(UserError, match="768 numbers, small makes 512") as caught:
        config.build(cast(Clip, SimpleNamespace(dim=512, name="small")))
    assert caught.value.field == "aesthetic.weights"


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("run",))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: None,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"<html>not found</html>"),
        lambda path: path.mkdir(),
        lambda path: torch.save({"weight": torch.zeros(1, 768)}, path),
        lambda path: torch.save({"weight": torch.zeros(2, 768), "bias": torch.zeros(2)}, path),
        lambda path: torch.save({"weight": torch.full((1, 768), torch.nan), "bias": torch.zeros(1)}, path),
        lambda path: torch.save(MLP().state_dict() | {"extra": torch.zeros(1)}, path),
        lambda path: torch.save({"layers.0.weight": torch.zeros(4, 8), "layers.0.bias": torch.zeros(4),
                                 "layers.2.weight": torch.zeros(1, 5), "layers.2.bias": torch.zeros(1)}, path),
        lambda path: torch.save(["a", "list"], path),
        lambda path: torch.save({"weight": Evil()}, path),
    ],
)  # fmt: skip
def test_a_file_that_is_no_head_is_the_users_mistake(
    tmp_path: Path, spoil: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(tmp_path / "head.pth")
    with pytest.raises(UserError) as caught:
        AestheticConfig(weights=str(tmp_path / "head.pth")).check()
    assert caught.value.field == "aesthetic.weights"
    assert "run" not in capsys.readouterr().out
