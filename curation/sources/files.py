"""Inputs that are files: a folder of pictures, and the shards in which others keep theirs."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from curation import storage
from curation.containers import broken_member, is_member
from curation.errors import UserError
from curation.manifest import Reason
from curation.sources.inputs import rows_table, stated
from curation.sources.sequences import gathered
from curation.sources.tables import read_table


class FolderSource(BaseModel):
    """Every file below a folder, in name order; hidden files and the metadata table itself are not inputs.

    A row of the metadata table that names a file which is not there is an input too, and fails as `not_found`. Links to
    folders are not followed, and a link to a file elsewhere fails as `refused_address`, unless `outside` is set. Bytes
    of a name that are not UTF-8 are written as backslash escapes. With `sequences`, a folder of numbered frames is one
    input, named with a slash at its end (`sequences.gathered`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["folder"] = "folder"
    path: str = Field(description="folder or s3:// or gs:// prefix with the pictures")
    metadata: str | None = Field(
        None, description="table (CSV, TSV, JSONL, Parquet) with `path` (below the folder), title, creator, licence, …"
    )
    dataset: str = Field("folder", description="name of the collection, for the manifest's `dataset` column")
    sequences: bool = Field(
        False, description="whether a folder below it whose files are numbered is one moving picture"
    )
    outside: bool = Field(False, description="whether links may lead out of the folder; yes only for one of your own")

    def inputs(self) -> pa.Table:
        if not storage.is_dir(self.path):
            raise UserError(
                f"no folder at {self.path}", field="source.path", remedy="give the folder that holds the pictures"
            )
        remote = storage.is_remote(self.path)
        root, found = _files_below(self.path, "source.path", outside=self.outside)
        table = None if self.metadata is None else self._metadata_location()
        files = {name: file for name, file in found.items() if file["location"] != table}
        rows = {} if self.metadata is None else _rows_by_path(self.metadata, "source.metadata")
        if self.sequences:
            files, folders = gathered(files)
            rows = self._of_folders(rows, files, folders)
        names = sorted(files.keys() | rows.keys())
        if not names:
            raise UserError(f"the folder {self.path} is empty", field="source.path", remedy="put pictures into it")
        return rows_table(
            {
                "uri": storage.join(root, name) if remote else name,
                "location": storage.join(root, name),
                "dataset": self.dataset,
                **files.get(name, {}),
                **rows.get(name, {}),
            }
            for name in names
        )

    def _of_folders(
        self, rows: dict[str, dict[str, Any]], files: dict[str, dict[str, Any]], folders: dict[str, str]
    ) -> dict[str, dict[str, Any]]:
        """The metadata table's rows under the names of inputs: a frame folder may be named without its slash."""
        found: dict[str, dict[str, Any]] = {}
        for name, row in rows.items():
            if name in folders:
                raise UserError(
                    f"{self.metadata} names {name}, a frame of {folders[name]}",
                    field="source.metadata",
                    remedy="name the folder instead, or set source.sequences to false",
                )
            slashed = f"{name.rstrip('/')}/"
            chosen = slashed if name not in files and slashed in files else name
            if chosen in found:
                raise UserError(
                    f"{self.metadata} names {chosen} twice", field="source.metadata", remedy="keep one row of it"
                )
            found[chosen] = row
        return found

    def _metadata_location(self) -> str:
        assert self.metadata is not None
        return self.metadata if storage.is_remote(self.metadata) else str(storage.filesystem(self.metadata)[1])


@dataclass(frozen=True)
class Shard:
    """A file that holds many inputs."""

    name: str  # in the manifest: relative for a local one, else the full URL
    location: str
    size: int | None
    modified: datetime | None


def shards(path: str, endings: Sequence[str], *, outside: bool = False) -> list[Shard]:
    """The containers that a path stands for: a file, a folder's files with such endings, or a pattern of names.

    Args:
        path: a file, a folder or prefix, or a pattern like `s3://bucket/shard-{000..010}.tar` or
            `{train,test}.parquet`, in whose order they come.
        endings: of the files that count in a folder, in lower case.
        outside: whether a folder's links may lead out of it.

    Raises:
        UserError: naming `source.path`, when there are none, or one that is named is not there, or a link leads out.
    """
    if "{" in path and not storage.info(path).is_file:
        names = _expanded(path)
        root = path[: path.index("{")].rpartition("/")[0]
        return [_shard(name, root, info) for name, info in zip(names, _infos(names), strict=True)]
    info = storage.info(path)
    if info.is_file:
        return [_shard(path, path.rpartition("/")[0], info)]
    if not storage.is_dir(path):
        raise _absent(path)
    root, found = _files_below(path, "source.path", outside=outside)
    chosen = {name: file for name, file in sorted(found.items()) if name.lower().endswith(tuple(endings))}
    if not chosen:
        raise UserError(
            f"no {' or '.join(endings)} files below {path}", field="source.path", remedy="give the folder they are in"
        )
    if away := [name for name, file in chosen.items() if is_member(file["location"])]:
        raise UserError(
            f"{away[0]} is a link that leads out of {path}",
            field="source.path",
            remedy="name what you trust by a pattern, as in shard-{000..010}.tar, or give the folder that it lies in",
        )
    remote = storage.is_remote(path)
    return [Shard(storage.join(root, name) if remote else name, **file) for name, file in chosen.items()]


def _shard(path: str, root: str, info: Any) -> Shard:
    if not info.is_file:
        raise _absent(path)
    remote = storage.is_remote(path)
    location = path if remote else str(storage.filesystem(path)[1])
    return Shard(path if remote else path[len(root) :].lstrip("/"), location, info.size, info.mtime)


def _absent(path: str) -> UserError:
    return UserError(
        f"no file or folder at {path}", field="source.path", remedy="check the path, and each of a pattern's"
    )


def _infos(names: Sequence[str]) -> list[Any]:
    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(storage.info, names))


