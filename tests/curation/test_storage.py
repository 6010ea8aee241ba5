"""Storage: the same calls mean the same on a disk and in a bucket."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pyarrow.fs import S3FileSystem

from curation import storage
from curation.errors import UserError
from tests.curation.gcs import gcs, spoken_to


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with gcs() as uri:
        yield uri


@pytest.fixture(params=["disk", "gs"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path)
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def test_what_is_written_is_there(root: str) -> None:
    files = {"a.txt": b"a", "deep/er/b.bin": b"b" * 300_000, "deep/ü #1.txt": b"", "big": b"x" * 6_000_000}
    for name, data in files.items():
        storage.write_bytes(f"{root}/{name}", data)
    found = storage.list_files(root, recursive=True)
    assert {i.path.partition(root.removeprefix("gs://"))[2]: i.size for i in found} == {
        f"/{name}": len(data) for name, data in files.items()
    }
    assert all(i.mtime is not None for i in found)
    assert [i.base_name for i in storage.list_files(root)] == ["a.txt", "big"]
    assert {name: storage.read_bytes(f"{root}/{name}") for name in files} == files
    assert storage.info(f"{root}/big").size == 6_000_000
    assert (storage.is_dir(f"{root}/deep"), storage.is_dir(f"{root}/a.txt"), storage.exists(f"{root}/no")) == (1, 0, 0)
    storage.write_bytes(f"{root}/a.txt", b"again")
    assert storage.read_bytes(f"{root}/a.txt") == b"again"


@pytest.mark.parametrize(
    ("told", "region"),
    [
        ({}, "us-east-1"),
        ({"AWS_DEFAULT_REGION": "eu-central-1"}, "eu-central-1"),
        ({"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-central-1"}, "eu-west-1"),
    ],
)
def test_a_bucket_s_region_is_what_the_environment_says(
    told: dict[str, str], region: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store in another region refuses what is signed for this one."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", **told}.items():
        monkeypatch.setenv(name, value)
    storage._s3.cache_clear()
    try:
        system = storage.filesystem("s3://bucket/key")[0]
        assert isinstance(system, S3FileSystem)
        assert system.region == region
    finally:
        storage._s3.cache_clear()


def test_what_another_process_writes_is_seen(root: str) -> None:
    storage.write_bytes(f"{root}/a", b"1")
    assert len(storage.list_files(root, recursive=True)) == len(storage.list_files(root)) == 1
    assert not storage.exists(f"{root}/b")
    writes = "".join(f"storage.write_bytes({f'{root}/{name}'!r}, b'22'); " for name in "ab")
    write = [sys.executable, "-c", f"from curation import storage; {writes}"]
    subprocess.run(write, check=True, cwd=Path(__file__).parents[2])
    assert storage.exists(f"{root}/b")
    assert storage.info(f"{root}/a").size == 2
    for recursive in (True, False):
        assert [i.size for i in storage.list_files(root, recursive=recursive)] == [2, 2]


def test_a_file_is_read_from_its_middle(root: str) -> None:
    storage.write_bytes(f"{root}/a", bytes(range(250)) * 10_000)
    with storage.open_file(f"{root}/a") as file:
        for offset in (2_000_000, 0, 1_000_250, 1_000_260):
            file.seek(offset)
            assert file.read(4) == bytes((offset + i) % 250 for i in range(4))
        file.seek(2_499_999)
        assert file.read(10) == b"\xf9"
    with pytest.raises(FileNotFoundError):
        storage.open_file(f"{root}/absent")


def test_a_tree_moves_and_goes(root: str) -> None:
    for name in ("x/1", "x/deep/2", "y"):
        storage.write_bytes(f"{root}/{name}", name.encode())
    storage.move_tree(f"{root}/x", f"{root}/new/x")
    assert storage.read_bytes(f"{root}/new/x/deep/2") == b"x/deep/2"
    assert not storage.exists(f"{root}/x")
    storage.remove_tree(f"{root}/new")
    storage.remove_tree(f"{root}/new")
    assert [i.base_name for i in storage.list_files(root, recursive=True)] == ["y"]
    storage.remove_file(f"{root}/y")
    storage.remove_file(f"{root}/y")
    assert storage.list_files(root, recursive=True) == []


def test_whatever_a_store_answers_is_an_os_error() -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"error": {"message": "no such thing"}}'
            self.send_response(400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, args=(0.01,)).start()
    try:
        with spoken_to(f"http://127.0.0.1:{server.server_port}"):
            for call in (storage.read_bytes, storage.exists, storage.info, storage.list_files, storage.open_file):
                with pytest.raises(OSError, match="no such thing"):
                    call("gs://bucket/x")
    finally:
        server.shutdown()
        server.server_close()


def test_only_known_storage_is_spoken_to() -> None:
    for uri in ("ftp://host/x", "memory://x", "http://host/x", "github://a/b"):
        with pytest.raises(UserError, match="no storage of the kind"):
            storage.filesystem(uri)


def test_a_missing_package_is_named() -> None:
    script = (
        "import sys, json; sys.modules['gcsfs'] = None\n"
        "from curation import storage; from curation.errors import UserError\n"
        "try: storage.read_bytes('gs://bucket/x')\n"
        "except UserError as error: print(json.dumps([error.message, error.remedy]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, cwd=Path(__file__).parents[2]
    )
    assert json.loads(done.stdout) == ["gs:// needs the package gcsfs", "pip install gcsfs"]
