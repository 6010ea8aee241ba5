"""Two writers and a packer, all killed again and again, and a reader beside them: nothing is lost, nothing doubled."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import storage
from curation.errors import UserError
from curation.takedowns import Ledger, of_place
from tests.curation.seaweed import S3, seaweed
from tests.curation.takedowns.writer import acknowledged, append

EACH = 1000
NAMES = ("jane", "john")
KILLS = 3  # of each process


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    (tmp_path / "s3").mkdir()
    with seaweed(tmp_path / "s3") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        storage._s3.cache_clear()
        server.client.create_bucket(Bucket="ledgers")
        yield server
    storage._s3.cache_clear()


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.curation.takedowns.writer", *arguments])


@contextmanager
def read_meanwhile(uri: str, acks: list[Path]) -> Iterator[None]:
    """A reader beside it all: it sees at least what was acknowledged before it began to read."""
    stop = threading.Event()
    faults: list[BaseException] = []
    reads: list[int] = []
    ledger = Ledger.open(uri)  # which keeps what it has read

    def read() -> None:
        try:
            while not stop.is_set():
                before = {id_ for path in acks for _, id_ in acknowledged(path)}
                fresh = Ledger.open(uri) if len(reads) % 5 == 0 else ledger
                seen = [entry.id for entry in fresh.read().entries]
                assert before <= set(seen)
                assert len(seen) == len(set(seen))
                reads.append(len(seen))
        except BaseException as error:
            faults.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        stop.set()
        reader.join()
    assert not faults, faults
    assert reads


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kill_and_rerun(uri: str, folder: Path, chance: random.Random) -> None:
    """Runs both writers to the end, killing each at random counts of what it has acknowledged, and the packer too."""
    acks = [folder / f"{name}.acks" for name in NAMES]
    packs = folder / "packs"
    packer = start("pack", uri, str(packs))
    try:
        with read_meanwhile(uri, acks):
            writers = [start("add", uri, name, str(EACH), str(a)) for name, a in zip(NAMES, acks, strict=True)]
            at = [sorted(chance.sample(range(20, EACH - 20), KILLS)) for _ in NAMES]
            for stops in zip(*at, strict=True):
                for i, stop in enumerate(stops):
                    until(lambda i=i, stop=stop: len(acknowledged(acks[i])) >= stop or writers[i].poll() is not None)  # type: ignore[misc]
                    writers[i].kill()
                    writers[i].wait()
                packer.kill()
                packer.wait()
                packer = start("pack", uri, str(packs))
                for i, name in enumerate(NAMES):
                    writers[i] = start("add", uri, name, str(EACH), str(acks[i]))
            for writer in writers:
                assert writer.wait(200) == 0
            size = packs.stat().st_size if packs.exists() else 0
            until(lambda: packs.exists() and packs.stat().st_size > size)
    finally:
        packer.kill()
        packer.wait()


def check(uri: str, folder: Path) -> None:
    ledger = Ledger.open(uri)
    state = ledger.read()
    elsewhere = Ledger.open(str(folder / "elsewhere"))
    expected = {append(elsewhere, name, number).id for name in NAMES for number in range(EACH)}
    assert len(state.entries) == len(NAMES) * EACH
    assert {entry.id for entry in state.entries} == expected
    assert state.version == elsewhere.read().version
    ledger.pack()
    ledger.pack()
    system, path = storage.filesystem(f"{uri}/events")
    table: pa.Table = pq.read_table(path, filesystem=system)
    assert sorted(table["id"].to_pylist()) == sorted(expected)
    assert Ledger.open(uri).read() == state


@pytest.mark.slow
def test_kill_9_loses_and_doubles_nothing_in_a_folder(tmp_path: Path) -> None:
    uri = str(tmp_path / "ledger")
    kill_and_rerun(uri, tmp_path, random.Random(1))
    check(uri, tmp_path)


@pytest.mark.slow
def test_kill_9_loses_and_doubles_nothing_in_a_bucket(tmp_path: Path, s3: S3) -> None:
    kill_and_rerun("s3://ledgers/ledger", tmp_path, random.Random(2))
    check("s3://ledgers/ledger", tmp_path)


@pytest.mark.slow
def test_a_bucket_that_cannot_be_read_is_not_an_empty_ledger(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ledger.open("s3://ledgers/ledger").read().entries == ()
    append(Ledger.open("s3://ledgers/ledger"), "jane", 0)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    storage._s3.cache_clear()
    with pytest.raises(UserError, match="cannot be reached") as error:
        Ledger.open("s3://ledgers/ledger").read()
    assert error.value.field == "ledger"
    with pytest.raises(UserError, match="cannot be reached"):
        of_place("s3://ledgers/ledger")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    storage._s3.cache_clear()
    with pytest.raises(UserError, match="cannot be reached"):
        Ledger.open("s3://ledgers/ledger").read()