def _expanded(pattern: str) -> list[str]:
    """`a-{08..10}` as a-08, a-09, a-10 and `{x,y}` as x, y: braces as a shell reads them, without nesting."""
    texts, braces = re.split(r"\{[^{}]*\}", pattern), re.findall(r"\{([^{}]*)\}", pattern)
    choices = [_choices(brace, pattern) for brace in braces]
    return [
        "".join(itertools.chain.from_iterable(zip(texts, (*chosen, ""), strict=True)))
        for chosen in itertools.product(*choices)
    ]


def _choices(brace: str, pattern: str) -> list[str]:
    if match := re.fullmatch(r"(\d+)\.\.(\d+)", brace):
        first, last = int(match[1]), int(match[2])
        if 0 <= last - first < 1_000_000:
            return [str(n).zfill(len(match[1])) for n in range(first, last + 1)]
    elif "," in brace:
        return brace.split(",")
    raise UserError(
        f"{{{brace}}} in {pattern} is no range and no list", field="source.path", remedy="write {000..010} or {a,b}"
    )


def _files_below(path: str, field: str, *, outside: bool = False) -> tuple[str, dict[str, dict[str, Any]]]:
    """The folder as an absolute path, and by relative name the place, size and time of each file that is not hidden."""
    remote = storage.is_remote(path)
    root = path.rstrip("/") if remote else str(storage.filesystem(path)[1])
    found = _remote_files(root) if remote else _local_files(root, field, outside)
    return root, {n: file for n, file in found.items() if not any(part.startswith(".") for part in n.split("/"))}


def _remote_files(root: str) -> dict[str, dict[str, Any]]:
    inside = storage.filesystem(root)[1]
    return {
        (name := info.path[len(inside) :].lstrip("/")): {
            "location": storage.join(root, name),
            "size": info.size,
            "modified": info.mtime,
        }
        for info in storage.list_files(root, recursive=True)
    }


def _local_files(root: str, field: str, outside: bool) -> dict[str, dict[str, Any]]:
    files = {}

    def unreadable(error: OSError) -> None:
        raise UserError(
            f"cannot list {error.filename!r} ({error.strerror})",
            field=field,
            remedy="make the folder readable, or move it out of the source: nothing is left out in silence",
        )

    walked = os.walk(os.fsencode(root), onerror=unreadable)
    for path in (os.path.join(folder, name) for folder, _, names in walked for name in names):
        relative = storage.as_text(os.path.relpath(path, os.fsencode(root)))
        location = storage.local_location(path)
        if not outside and os.path.islink(path) and not storage.inside(root, location):
            detail = "a link that leads out of the folder; source.outside follows it"
            files[relative] = {
                "location": broken_member(Reason.REFUSED_ADDRESS, detail),
                "size": None,
                "modified": None,
            }
            continue
        info = storage.info(location)  # of a link to nowhere it knows nothing, and fetching will say so in its row
        files[relative] = {"location": location, "size": info.size, "modified": info.mtime}
    return files


def _rows_by_path(path: str, field: str) -> dict[str, dict[str, Any]]:
    table = read_table(path, field)
    if "path" not in table.column_names:
        raise UserError(
            f"{path} has no column `path`; it has {', '.join(table.column_names)}",
            field=field,
            remedy="add a column `path` with each picture's place below the folder",
        )
    rows: dict[str, dict[str, Any]] = {}
    for row in table.to_pylist():
        name = str(row.pop("path") or "").removeprefix("./")
        if name in rows:
            raise UserError(f"{path} names {name} twice", field=field, remedy="keep one row for each picture")
        if name.startswith("/") or ".." in name.split("/"):
            raise UserError(f"{path} names {name}, outside the folder", field=field, remedy="use paths below it")
        rows[name] = stated(row)
    return rows
