"""What all tests share: no model hub, and one Ray cluster a session for those that need it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from pipelines.cluster import authenticate
from tests.browser import CHROMIUM, Browser

os.environ["HF_HUB_OFFLINE"] = "1"
_credentials = tempfile.TemporaryDirectory(prefix="credentials-")  # certificate and keys of every server of the tests
os.environ["CLEANPLATE_CREDENTIALS"] = os.path.join(_credentials.name, "of-the-tests")
authenticate()  # before a test's module imports ray.serve


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster of four logical CPUs, the one that commands run in this process join too."""
    from pipelines.cluster import connect

    with connect(cpus=4):
        yield


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()
