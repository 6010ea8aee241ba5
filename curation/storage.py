"""Local folders and buckets behind the same few calls.

A path is a local path, an `s3://bucket/key` or a `gs://bucket/key` URI. Endpoints and credentials come from the
environment (`AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`
or `AWS_DEFAULT_REGION`; `GOOGLE_APPLICATION_CREDENTIALS`, `STORAGE_EMULATOR_HOST`), never from a job file. A
single-object write is atomic everywhere: a rename here, a PUT there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import stat
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar, cast
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

from pyarrow import fs as pafs

from curation.errors import UserError

_BY_FSSPEC = {"gs": "gcsfs"}
"""The schemes left to fsspec, and the package that each wants."""

_COPIES = 16  # objects that are copied at a time

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


_P = ParamSpec("_P")
_T = TypeVar("_T")


def _faults_are_os_errors(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """Libraries of stores raise errors of their own for what a store answers; here all of them are OSErrors."""

    @wraps(call)
    def wrapped(*args: _P.args, **options: _P.kwargs) -> _T:
        try:
            return call(*args, **options)
        except (OSError, UserError):
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error

    return wrapped


def is_remote(uri: str) -> bool:
    """True for `s3://…`: what is not a path of this machine."""
    return _SCHEME.match(uri) is not None and not uri.startswith("file://")


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of `uri` and the path inside it.

    Raises:
        UserError: for a scheme other than a local path, `file://`, `s3://` or `gs://`.
    """
    if uri.startswith("s3://"):
        return _s3(), uri.removeprefix("s3://").rstrip("/")
    if is_remote(uri):
        scheme, _, path = uri.partition("://")
        if scheme not in _BY_FSSPEC:
            raise UserError(
                f"no storage of the kind {scheme}://", remedy="use a local path, s3://bucket/key or gs://bucket/key"
            )
        return _by_fsspec(scheme), str(_fsspec(scheme)._strip_protocol(path)).rstrip("/")
    return pafs.LocalFileSystem(), os.path.abspath(uri.removeprefix("file://"))


@lru_cache(maxsize=1)
def _s3() -> pafs.S3FileSystem:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    retries = pafs.AwsStandardS3RetryStrategy(max_attempts=5)
    if endpoint is None:
        return pafs.S3FileSystem(retry_strategy=retries)
    parts = urlsplit(endpoint)
    return pafs.S3FileSystem(
        endpoint_override=parts.netloc,
        scheme=parts.scheme,
        # The second is the name that boto3 knows, and so MLflow's containers.
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        retry_strategy=retries,
    )


def _is_fsspec(system: pafs.FileSystem) -> bool:
    """Whether to speak to fsspec itself: pyarrow's wrapper takes a store that refuses for one that has no such file."""
    return isinstance(system, pafs.PyFileSystem)


@lru_cache
def _by_fsspec(scheme: str) -> pafs.FileSystem:
    return pafs.PyFileSystem(pafs.FSSpecHandler(_fsspec(scheme)))


@lru_cache
def _fsspec(scheme: str) -> Any:
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}  # other workers write there, too
    if scheme == "gs" and "STORAGE_EMULATOR_HOST" in os.environ:
        options["token"] = "anon"  # else it looks for Google's metadata server first
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # else it waits for gRPC to answer
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError:
        package = _BY_FSSPEC[scheme]
        raise UserError(f"{scheme}:// needs the package {package}", remedy=f"pip install {package}") from None


def as_text(path: bytes) -> str:
    """A path as text, no two the same: bytes that are not UTF-8 become escapes, and so does what reads like one."""
    with contextlib.suppress(UnicodeDecodeError):
        text = path.decode()
        if re.search(r"\\x[89a-f][0-9a-f]", text) is None:
            return text
    return path.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def local_location(path: bytes) -> str:
    """A local path as text: itself, or a percent-encoded `file://` URL where its bytes are not UTF-8."""
    try:
        return path.decode("utf-8")
    except UnicodeDecodeError:
        return "file://" + quote_from_bytes(path)


def local_path(location: str) -> bytes:
    """The inverse of `local_location`."""
    if location.startswith("file://"):
        return unquote_to_bytes(location.removeprefix("file://"))
    return os.fsencode(location)


def join(uri: str, *parts: str) -> str:
    """`uri/part/part`, for either kind of path."""
    return "/".join([uri.rstrip("/"), *parts])


def plain_name(name: str) -> str:
    """A name that somebody else wrote into a file, of something below the same folder.

    Raises:
        ValueError: an absolute name, one with `..`, or with another part that is no name.
    """
    if any(part in ("", ".", "..") or re.search(r"[\\\0]", part) for part in name.split("/")):
        raise ValueError(f"{name[:200]!r} is no name of a file below its folder")
    return name


def below(uri: str, name: str) -> str:
    """`join`, for a name that somebody else wrote. Raises ValueError: as `plain_name`, or a link that leads out."""
    place = join(uri, plain_name(name))
    if not inside(uri, place):
        raise ValueError(f"{name[:200]!r} is a link that leads out of its folder")
    return place


def inside(folder: str, location: str) -> bool:
    """Whether a location of this machine is a folder's own or below it, wherever links lead; remote ones by name."""
    if is_remote(folder) or is_remote(location):
        return location == folder or location.startswith(folder.rstrip("/") + "/")
    try:
        root, place = (os.path.realpath(local_path(path)) for path in (folder, location))
    except ValueError:  # a name with a null byte
        return False
    return place == root or place.startswith(root.rstrip(b"/") + b"/")


