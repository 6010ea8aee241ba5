"""What the serving tests share: a tiny CLIP, a tiny bundle, and the bundle loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.clip import ClipConfig
from tests.serving import tiny
from training.bundle import DiffusionModel, load_bundle
from training.tracking import ModelVersion


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> ClipConfig:
    return tiny.write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_clip: ClipConfig) -> Path:
    """A bundle at 16 x 16 pixels."""
    return tiny.write_bundle(tmp_path_factory.mktemp("bundle"), tiny_clip)


@pytest.fixture(scope="session")
def model(bundle: Path) -> DiffusionModel:
    return load_bundle(bundle)


@pytest.fixture(scope="session")
def version(bundle: Path) -> ModelVersion:
    """The bundle as the registry would hand it out."""
    return ModelVersion(
        name="tiny", version="3", alias="champion", model_id=None, run_id=None, tags={}, bundle=str(bundle)
    )
