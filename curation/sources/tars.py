"""The index of a tar: one pass over its headers tells where every member lies, and what its sidecars say.

Python's `tarfile` ends in silence at a header that is damaged, at the first end mark of joined tars, and at a file that
stops too early. Here each header is read by itself, so that what cannot be read is known.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from curation import storage
from curation.manifest import Reason

_BLOCK = tarfile.BLOCKSIZE
_LARGEST_HEADER = 2**20  # bytes of a PAX or GNU header: names and comments, which no honest tar makes longer


@dataclass(frozen=True)
class Member:
    """A member that is not a folder."""

    name: str
    offset: int  # of its bytes in the tar
    size: int
    header: int  # where its header lies
    text: bytes | None = None  # its bytes, if they were asked for
    fault: tuple[Reason, str] | None = None  # why it has none


@dataclass(frozen=True)
class Damage:
    """From where on the tar cannot be read, and why."""

    offset: int
    detail: str


def index(file: BinaryIO, size: int, wants_text: Callable[[str, int], bool]) -> tuple[list[Member], Damage | None]:
    """The members of a tar in its order.

    Args:
        file: the tar, open for reading and seeking.
        size: of the tar in bytes.
        wants_text: tells from a member's name and size whether its bytes are to be read along.

    Returns:
        The members, and where the tar is damaged if it is. Joined tars are read through. Names that are not UTF-8 are
        written as backslash escapes. A link stands for the member that it names.

    Raises:
        tarfile.TarError: when not even the first header is one of a tar.
    """
    members: list[Member] = []
    links: list[tuple[int, str]] = []
    damage = None
    for header in _headers(file, size):
        if isinstance(header, Damage):
            damage = header
            break
        name = _shown(header.name).removeprefix("./")
        member = Member(name, header.offset_data, header.size, header.offset)
        if header.isdir():
            continue
        if header.islnk() or header.issym():
            folder = "" if header.islnk() else posixpath.dirname(name)
            links.append((len(members), posixpath.normpath(posixpath.join(folder, _shown(header.linkname)))))
        elif header.issparse():
            member = replace(member, fault=(Reason.UNSUPPORTED_FORMAT, "a sparse file"))
        elif not header.isreg():
            member = replace(member, fault=(Reason.NOT_A_FILE, "not a regular file"))
        elif wants_text(name, header.size):
            file.seek(header.offset_data)
            member = replace(member, text=file.read(header.size))
        members.append(member)
    return _resolved(members, links), damage


def _headers(file: BinaryIO, size: int) -> Iterator[tarfile.TarInfo | Damage]:
    """The headers one after another, and a `Damage` as the last thing if one cannot be read."""
    try:
        tar = tarfile.TarFile(fileobj=_Bounded(file), errors="surrogateescape", encoding="utf-8")  # type: ignore[arg-type]
    except (ValueError, OverflowError) as error:
        raise tarfile.ReadError(str(error)) from None
    offset, ended = 0, False
    while True:
        offset = tar.offset = _past_zeros(file, offset, size) if ended else offset
        if offset >= size:
            if not ended:
                yield Damage(size, "it has no end mark: members may be missing")
            return
        file.seek(offset)
        try:
            header = tarfile.TarInfo.fromtarfile(tar)
        except tarfile.HeaderError as error:
            file.seek(offset)
            if not any(file.read(_BLOCK)) and offset + _BLOCK <= size:
                ended, offset = True, offset + _BLOCK
                continue
            yield Damage(offset, f"the header at byte {offset} cannot be read ({error}); {size - offset} bytes follow")
            return
        except (tarfile.TarError, ValueError, OverflowError) as error:
            yield Damage(offset, f"the header at byte {offset} cannot be read ({error})")
            return
        if header.size < 0 or tar.offset <= offset:
            yield Damage(offset, f"the header at byte {offset} says a size below zero")
            return
        end = tar.offset if header.issparse() else header.offset_data + header.size
        if header.isreg() and end > size:
            yield Damage(offset, f"it ends within {_shown(header.name)}: {end - size} bytes are missing")
            return
        offset, ended = tar.offset, False
        yield header


def _past_zeros(file: BinaryIO, offset: int, size: int) -> int:
    """Where the next block begins that is not all zeros; `size` when there is none."""
    file.seek(offset)
    while chunk := file.read(_BLOCK * 128):
        rest = chunk.lstrip(b"\0")
        if rest:
            return (offset + len(chunk) - len(rest)) // _BLOCK * _BLOCK
        offset += len(chunk)
    return size


class _Bounded:
    """A file whose headers cannot claim all memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _resolved(members: list[Member], links: list[tuple[int, str]]) -> list[Member]:
    """Links replaced by what they lead to: of members of one name, the last one, as when a tar is unpacked."""
    named = {posixpath.normpath(member.name): i for i, member in enumerate(members)}
    targets = dict(links)
    found = list(members)
    for place, target in links:
        seen, name = {place}, target
        while True:
            end = named.get(name)
            if end is None or end in seen:
                found[place] = replace(members[place], fault=(Reason.NOT_FOUND, f"a link to {target}, not in the tar"))
                break
            if end not in targets:
                at = members[end]
                found[place] = replace(members[place], offset=at.offset, size=at.size, text=at.text, fault=at.fault)
                break
            seen.add(end)
            name = targets[end]
    return found


def _shown(name: str) -> str:
    return storage.as_text(name.encode("utf-8", "surrogateescape"))
