"""Training's small jobs, for what a tracking server is told."""

from tests.training.conftest import make_job, manifest, tower

__all__ = ["make_job", "manifest", "tower"]
