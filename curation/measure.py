"""Measuring one work unit: from inputs to a table of everything that bytes and pixels say, decisions left open.

`Look` fetches, decodes and hashes; `embed.Embed` runs the models that want pixels. One process does both on one decode,
or, where GPUs do the second, one actor does the first and another the second. What a row measures depends on its input
alone: the same input gives the same bits wherever and beside whatever it is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from curation import manifest, nsfw
from curation.buckets import BucketsConfig
from curation.clip import ClipConfig
from curation.containers import frames_of, unpack
from curation.fetch import FetchConfig, Fetched, Fetcher, row_id
from curation.images import Decoded, ImageConfig, ImageError, decode, encode, encoding_of, square
from curation.manifest import Reason, named, texts
from curation.metadata import Embedded
from curation.moving import MOST, look, of_frames, scan_frames, size_of, strip
from curation.places import host_and_domain, is_url
from curation.rights.config import RightsConfig
from curation.rights.verdict import Observation
from curation.sight import NSFW_SIDE, Eye, Sight, shown
from curation.site_desk import records
from curation.site_rights import Shown, SiteRights, own_records
from curation.sources import INPUTS
from curation.sources.inputs import without_password

_CHUNK = MOST  # pictures whose pixels are held at a time: no less than a film has frames
_SIDE_OF_HASHES, _SIDE_OF_SCORES = 64, 128  # where nothing larger is asked of the pixels


class MeasureConfig(BaseModel):
    """What a worker needs to know to measure; built from the job, shipped as values."""

    model_config = ConfigDict(frozen=True)

    fetch: FetchConfig
    rights: RightsConfig
    sites: str | None = None  # folder of what sites answered
    desks: tuple[str, ...] = ()  # actors that ask the sites for all workers
    images: ImageConfig
    image_size: int
    frames: int | None = None
    buckets: BucketsConfig | None = None
    columns: tuple[str, ...] = ()  # of `manifest.OPTIONAL`
    pictures: bool
    clip: ClipConfig | None
    quality: tuple[str, ...]
    nsfw: nsfw.NsfwConfig | None
    turned: bool
    threads: int


# Columns of a measured unit beside its input's: those of the manifest that are measured, and why a row failed.
_MEASURED = (
    *(
        "id",
        "final_uri",
        "redirects",
        "headers",
        "source_url",
        "page_url",
        "host",
        "domain",
        "fetched_at",
        "bytes",
        "detail",
        "format",
    ),
    *("width", "height", "pixel_hash", "phash", "phash_turned", "colour_layout", "embedded", "scores", "safety"),
    "image",
)
_FAILED = (
    pa.field("sightings", manifest.RIGHTS),  # what sites, answers, pages and C2PA manifests say about use
    pa.field("failed_stage", pa.string()),
    pa.field("failed_reason", pa.string()),
)


# float16 (frames, dim), row by row: what each frame of a strip is to CLIP. They stay among the measurements.
EMBEDDINGS = pa.field("frame_embeddings", pa.binary())


def schema(embedding_dim: int | None, optional: Sequence[str] = ()) -> pa.Schema:
    """Columns of a measured unit: those of the input, then what was measured.

    Args:
        embedding_dim, optional: as of `manifest.schema`.
    """
    columns = manifest.schema(embedding_dim, optional)
    measured = [*_MEASURED, *(["embedding"] if embedding_dim is not None else []), *optional]
    frames = [EMBEDDINGS] if "frames" in optional and embedding_dim is not None else []
    return pa.schema([*INPUTS, *(columns.field(name) for name in measured), *_FAILED, *frames])


@dataclass(frozen=True)
class Chunk:
    """Pixels of some rows of a unit, uint8 (P, side, side, 3), a stack for each model that wants them.

    A moving picture's row comes once for each of its frames. The stacks may be longer than `rows`; what stands behind
    is not filled.
    """

    rows: list[int]
    clip: np.ndarray | None
    nsfw: np.ndarray | None

    def add(self, row: int, sight: Sight) -> None:
        """Takes what the models want of a row's pixels."""
        place = len(self.rows)
        if self.clip is not None:
            self.clip[place] = sight.clip
        if self.nsfw is not None:
            self.nsfw[place] = sight.nsfw
        self.rows.append(row)

    def cut(self) -> Chunk:
        """Itself without what is not filled, for the way to another process."""
        clip, nsfw = (None if stack is None else stack[: len(self.rows)] for stack in (self.clip, self.nsfw))
        return Chunk(self.rows, clip, nsfw)


Columns = dict[str, list[Any]]