@_faults_are_os_errors
def info(location: str) -> pafs.FileInfo:
    """Kind, size and time of what is at a location; its type is NotFound when nothing is."""
    if is_remote(location):
        system, path = filesystem(location)
        return system.get_file_info(path)
    try:
        status = os.stat(local_path(location))
    except (OSError, ValueError):
        return pafs.FileInfo(location, pafs.FileType.NotFound)
    kinds = {stat.S_IFREG: pafs.FileType.File, stat.S_IFDIR: pafs.FileType.Directory}
    kind = kinds.get(stat.S_IFMT(status.st_mode), pafs.FileType.Unknown)
    return pafs.FileInfo(location, kind, size=status.st_size, mtime=status.st_mtime)


@_faults_are_os_errors
def open_file(location: str, buffer: int = 2**20) -> BinaryIO:
    """Opens a file for reading and seeking; `buffer` bytes are read ahead, so that small reads are few requests.

    Raises:
        FileNotFoundError: when it is absent.
        OSError: when it cannot be read, or is no regular file (opening a pipe would wait for ever).
        UserError: when there is no such storage.
    """
    if is_remote(location):
        system, path = filesystem(location)
        raw = system.handler.fs.open(path, "rb") if _is_fsspec(system) else system.open_input_file(path)
        return cast(BinaryIO, io.BufferedReader(raw, buffer))
    path_here = local_path(location)
    if not stat.S_ISREG(os.stat(path_here).st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return open(path_here, "rb")


def absolute(uri: str) -> str:
    """The same place, wherever the command is run."""
    return uri if is_remote(uri) else filesystem(uri)[1]


@_faults_are_os_errors
def exists(uri: str) -> bool:
    """Whether a file or a folder (in a bucket: any key below it) is there."""
    system, path = filesystem(uri)
    return bool(system.get_file_info(path).type != pafs.FileType.NotFound)


@_faults_are_os_errors
def is_dir(uri: str) -> bool:
    system, path = filesystem(uri)
    return bool(system.get_file_info(path).type == pafs.FileType.Directory)


@_faults_are_os_errors
def list_files(uri: str, *, recursive: bool = False) -> list[pafs.FileInfo]:
    """The files below a folder in name order; an absent folder has none."""
    system, path = filesystem(uri)
    if _is_fsspec(system):
        found = system.handler.fs.find(path, maxdepth=None if recursive else 1, detail=True)
        infos = (
            pafs.FileInfo(name, pafs.FileType.File, size=i["size"], mtime=i.get("mtime")) for name, i in found.items()
        )
        return sorted((i for i in infos if i.path != path), key=lambda i: i.path)
    selector = pafs.FileSelector(path, allow_not_found=True, recursive=recursive)
    return sorted((i for i in system.get_file_info(selector) if i.is_file), key=lambda i: i.path)


@_faults_are_os_errors
def list_folders(uri: str) -> list[str]:
    """The names of the folders in a folder, in order; an absent one has none."""
    system, path = filesystem(uri)
    if _is_fsspec(system):
        try:
            found = system.handler.fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        return sorted(i["name"].rstrip("/").rsplit("/", 1)[-1] for i in found if i["type"] == "directory")
    infos = system.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(i.base_name for i in infos if i.type == pafs.FileType.Directory)


@_faults_are_os_errors
def read_bytes(uri: str) -> bytes:
    """The whole file. Raises FileNotFoundError or OSError."""
    system, path = filesystem(uri)
    if _is_fsspec(system):
        return bytes(system.handler.fs.cat_file(path))
    with system.open_input_stream(path, compression=None) as stream:
        return bytes(stream.read())


def sha256_of(path: Path) -> str:
    """Of a file on this machine, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@_faults_are_os_errors
def write_bytes(uri: str, data: bytes) -> None:
    """Writes the file whole or not at all; folders above it are made."""
    if is_remote(uri):
        system, path = filesystem(uri)
        if _is_fsspec(system):
            system.handler.fs.pipe_file(path, data)  # one request; a stream that breaks may leave half a file
            return
        with system.open_output_stream(path, compression=None) as stream:
            stream.write(data)
        return
    target = Path(filesystem(uri)[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@_faults_are_os_errors
def move_tree(source: str, target: str) -> None:
    """Moves a folder to a name that must not be taken: one rename locally, a copy of every object in a bucket.

    Raises:
        FileExistsError: when a local `target` is there already.
    """
    system, path = filesystem(source)
    if isinstance(system, pafs.LocalFileSystem):
        os.makedirs(os.path.dirname(filesystem(target)[1]), exist_ok=True)
        try:
            os.rename(path, filesystem(target)[1])
        except OSError as error:
            if exists(target):
                raise FileExistsError(target) from error
            raise
        return

    def copy(found: pafs.FileInfo) -> None:
        system.copy_file(found.path, filesystem(join(target, found.path.removeprefix(path + "/")))[1])

    with ThreadPoolExecutor(_COPIES) as pool:  # each is a round trip, in which nothing is done here
        list(pool.map(copy, list_files(source, recursive=True)))
    system.delete_dir(path)


@_faults_are_os_errors
def remove_file(uri: str) -> None:
    """Removes a file; an absent one is fine."""
    system, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError):
        system.delete_file(path)


@_faults_are_os_errors
def remove_tree(uri: str) -> None:
    """Removes a folder and everything below it; an absent one is fine."""
    system, path = filesystem(uri)
    if exists(uri):
        system.delete_dir(path)
