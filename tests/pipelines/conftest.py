"""What the tests of trainings and takedowns share: a tracking server and a text tower."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.conftest import write_tower


@pytest.fixture(scope="session")
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tower(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tower(tmp_path_factory.mktemp("tower") / "text_encoder")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without anything in it: making one takes seconds, copying it does not."""
    from training import tracking

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    tracking.versions(tracking_uri=f"sqlite:///{path}")
    return path
