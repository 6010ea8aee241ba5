"""What runs the network: the same picture by each, an honest word on company, and errors that say what to do."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from curation.errors import UserError
from serving import backends
from serving.backends import Padded
from serving.job import EngineConfig
from training.bundle import INFO_FILE, DiffusionModel
from training.cached_graph import cached_graph, path_of, random_rows
from training.onnx_denoiser import OnnxDenoiser, Rows, TorchDenoiser


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all of these tests: what is tested of it is that it is used."""
    folder = tmp_path_factory.getbasetemp() / "backends"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@dataclass
class Sized:
    """A network that remembers the sizes of its passes, and lets rows know of each other by `leak`."""

    leak: float = 0.0
    sizes: list[int] = field(default_factory=list)

    def predict(self, rows: Rows) -> np.ndarray:
        self.sizes.append(len(rows))
        output: np.ndarray = np.float32(0.5) * rows.x + np.float32(self.leak) * rows.x.mean()
        return output


def test_a_graph_is_made_once_and_is_the_network(bundle: Path, model: DiffusionModel, cache: Path) -> None:
    path = cached_graph(bundle, model)
    assert path.is_relative_to(cache)
    made = path.stat().st_mtime_ns
    assert cached_graph(bundle, model) == path
    assert path.stat().st_mtime_ns == made
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    rows = random_rows(model, 7)
    np.testing.assert_allclose(
        OnnxDenoiser(path).predict(rows), TorchDenoiser(model).predict(rows), rtol=1e-3, atol=1e-4
    )


def test_onnx_runtime_shares_and_is_the_default_on_a_cpu(bundle: Path, model: DiffusionModel) -> None:
    backend = backends.build(EngineConfig(), bundle, model)
    assert (backend.name, backend.shares, backend.exact) == ("onnx-fp32", True, True)
    assert backend.together == EngineConfig().max_rows


def test_the_probe_finds_one_bit_that_depends_on_company(model: DiffusionModel) -> None:
    assert backends.shares_exactly(Sized(), model, 16)
    assert not backends.shares_exactly(Sized(leak=1e-6), model, 16)


@pytest.mark.parametrize(("sharing", "shares", "exact"), [("exact", False, True), ("always", True, False)])
def test_where_company_matters_it_is_avoided_or_said(
    monkeypatch: pytest.MonkeyPatch, bundle: Path, model: DiffusionModel, sharing: str, shares: bool, exact: bool
) -> None:
    monkeypatch.setitem(backends.OPENERS, "torch", lambda *_: Sized(leak=1e-6))
    config = EngineConfig.model_validate({"backend": "torch", "sharing": sharing})
    backend = backends.build(config, bundle, model)
    assert (backend.shares, backend.exact) == (shares, exact)
    assert backend.together == (config.max_rows if shares else 1)


def test_without_onnx_runtime_torch_draws(monkeypatch: pytest.MonkeyPatch, bundle: Path, model: DiffusionModel) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime is not installed"):
        backends.build(EngineConfig(backend="onnx"), bundle, model)
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "onnxruntime" else object())
    assert backends.build(EngineConfig(), bundle, model).name == "torch-fp32"


def test_padding_changes_sizes_and_nothing_else(model: DiffusionModel) -> None:
    network = Sized()
    rows = random_rows(model, 21)
    padded = Padded(network, backends.sizes(12))
    assert backends.sizes(12) == (1, 2, 4, 8, 16)
    for count in (1, 3, 8, 9, 16, 21):
        assert np.array_equal(padded.predict(rows[:count]), Sized().predict(rows[:count]))
    assert network.sizes == [1, 4, 8, 16, 16, 21]


@pytest.mark.parametrize(
    ("told", "field", "remedy"),
    [
        ({"backend": "torch", "precision": "bf16"}, "engine.precision", "fp32"),
        ({"backend": "onnx", "precision": "int8"}, "model", "cleanplate export"),
        ({"backend": "tensorrt"}, "model", "cleanplate export"),
    ],
)
def test_what_is_not_to_be_had_is_said_with_a_remedy(
    bundle: Path, model: DiffusionModel, told: dict[str, str], field: str, remedy: str
) -> None:
    with pytest.raises(UserError) as caught:
        backends.build(EngineConfig.model_validate(told), bundle, model)
    assert caught.value.field == field
    assert remedy in (caught.value.remedy or "")


def test_openvino_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, bundle: Path, model: DiffusionModel) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match="openvino is not installed") as caught:
        backends.build(EngineConfig(backend="openvino"), bundle, model)
    assert "pip install" in (caught.value.remedy or "")


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-4), ("bf16", 0.05)])
def test_openvino_is_the_network_to_its_precision(
    bundle: Path, model: DiffusionModel, precision: str, error: float
) -> None:
    pytest.importorskip("openvino")
    backend = backends.build(
        EngineConfig.model_validate({"backend": "openvino", "precision": precision}), bundle, model
    )
    rows = random_rows(model, 5)
    wanted, got = TorchDenoiser(model).predict(rows), backend.denoiser.predict(rows)
    assert float(np.abs(got - wanted).max()) <= error * float(np.abs(wanted).max())
    again = backend.denoiser.predict(rows[1:2])
    assert backend.name == f"openvino-{precision}"
    assert np.array_equal(again[0], got[1]) or not backend.shares


@pytest.mark.slow
def test_a_graph_that_was_made_apart_is_the_one_made_here(
    bundle: Path, model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = random_rows(model, 3)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    here = OnnxDenoiser(cached_graph(bundle, model)).predict(rows)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "apart"))
    backends.prepare(EngineConfig(), bundle)
    assert path_of(bundle).is_file()
    assert np.array_equal(OnnxDenoiser(cached_graph(bundle, model)).predict(rows), here)


def test_no_graph_is_made_ahead_for_what_torch_will_draw(bundle: Path, tmp_path: Path) -> None:
    """Of films there is none, and one is of one shape: it would be made for nothing, while a version waits."""
    for number, changed in enumerate(({"frames": 4}, {"sizes": [[16, 16], [24, 8]]})):
        other = tmp_path / str(number)
        shutil.copytree(bundle, other)
        (other / INFO_FILE).write_text(json.dumps(json.loads((bundle / INFO_FILE).read_text()) | changed))
        backends.prepare(EngineConfig(), other)
        assert not path_of(other).is_file()
