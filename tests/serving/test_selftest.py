"""The self-test of a version: equal where it must be, like the bundle's picture where it need not, and honest words."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from serving import backends, selftest
from serving.backends import Backend
from serving.job import EngineConfig
from serving.selftest import TAG, Drawn
from training.bundle import DiffusionModel
from training.onnx_denoiser import Rows, TorchDenoiser

BACKENDS = ("torch-fp32", "onnx-fp32")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def graphs(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(scope="module")
def tags(bundle: Path, cache: Path) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        return selftest.tags_of(str(bundle))


def backend_of(name: str, bundle: Path, model: DiffusionModel) -> Backend:
    if name == "torch-fp32":
        return backends.plain(model)
    return Backend(backends.OPENERS["onnx"](EngineConfig(), bundle, model), name, shares=True, exact=True, max_rows=4)


def changed(tags: dict[str, str], name: str, **fields: object) -> dict[str, str]:
    return {TAG + name: Drawn.model_validate_json(tags[TAG + name]).model_copy(update=fields).model_dump_json()}


class Off:
    """A network whose answers are a little, or far, from what they should be."""

    def __init__(self, model: DiffusionModel, by: float) -> None:
        self._right = TorchDenoiser(model)
        self._by = np.float32(by)

    def predict(self, rows: Rows) -> np.ndarray:
        answer: np.ndarray = self._right.predict(rows) + self._by
        return answer


def off(model: DiffusionModel, by: float, precision: str = "fp32") -> Backend:
    return Backend(Off(model, by), f"other-{precision}", shares=False, exact=True, max_rows=1)


def test_registering_leaves_a_hash_of_each_backend(tags: dict[str, str]) -> None:
    assert set(tags) == {TAG + name for name in BACKENDS}
    drawn = {name: Drawn.model_validate_json(tags[TAG + name]) for name in BACKENDS}
    assert all(len(picture.sha256) == 64 and picture.processor for picture in drawn.values())
    assert len({picture.model_copy(update={"sha256": ""}) for picture in drawn.values()}) == 1


@pytest.mark.parametrize("name", BACKENDS)
def test_on_the_same_machine_the_bytes_must_be_the_same(
    name: str, tags: dict[str, str], bundle: Path, model: DiffusionModel
) -> None:
    backend = backend_of(name, bundle, model)
    assert selftest.check(tags, bundle, model, backend).passed
    compared = selftest.check(changed(tags, name, sha256="0" * 64), bundle, model, backend)
    assert not compared.passed
    assert "other bytes" in compared.said


@pytest.mark.parametrize("field", ["processor", "libraries", "graph", "threads"])
def test_elsewhere_the_picture_must_only_look_the_same(
    field: str, tags: dict[str, str], bundle: Path, model: DiffusionModel
) -> None:
    other = 64 if field == "threads" else "another one"
    told = changed(tags, "torch-fp32", sha256="0" * 64, **{field: other})
    compared = selftest.check(told, bundle, model, backend_of("torch-fp32", bundle, model))
    assert compared.passed
    assert f"registered on {field} {other}, here" in compared.said


@pytest.mark.parametrize(("by", "passed"), [(1e-3, True), (0.5, False), (float("nan"), False)])
def test_a_picture_that_looks_different_fails(by: float, passed: bool, bundle: Path, model: DiffusionModel) -> None:
    compared = selftest.check({}, bundle, model, off(model, by))
    assert compared.passed == passed, compared.said
    assert "no hash of this backend was registered" in compared.said


def test_a_coarser_backend_may_differ_by_more(bundle: Path, model: DiffusionModel) -> None:
    by = 0.1
    assert not selftest.check({}, bundle, model, off(model, by)).passed
    assert selftest.check({}, bundle, model, off(model, by, "int8")).passed


def test_what_cannot_be_compared_is_said(bundle: Path, model: DiffusionModel, tmp_path: Path) -> None:
    bare = tmp_path / "bundle"
    shutil.copytree(bundle, bare)
    (bare / "self_test.png").unlink()
    compared = selftest.check({}, bare, model, off(model, 1.0))
    assert compared.passed
    assert compared.said.startswith("not comparable: ")


def test_a_later_releases_tag_counts_as_none(bundle: Path, model: DiffusionModel) -> None:
    compared = selftest.check({TAG + "other-fp32": "{}"}, bundle, model, off(model, 0.5))
    assert not compared.passed
    assert "no hash of this backend" in compared.said