class Look:
    """Fetch, read the metadata, decode, hash: all that a CPU does for a row."""

    def __init__(self, config: MeasureConfig, clip_side: int | None) -> None:
        import cv2

        cv2.setNumThreads(config.threads)
        self._config = config
        self._clip_side = clip_side
        self._fetcher = Fetcher(config.fetch, self._admit)
        least = _SIDE_OF_SCORES if config.quality or config.nsfw is not None else _SIDE_OF_HASHES
        self._registered: Mapping[str, Observation] = {}  # what a registry says of the unit's URLs
        wanted = config.image_size if config.buckets is None else config.buckets.side
        self._side = max(clip_side or 0, wanted if config.pictures else 0) or least
        picture = self._square if config.buckets is None else config.buckets.cut
        self._eye = Eye(
            picture=picture if config.pictures else None,
            clip_side=clip_side,
            nsfw=config.nsfw is not None,
            quality=config.quality,
            turned=config.turned,
        )

    def __call__(self, inputs: pa.Table, columns: Columns, unwanted: Sequence[int] = ()) -> Iterator[Chunk]:
        """Looks at the inputs of one unit.

        Args:
            inputs: a table with the columns of `sources.INPUTS`.
            columns: receives the measured columns of all rows, complete when the iterator ends.
            unwanted: rows whose place is opted out: they are not fetched, and fail as `not_asked`.

        Yields:
            The pixels of rows that have any, some rows at a time.
        """
        uris, locations = inputs["uri"].to_pylist(), inputs["location"].to_pylist()
        names = (*_MEASURED, *self._config.columns, *(field.name for field in _FAILED))
        columns |= {name: [None] * len(uris) for name in names}
        for row, (uri, stated) in enumerate(zip(uris, inputs["metadata"].to_pylist(), strict=True)):
            columns["id"][row] = row_id(uri, None)
            if not is_url(uri):  # from a file or a container, whose metadata may say where it had the picture from
                columns["source_url"][row] = _stated_url(dict(stated or ()))
            if "frame_files" in columns:
                files = [frame.rsplit("/", 1)[-1] for frame in frames_of(locations[row])]
                columns["frame_files"][row] = [{"uri": f"{uri}{name}", "sha256": None} for name in files] or None
            columns["page_url"][row] = _stated_page(dict(stated or ()))
            columns["host"][row], columns["domain"][row] = host_and_domain(columns["source_url"][row] or uri)
            if any(name.endswith(".unread") for name, _ in stated or ()):
                columns["embedded"][row] = named({"damaged": "sidecar"})  # it may have said whose the picture is
        for row in unwanted:
            _fail(columns, row, "fetch", Reason.NOT_ASKED)
        wanted = [row for row in range(len(uris)) if columns["failed_stage"][row] is None]
        chunk = self._chunk()
        modified = inputs["modified"].to_pylist()
        pages = self._pages(locations, columns, wanted)
        asked = [without_password(locations[row]) for row in wanted if is_url(locations[row])]
        self._registered = self._rights.registered(asked) if asked else {}
        for row, fetched in zip(wanted, self._fetcher([locations[row] for row in wanted]), strict=True):
            columns["fetched_at"][row] = fetched.at or modified[row]  # a member's time is its container's
            try:
                columns["sightings"][row] = self._sightings(locations[row], fetched, pages.get(row))
                found = self._read(columns, row, uris[row], fetched)
            except Exception as error:  # whatever one picture does, the others of its unit are not to suffer for it
                _fail(columns, row, "decode", Reason.CORRUPT, repr(error)[:200])
                found = []
            if len(chunk.rows) + len(found) > _CHUNK:
                yield chunk
                chunk = self._chunk()
            for sight in found:
                chunk.add(row, sight)
        if chunk.rows:
            yield chunk

    async def _admit(self, url: str) -> None:
        await self._rights.admit(url)

    @cached_property
    def _rights(self) -> SiteRights:
        config = self._config
        own = own_records(lambda: self._fetcher.web, config.rights, config.sites)
        return SiteRights(config.rights, config.fetch.product, records(config.desks, own), self._fetcher.soon)

    def _pages(self, locations: Sequence[str], columns: Columns, rows: Sequence[int]) -> dict[int, Shown]:
        """The pages of pictures from the web that have one, by row; each is fetched and read once, and not held."""
        if not self._config.rights.pages:
            return {}
        urls = {row: columns["page_url"][row] for row in rows if columns["page_url"][row] and is_url(locations[row])}
        distinct = sorted(set(urls.values()))
        fetched = zip(distinct, self._fetcher(distinct), strict=True)
        found = {url: self._rights.read(url, page) for url, page in fetched}
        return {row: found[url] for row, url in urls.items()}

    def _sightings(self, location: str, fetched: Fetched, page: Shown | None) -> list[dict[str, object]] | None:
        found: list[Observation] = []
        if is_url(location):
            url = without_password(location)
            found += self._rights.observe(url, fetched, page)
            found += [self._registered[url]] if url in self._registered else []
        if fetched.data is not None:
            found += of_frames(fetched.data, self._config.rights)
        return [observation.row() for observation in found] or None

    def _read(self, columns: Columns, row: int, uri: str, fetched: Fetched) -> list[Sight]:
        """Fills in what bytes and pixels say; returns the frames seen, none where the reason is in the columns."""

        def put(**values: Any) -> None:
            for name, value in values.items():
                columns[name][row] = value

        put(final_uri=fetched.final_uri, redirects=list(fetched.redirects) or None, headers=named(fetched.headers))
        if fetched.data is None:
            _fail(columns, row, "fetch", fetched.reason, fetched.detail)
            return []
        put(id=row_id(uri, fetched.data), bytes=size_of(fetched.data))
        for file, data in zip(self._files(columns, row), unpack(fetched.data) or (), strict=False):
            file["sha256"] = row_id(file["uri"], data)
        # Before anything is encoded anew: what a file says about its rights is lost with its original bytes.
        about = scan_frames(fetched.data)
        damaged = [texts(columns["embedded"][row]).get("damaged"), about.fields.get("damaged")]
        told = ",".join(filter(None, damaged))
        put(embedded=named({**about.fields, **({"damaged": told} if told else {})}))
        config = self._config
        try:
            total, frames = self._seen(fetched.data, about)
        except ImageError as error:
            _fail(columns, row, "decode", error.reason, error.detail)
            return []
        found = shown(frames)
        put(format=found.format, width=found.width, height=found.height)
        put(pixel_hash=found.pixel_hash, phash=found.hashes.phash, colour_layout=found.hashes.colour_layout)
        put(phash_turned=list(found.hashes.turned) or None)
        if config.frames is not None:
            put(frames=len(frames), source_frames=total, frame_phashes=[f.hashes.phash for f in frames])
            put(frame_layouts=[f.hashes.colour_layout for f in frames])
        if pictures := [frame.picture for frame in frames if frame.picture is not None]:
            encoded = encode(strip(pictures), encoding_of(config.images, found.format))
            put(image={"bytes": encoded, "path": uri.rstrip("/").rsplit("/", 1)[-1]})
            if config.buckets is not None:
                put(image_width=pictures[0].shape[1], image_height=pictures[0].shape[0])
        if config.quality:
            put(scores=[{"name": name, "score": score} for name, score in found.scores.items()])
        return frames

    def _seen(self, data: bytes, about: Embedded) -> tuple[int, list[Sight]]:
        """How many frames there are, and what is seen on those that count: on one, where the job takes stills."""
        config = self._config
        if config.frames is None:
            return 1, [self._eye(decode(data, config.images, self._side, about))]
        return look(data, config.images, config.frames, self._side, about, self._eye)

    def _files(self, columns: Columns, row: int) -> list[dict[str, Any]]:
        return columns["frame_files"][row] or [] if "frame_files" in columns else []

    def _square(self, found: Decoded) -> np.ndarray:
        return square(found.pixels, self._config.image_size, self._config.images)

    def _chunk(self) -> Chunk:
        def stack(side: int | None) -> np.ndarray | None:
            return None if side is None else np.empty((_CHUNK, side, side, 3), np.uint8)

        return Chunk([], stack(self._clip_side), stack(None if self._config.nsfw is None else NSFW_SIDE))


