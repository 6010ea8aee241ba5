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
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
            _forget()
            yield "gs://bucket"
    finally:
        _forget()
        server.stop()


def _forget() -> None:
    storage._fsspec.cache_clear()
    storage._by_fsspec.cache_clear()
