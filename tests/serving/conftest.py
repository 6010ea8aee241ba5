"""What the serving tests share: a tiny CLIP, a tiny bundle, and the bundle loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curation.clip import ClipConfig
from serving import logs
from serving.generator import Generator
from serving.observability import ObservabilityConfig
from tests.serving import tiny
from tests.serving.local import JOB
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


@pytest.fixture(scope="module")
def generator(version: ModelVersion, model: DiffusionModel) -> Generator:
    """Within the limits of `local.JOB`; a module that wants others has its own."""
    return Generator(version, model, None, JOB.limits)


@pytest.fixture
def configured() -> Iterator[Callable[..., None]]:
    """Has this process log to a file as a server's does, until the test ends."""
    loggers = [logging.getLogger(name) for name in logs.LOGGERS]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    serve = logging.getLogger("ray.serve")
    filters = list(serve.filters)

    def configure(file: Path, **settings: Any) -> None:
        logs.configure(ObservabilityConfig(log_file=str(file), **settings), "gateway")

    yield configure
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
    serve.filters = filters
