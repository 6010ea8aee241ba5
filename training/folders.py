"""Whole folders between this machine and the storage of a run, which may be S3."""

from __future__ import annotations

import os
from pathlib import Path

from curation import storage


def upload(folder: Path, uri: str, *, last: str) -> None:
    """Copies a folder's files to `uri`; the file `last` goes last, so that its presence vouches for the others."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path.relative_to(folder).as_posix() == last):
        storage.write_bytes(storage.join(uri, path.relative_to(folder).as_posix()), path.read_bytes())


def download(uri: str, folder: Path) -> None:
    """Copies everything below `uri` into a local folder."""
    root = storage.filesystem(uri)[1]
    for info in storage.list_files(uri, recursive=True):
        relative = info.path.removeprefix(root).lstrip("/")
        storage.write_bytes(str(folder / relative), storage.read_bytes(storage.join(uri, relative)))


def cache_root() -> Path:
    """Where downloaded models are kept on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cleanplate"
