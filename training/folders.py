"""Whole folders between this machine and the storage of a run, which may be S3."""

from __future__ import annotations

import os
from pathlib import Path

from curation import storage
from curation.errors import UserError


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


def refuse_foreign(out: Path, marker: str, what: str) -> None:
    """Refuses to write over what is not ours to replace.

    Args:
        marker: the file that tells an older one of the kind.
        what: its kind, "an export".

    Raises:
        UserError: `out` is a file, or a folder with something else in it.
    """
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / marker).is_file())):
        raise UserError(f"{out} holds something else than {what}", field="out", remedy="name a new or an empty folder")


def cache_root() -> Path:
    """Where downloaded models are kept on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cleanplate"