_URL_NAMES = ("url", "image_url", "img_url", "source_url", "original_url", "source", "link", "page_url")


_PAGE_NAMES = ("page_url", "webpage_url", "landing_page", "landing_url", "source_page")


def _stated_page(metadata: Mapping[str, str]) -> str | None:
    """The URL of the page that a row's metadata says the picture stands on."""
    fields = {name.lower(): text.strip() for name, text in metadata.items()}
    return next((without_password(fields[name]) for name in _PAGE_NAMES if is_url(fields.get(name, ""))), None)


def _stated_url(metadata: Mapping[str, str]) -> str | None:
    """The URL that a row's metadata says the picture is from: under one of the usual names, else any that is one."""
    urls = {name.lower(): without_password(text.strip()) for name, text in metadata.items() if is_url(text.strip())}
    return next((urls[name] for name in _URL_NAMES if name in urls), min(urls.values(), default=None))


def _fail(columns: Columns, row: int, stage: str, reason: str | None, detail: str | None = None) -> None:
    for name, value in (("failed_stage", stage), ("failed_reason", str(reason)), ("detail", detail)):
        columns[name][row] = value


def forget(rows: pa.Table, unwanted: Sequence[int]) -> pa.Table:
    """A measured unit as if the rows `unwanted` had not been asked for, whatever an earlier run learned of them.

    So the same input and job give the same manifest, whether a place was opted out before or after it was fetched.
    """
    if not unwanted:
        return rows
    if "uri" not in rows.column_names:  # what a later stage made of them
        gone = set(unwanted)
        return rows.take(pa.array([None if i in gone else i for i in range(rows.num_rows)], pa.int64()))
    kept = {*INPUTS.names, "source_url", "page_url", "host", "domain"}
    found = rows.to_pylist()
    for index in unwanted:
        row = {name: value if name in kept else None for name, value in found[index].items()}
        row |= {"id": row_id(str(row["uri"]), None), "failed_stage": "fetch", "failed_reason": Reason.NOT_ASKED.value}
        if "embedding" in row:
            row["embedding"] = [0.0] * len(found[index]["embedding"])
        found[index] = {name: row[name] for name in rows.column_names}
    return pa.Table.from_pylist(found, schema=rows.schema)
