"""A server that speaks Google Cloud Storage's JSON API, on loopback, for the tests."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from curation import storage


@contextmanager
def gcs() -> Iterator[str]:
    """Starts gcp-storage-emulator with an empty bucket, has `storage` and children speak to it, and yields `gs://…`."""
    from gcp_storage_emulator.server import create_server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    try:
        with spoken_to(f"http://127.0.0.1:{port}"):
            yield "gs://bucket"
    finally:
        server.stop()


@contextmanager
def spoken_to(endpoint: str) -> Iterator[None]:
    """Has `storage`, and processes started meanwhile, take `endpoint` for Google."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        for made in (storage._fsspec, storage._by_fsspec):
            made.cache_clear()
        yield
        for made in (storage._fsspec, storage._by_fsspec):
            made.cache_clear()
