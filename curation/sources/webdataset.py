"""WebDataset: pictures in tars, beside each a JSON or a text of the same name."""

from __future__ import annotations

import json
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from curation import storage
from curation.containers import broken_member, tar_member
from curation.errors import UserError
from curation.manifest import Reason
from curation.sources.files import Shard, shards
from curation.sources.inputs import rows_table, stated
from curation.sources.tars import Damage, Member, index

_IMAGES = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "tif", "tiff", "avif", "heic", "heif", "hif", "bmp", "dib"),
    *("ico", "jp2", "j2k", "jxl", "ppm", "pgm", "pbm", "pnm", "tga", "img"),
)
_TEXTS = ("caption", "txt", "text", "cls", "json")  # sidecars, the first to say a thing is believed
_LARGEST_SIDECAR = 2**20
_PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"BZh91AY&SY")  # gzip, zstd, xz, bzip2
_TARS_AT_A_TIME = 8


class WebDatasetSource(BaseModel):
    """Every picture of one or many tars, in the order of the tars and of their members; sorted or not.

    Members belong together whose path is the same up to the first dot of the file's name, wherever in the tar they lie.
    Every picture among them is an input, named `<tar>#<member>`. What the JSON beside it states is kept (its inner
    lists and mappings as JSON text), and so is the text beside it, as `caption`; `.cls` as `cls`. Members that are
    neither a picture nor beside one are an input that fails as `no_image`, one for each name; what follows a damaged
    header is one input that fails as `truncated`. A member whose name comes again begins a sample of its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["webdataset"] = "webdataset"
    path: str = Field(description="a tar, a folder or prefix of tars, or a pattern such as shard-{000..010}.tar")
    dataset: str = Field("webdataset", description="name of the collection, for the manifest's `dataset` column")

    def inputs(self) -> pa.Table:
        found = shards(self.path, (".tar", ".tar.gz", ".tgz"))
        with ThreadPoolExecutor(_TARS_AT_A_TIME) as threads:
            results = list(threads.map(self._of, found))
        table = pa.concat_tables(table for table, _ in results)
        if table.num_rows == 0 or all(no_tar for _, no_tar in results):
            raise UserError(
                f"{self.path} holds no member that can be read",
                field="source.path",
                remedy="give tars with pictures in them",
            )
        return table

    def _of(self, shard: Shard) -> tuple[pa.Table, bool]:
        """The inputs in one tar, and whether it is no tar at all."""
        reason, no_tar = Reason.TRUNCATED, False
        members: list[Member] = []
        damage: Damage | None
        try:
            with storage.open_file(shard.location) as file:
                _refuse_packed(shard, file)
                members, damage = index(file, shard.size or 0, _is_sidecar)
        except tarfile.TarError as error:
            no_tar, damage = True, Damage(0, f"no tar: {error}")
        except OSError as error:
            reason, damage = Reason.UNREADABLE, Damage(0, f"cannot be read: {error.strerror or error}")
        rows = sorted(self._rows(shard, members), key=lambda row: row[0])
        if damage is not None:
            location = broken_member(reason, damage.detail)
            rows.append((damage.offset, {"uri": f"{shard.name}#damaged@{damage.offset}", "location": location}))
        shared = {"dataset": self.dataset, "modified": shard.modified}
        return rows_table({**row, **shared} for _, row in rows), no_tar

    def _rows(self, shard: Shard, members: Sequence[Member]) -> Iterator[tuple[int, dict[str, Any]]]:
        """A row for each input, with the offset that it has its place in the order by."""
        samples: dict[tuple[str, int], list[Member]] = defaultdict(list)
        times: Counter[str] = Counter()
        names = {member.name for member in members}
        uris: dict[int, str] = {}
        for member in members:
            times[member.name] += 1
            samples[_parts(member.name)[0], times[member.name]].append(member)
            uris[member.header] = f"{shard.name}#{_name(member.name, times[member.name], names)}"
        for sample in samples.values():
            sample.sort(key=lambda member: member.name)
            images = [member for member in sample if _kind(member.name) in _IMAGES]
            said = stated(_said(sample))
            for member in images:
                yield (
                    member.header,
                    {"uri": uris[member.header], "location": _location(shard, member), "size": member.size, **said},
                )
            if not images:
                detail = "there is no picture beside " + ", ".join(member.name for member in sample)[:200]
                location = broken_member(Reason.NO_IMAGE, detail)
                yield sample[0].header, {"uri": uris[sample[0].header], "location": location, **said}


def _refuse_packed(shard: Shard, file: BinaryIO) -> None:
    if file.read(10).startswith(_PACKED):
        raise UserError(
            f"{shard.name} is compressed, and there is no way to a member of it but through all before",
            field="source.path",
            remedy="unpack it to a plain .tar (gunzip); pictures gain nothing from it",
        )
    file.seek(0)


def _location(shard: Shard, member: Member) -> str:
    return broken_member(*member.fault) if member.fault else tar_member(shard.location, member.offset, member.size)


def _name(name: str, time: int, taken: set[str]) -> str:
    """A name for the n-th member of one name that no other member has."""
    if time == 1:
        return name
    again = f"{name}#{time}"
    while again in taken:
        again += "#"
    return again


def _parts(name: str) -> tuple[str, str]:
    """The key and the extension: `a/b.seg.jpg` is `a/b` and `seg.jpg`; dots at a name's beginning do not count."""
    folder, slash, base = name.rpartition("/")
    dots = len(base) - len(base.lstrip("."))
    stem, _, extension = base[dots:].partition(".")
    return folder + slash + base[:dots] + stem, extension.lower()


def _kind(name: str) -> str:
    return _parts(name)[1].rpartition(".")[2]


def _is_sidecar(name: str, size: int) -> bool:
    return _kind(name) in _TEXTS and size <= _LARGEST_SIDECAR


def _said(sample: Sequence[Member]) -> dict[str, Any]:
    """What a sample's sidecars say. Of two that say a thing differently, the second keeps its extension before it."""
    found: dict[str, Any] = {}
    sidecars = [member for member in sample if _kind(member.name) in _TEXTS]
    for member in sorted(sidecars, key=lambda member: (_TEXTS.index(_kind(member.name)), member.name)):
        extension = _parts(member.name)[1]
        if member.text is None:
            found[f"{extension}.unread"] = member.fault[1] if member.fault else f"{member.size} bytes"
            continue
        for name, value in _entries(extension, member.text.decode("utf-8-sig", "backslashreplace")).items():
            if value in (None, "") or found.get(name) == value:
                continue
            found[f"{extension}.{name}" if name in found else name] = value
    others = [_parts(m.name)[1] or m.name for m in sample if _kind(m.name) not in {*_TEXTS, *_IMAGES}]
    return {**found, "members": ", ".join(others)} if others else found


def _entries(extension: str, text: str) -> dict[str, Any]:
    """A sidecar's own names: of `json` its keys, of `tags.json` its keys below `tags`, of `prompt.txt` `prompt`."""
    before, _, kind = extension.rpartition(".")
    if kind != "json":
        return {before or ("caption" if kind in ("caption", "txt", "text") else kind): text.strip()}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {f"{extension}.unread": "no JSON"}
    if not isinstance(value, dict):
        return {f"{extension}.unread": "no JSON object"}
    return {f"{before}.{name}" if before else name: entry for name, entry in value.items()}
