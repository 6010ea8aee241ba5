"""The manifest: one row for every input, what was decided about it and why.

A published manifest is an immutable folder, local or on S3: `part-*.parquet` holds the rows, `manifest.json` says what
they are and is written last, so that a folder without it does not count. `Manifest.open` reads one, `publish` writes
one; nothing else in the project writes manifest Parquet.

The columns are the contract between curation and everything after it (DESIGN.md): add columns as stages measure more,
never rename one without raising `SCHEMA_VERSION`.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from curation import storage
from curation.errors import UserError

SCHEMA_VERSION = 1
INFO_FILE = "manifest.json"
LATEST_FILE = "latest.json"
FileName = Annotated[str, AfterValidator(storage.plain_name)]
"""The name of a file in what may come from elsewhere: one below the same folder."""

TIME = pa.timestamp("us", tz="UTC")
RIGHTS = pa.list_(
    pa.struct(
        [
            ("signal", pa.string()),
            ("value", pa.string()),
            ("where", pa.string()),
            ("observed_at", TIME),
            ("verdict", pa.string()),
        ]
    )
)
SAFETY = pa.list_(pa.struct([("concept", pa.string()), ("score", pa.float32())]))
SCORES = pa.list_(pa.struct([("name", pa.string()), ("score", pa.float32())]))
GROUPS = pa.list_(pa.struct([("set", pa.string()), ("group", pa.string()), ("score", pa.float32())]))
CAPTIONS = pa.list_(
    pa.struct(
        [
            ("text", pa.string()),
            ("source", pa.string()),
            ("language", pa.string()),
            ("words", pa.int32()),
            ("score", pa.float32()),  # cosine of CLIP's text and image embeddings
        ]
    )
)
TEXTS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def named(found: Mapping[str, str]) -> list[dict[str, str]] | None:
    """Texts by name as a cell of a `TEXTS` column, null where there are none."""
    return [{"name": name, "value": value} for name, value in found.items()] or None


def texts(cell: Sequence[Mapping[str, str]] | None) -> dict[str, str]:
    """The inverse of `named`."""
    return {entry["name"]: entry["value"] for entry in cell or ()}


def _plain(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,62}", name):
        raise ValueError("must be lower-case letters, digits, '.', '_' and '-', at most 63 of them")
    return name


Name = Annotated[str, AfterValidator(_plain)]
"""The name of a job and of what it makes: it becomes part of folder names, of tags and of applications' names."""


class Decision(StrEnum):
    """What became of an input."""

    KEPT = "kept"
    DROPPED = "dropped"
    HELD = "held"
    FAILED = "failed"


class Verdict(StrEnum):
    """What the rights evidence of a row adds up to."""

    ALLOW = "allow"
    DENY = "deny"
    UNKNOWN = "unknown"
    ERROR = "error"


class Reason(StrEnum):
    """Why an input was decided as it was. An HTTP refusal is `http_<status>` and stands in no list."""

    PASSED = "passed"
    # failed: the bytes or the pixels never came
    NOT_ASKED = "not_asked"
    SITE_REFUSES = "site_refuses"
    SITE_UNREACHABLE = "site_unreachable"
    NOT_FOUND = "not_found"
    NOT_A_FILE = "not_a_file"
    UNREADABLE = "unreadable"
    EMPTY = "empty"
    TOO_LARGE = "too_large"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_MANY_PIXELS = "too_many_pixels"
    REFUSED_ADDRESS = "refused_address"
    DNS = "dns"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    WRONG_LENGTH = "wrong_length"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    BAD_URL = "bad_url"
    NO_IMAGE = "no_image"
    FRAMES_DIFFER = "frames_differ"
    # dropped or held, by policy
    OPTED_OUT = "opted_out"
    OPTED_OUT_NEAR_COPY = "opted_out_near_copy"
    RIGHTS_ERROR = "rights_error"
    RIGHTS_UNKNOWN = "rights_unknown"
    LICENCE_NOT_ALLOWED = "licence_not_allowed"
    LICENCE_UNSTATED = "licence_unstated"
    TOO_SMALL = "too_small"
    ODD_SHAPE = "odd_shape"
    TOO_FEW_FRAMES = "too_few_frames"
    FILTERED = "filtered"
    NOT_MEASURED = "not_measured"
    UNSAFE = "unsafe"
    CAPTION_MISSING = "caption_missing"
    CAPTION_POOR = "caption_poor"
    DUPLICATE_EXACT = "duplicate_exact"
    DUPLICATE_PIXEL = "duplicate_pixel"
    DUPLICATE_PERCEPTUAL = "duplicate_perceptual"
    DUPLICATE_SEMANTIC = "duplicate_semantic"


OPTIONAL = pa.schema(
    [
        ("frames", pa.int32()),  # of the film strip in `image`: they stand below each other, all of one size
        ("source_frames", pa.int32()),  # of what was sampled
        ("frame_files", pa.list_(pa.struct([("uri", pa.string()), ("sha256", pa.string())]))),  # of a frame folder
        ("frame_phashes", pa.list_(pa.uint64())),  # of every frame in the strip
        ("frame_layouts", pa.list_(pa.binary())),
        ("image_width", pa.int32()),  # of the picture in `image`, where it is not a square
        ("image_height", pa.int32()),
    ]
)
"""Columns of jobs with `frames` or with `buckets` (`CurateJob.columns`); other manifests are without them."""


def schema(embedding_dim: int | None, optional: Iterable[str] = ()) -> pa.Schema:
    """The manifest's Arrow schema for CLIP embeddings of width `embedding_dim`; None leaves that column out.

    Of the columns in `OPTIONAL` it has those that `optional` names; other names are passed over.

    A row without a picture has an embedding of zeros: Parquet readers of Arrow cannot read back a null in a
    fixed-size list, and zeros are near nothing.
    """
    columns = _columns() if embedding_dim is None else _columns(("embedding", pa.list_(pa.float16(), embedding_dim)))
    wanted = set(optional)
    more = [(field.name, field.type) for field in OPTIONAL if field.name in wanted]
    return pa.schema([*columns[:-1], *more, columns[-1]])


def _columns(*embedding: tuple[str, pa.DataType]) -> list[tuple[str, pa.DataType]]:
    return [
        ("id", pa.string()),
        ("uri", pa.string()),
        ("final_uri", pa.string()),
        ("redirects", pa.list_(pa.string())),
        ("headers", TEXTS),
        ("dataset", pa.string()),
        ("source_url", pa.string()),  # of what came in a container: where its source says it is from
        ("page_url", pa.string()),  # the page that its source says it stands on
        ("host", pa.string()),
        ("domain", pa.string()),
        ("fetched_at", TIME),
        ("bytes", pa.int64()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("pixel_hash", pa.string()),
        ("phash", pa.uint64()),
        ("phash_turned", pa.list_(pa.uint64())),  # of the seven other orientations, where they were asked for
        ("colour_layout", pa.binary()),
        ("embedded", TEXTS),  # what the file says about itself: XMP, IPTC, EXIF
        ("title", pa.string()),
        ("creator", pa.string()),
        ("licence", pa.string()),
        ("licence_url", pa.string()),
        ("rights", RIGHTS),
        ("rights_verdict", pa.string()),
        ("caption", pa.string()),
        ("caption_source", pa.string()),
        ("captions", CAPTIONS),  # all that are kept, in order of preference; `caption` is one of them
        *embedding,
        ("safety", SAFETY),
        ("scores", SCORES),
        ("groups", GROUPS),
        ("duplicate_of", pa.string()),
        ("duplicate_kind", pa.string()),
        ("similarity", pa.float32()),
        ("duplicate_cluster", pa.string()),  # the id that stays of a cluster of copies, on all of its rows
        ("nearest", pa.string()),  # the most similar row by embedding, above the floor that is stored
        ("nearest_similarity", pa.float32()),
        ("decision", pa.string()),
        ("was_kept", pa.bool_()),  # of a derived manifest: whether its base kept what it does not
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("rule", pa.string()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
        ("detail", pa.string()),
        ("image", IMAGE),
    ]


def is_extension(kind: pa.DataType) -> bool:
    """Whether a type, or one inside it, is an extension of Arrow's, of which some run code to make values of bytes.

    Ray Data registers one whose values are pickles.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return True
    if pa.types.is_dictionary(kind):
        return is_extension(kind.value_type)
    return any(is_extension(kind.field(number).type) for number in range(kind.num_fields))


def refuse_extensions(schema: pa.Schema) -> None:
    """Raises ValueError where a column is of an extension type: whoever reads its values may run code."""
    for field in schema:
        if is_extension(field.type):
            raise ValueError(f"the column {field.name} is of an extension type, which nothing here writes")


class PartFile(BaseModel):
    """One Parquet file of a manifest."""

    model_config = ConfigDict(frozen=True)
    name: FileName
    rows: int = Field(ge=0)
    sha256: str


class RightsSource(BaseModel):
    """One list or service that was asked about rights, and the state of it that was read."""

    model_config = ConfigDict(frozen=True)
    kind: str
    path: str
    sha256: str
    entries: int
    read_at: datetime


class LedgerInfo(BaseModel):
    """The takedown ledger whose entries were applied (`curation.takedowns`): where it lies, and what it held."""

    model_config = ConfigDict(frozen=True)
    uri: str
    version: str
    entries: int  # in force


class WorkInfo(BaseModel):
    """Where the measured units lay that the parts were made of: `<folder>/unit-<units[i]>.parquet` became part i.

    They hold small pictures of rows that were not kept, which a manifest does not, until somebody clears them away.
    """

    model_config = ConfigDict(frozen=True)
    folder: str
    units: list[FileName]


class ClipInfo(BaseModel):
    """Which CLIP model made the embeddings."""

    model_config = ConfigDict(frozen=True)
    name: str
    dim: int


class InputsInfo(BaseModel):
    """The input listing that the rows are to be reconciled with: its length, and a hash of its uris in order."""

    model_config = ConfigDict(frozen=True)
    rows: int
    sha256: str

    @classmethod
    def of(cls, uris: Iterable[str]) -> InputsInfo:
        h, rows = hashlib.sha256(), 0
        for uri in uris:
            rows += 1
            h.update(len(uri.encode()).to_bytes(8, "little") + uri.encode())
        return cls(rows=rows, sha256=h.hexdigest())


class ManifestInfo(BaseModel):
    """The contents of `manifest.json`."""

    model_config = ConfigDict(frozen=True)
    schema_version: int = SCHEMA_VERSION
    id: str
    parent_id: str | None = None
    parent_uri: str | None = None  # where the parent lay
    base_id: str | None = None  # of a derived manifest: the curated one whose rows it has, decided anew
    base_uri: str | None = None
    changes: dict[str, int] = {}  # of a derived manifest: rows that its base kept and it does not, by reason
    name: str
    created_at: datetime
    code_version: str
    job: dict[str, Any]
    clip: ClipInfo | None  # None for a manifest without embeddings
    inputs: InputsInfo
    rows: int
    counts: dict[str, int]
    reasons: dict[str, int]
    rights: list[RightsSource]
    ledger: LedgerInfo | None = None
    evidence_from: datetime | None = None  # when the oldest evidence that a kept row rests on was seen
    files: list[PartFile]
    work: WorkInfo | None = None

    @model_validator(mode="after")
    def _rows_are_those_of_the_files(self) -> ManifestInfo:
        if not self.files or sum(part.rows for part in self.files) != self.rows:
            raise ValueError(f"{self.rows} rows are not those of its {len(self.files)} files")
        return self


class Manifest:
    """A published manifest, open for reading."""

    def __init__(self, uri: str, info: ManifestInfo) -> None:
        self.uri = uri
        self.info = info

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def work(self) -> WorkInfo | None:
        """The units that it was made of, where they lie in the folder that it was published in: no other is its own."""
        work, folder = self.info.work, storage.absolute(self.uri).rstrip("/").rpartition("/")[0]
        return work if work is not None and storage.inside(folder, storage.absolute(work.folder)) else None

    @property
    def schema(self) -> pa.Schema:
        """The columns of its rows, as they stand in its files: an older manifest has fewer than `schema` names."""
        with self._part(self.info.files[0]) as file:
            return file.schema_arrow

    @classmethod
    def open(cls, uri: str) -> Manifest:
        """Opens a manifest's folder, or the newest one in a folder of manifests.

        Raises:
            UserError: when there is none, when it was never published whole, or when its schema is newer than ours.
        """
        if not storage.exists(storage.join(uri, INFO_FILE)) and storage.exists(storage.join(uri, LATEST_FILE)):
            uri = storage.join(uri, _latest(uri))
        try:
            raw = json.loads(storage.read_bytes(storage.join(uri, INFO_FILE)))
        except FileNotFoundError:
            raise UserError(
                f"no manifest at {uri}",
                field="manifest",
                remedy="give a folder that holds manifest.json (or latest.json); `cleanplate curate` makes one",
            ) from None
        except ValueError as error:
            raise UserError(f"{uri}/{INFO_FILE} is not JSON: {error}", field="manifest") from None
        version = raw.get("schema_version") if isinstance(raw, dict) else None
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise UserError(
                f"the manifest at {uri} has schema version {version}; this cleanplate reads up to {SCHEMA_VERSION}",
                field="manifest",
                remedy="upgrade cleanplate, or curate again with this version",
            )
        try:
            return cls(uri, ManifestInfo.model_validate(raw))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{uri}/{INFO_FILE} is damaged: {where}: {first['msg']}",
                field="manifest",
                remedy="restore it, or curate again",
            ) from None

    @contextmanager
    def _part(self, part: PartFile) -> Iterator[pq.ParquetFile]:
        """One of its files, open.

        Raises:
            UserError: a file of other rows than `manifest.json` says, or with columns that nothing here writes.
        """
        try:
            system, path = storage.filesystem(storage.below(self.uri, part.name))
            with pq.ParquetFile(path, filesystem=system) as file:
                if file.metadata.num_rows != part.rows:
                    raise ValueError(f"it has {file.metadata.num_rows} rows instead of {part.rows}")
                refuse_extensions(file.schema_arrow)
                yield file
        except ValueError as error:  # Arrow's are of its kind
            raise UserError(
                f"{part.name} of the manifest at {self.uri} is damaged: {error}",
                field="manifest",
                remedy="restore it, or curate again",
            ) from None

    def batches(
        self, columns: Sequence[str] | None = None, *, decision: Decision | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows in manifest order, a row group at a time; only those of `decision` when it is given."""
        wanted = None if columns is None else list(dict.fromkeys([*columns, "decision"]))
        for part in self.info.files:
            with self._part(part) as file:
                for batch in file.iter_batches(columns=wanted):
                    rows = batch
                    if decision is not None:
                        rows = rows.filter(pc.equal(rows["decision"], decision.value))
                    yield rows if columns is None else rows.select(list(columns))

    def table(self, columns: Sequence[str] | None = None, *, decision: Decision | None = None) -> pa.Table:
        """`batches` as one table."""
        chosen = self.schema
        if columns is not None:
            chosen = pa.schema([chosen.field(name) for name in columns])
        return pa.Table.from_batches(list(self.batches(columns, decision=decision)), schema=chosen)

    def verify(self) -> None:
        """Reads every file again and compares it with `manifest.json`.

        Raises:
            UserError: for a file that is missing or whose bytes are not those that were published.
        """
        for part in self.info.files:
            name = storage.join(self.uri, part.name)
            try:
                storage.below(self.uri, part.name)
                found = hashlib.sha256(storage.read_bytes(name)).hexdigest()
            except FileNotFoundError:
                raise UserError(f"{name} is missing", field="manifest", remedy="restore it or curate again") from None
            except ValueError as error:
                raise UserError(str(error), field="manifest", remedy="restore it or curate again") from None
            if found != part.sha256:
                raise UserError(
                    f"{name} is not what was published (sha256 {found[:12]}… instead of {part.sha256[:12]}…)",
                    field="manifest",
                    remedy="restore the file or curate again: a manifest is never edited",
                )


def _latest(uri: str) -> str:
    """The name of the newest manifest's folder, below a folder of manifests."""
    try:
        folder = json.loads(storage.read_bytes(storage.join(uri, LATEST_FILE)))["folder"]
        return storage.plain_name(folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{uri}/{LATEST_FILE} is damaged: {error}", field="manifest", remedy="name one of the manifests beside it"
        ) from None


def write_part(uri: str, rows: pa.Table) -> tuple[PartFile, str]:
    """Writes rows as one Parquet file; returns its entry for `manifest.json` and the digest of its rows."""
    data = to_parquet(rows)
    storage.write_bytes(uri, data)
    name = uri.rsplit("/", 1)[-1]
    return PartFile(name=name, rows=rows.num_rows, sha256=hashlib.sha256(data).hexdigest()), digest_rows(rows)


def to_parquet(rows: pa.Table) -> bytes:
    """A table as a Parquet file: zstd, but for pictures, which are compressed already."""
    plain = [name for name in rows.column_names if name not in ("image", "embedding")]
    buffer = pa.BufferOutputStream()  # several times faster than a file of Python's
    pq.write_table(
        rows,
        buffer,
        compression={name: "zstd" for name in _leaves(rows.schema) if name != "image.bytes"} | {"image.bytes": "none"},
        use_dictionary=[name for name in _leaves(rows.schema) if name.split(".")[0] in plain],
        row_group_size=4096,
        store_schema=True,
    )
    return bytes(buffer.getvalue())


@lru_cache(maxsize=16)  # every unit of a job has the same
def _leaves(schema: pa.Schema) -> list[str]:
    """The paths of a schema's columns as Parquet names them."""
    empty = io.BytesIO()
    pq.write_table(schema.empty_table(), empty)
    written = pq.ParquetFile(empty).schema
    return [written.column(i).path for i in range(len(written))]


def publish(staging: str, output: str, info: ManifestInfo) -> Manifest:
    """Makes a staged folder of parts a manifest: `manifest.json` goes in last, then the folder gets its final name.

    The same manifest published twice is the first one: its folder is left alone and the staged one is removed.
    """
    staged = {found.base_name for found in storage.list_files(staging)}
    if staged != {part.name for part in info.files}:
        raise AssertionError(f"{staging} holds {len(staged)} of {len(info.files)} parts")
    folder = f"m-{info.id[:16]}"
    target = storage.join(output, folder)
    text = info.model_dump_json(indent=2).encode()
    if storage.exists(storage.join(target, INFO_FILE)):
        storage.remove_tree(staging)
    elif storage.is_remote(output):
        # Objects cannot be renamed together: the parts go first, and manifest.json makes them count.
        storage.move_tree(staging, target)
        storage.write_bytes(storage.join(target, INFO_FILE), text)
    else:
        storage.write_bytes(storage.join(staging, INFO_FILE), text)
        try:
            storage.move_tree(staging, target)
        except FileExistsError:  # another run published the same manifest just now
            storage.remove_tree(staging)
    latest = {"folder": folder, "id": info.id}
    storage.write_bytes(storage.join(output, LATEST_FILE), json.dumps(latest).encode())
    return Manifest.open(target)


def manifest_id(job: dict[str, Any], part_digests: Sequence[str]) -> str:
    """The id: a hash of the schema version, the resolved job without paths and worker counts, and the rows."""
    h = hashlib.sha256()
    h.update(json.dumps([SCHEMA_VERSION, job, list(part_digests)], sort_keys=True).encode())
    return h.hexdigest()


def evidence_from(rows: pa.Table) -> datetime | None:
    """When the oldest evidence was seen that kept rows from the web rest on; None where there are no such rows.

    A row's evidence is as old as the oldest of its observations on the web; where nobody was asked, as old as its
    bytes. What stands in a file of one's own is read when the manifest is made, so that `created_at` is its time.
    """
    web = pc.match_substring_regex(rows["uri"], "(?i)^https?://")
    kept = rows.filter(pc.and_(pc.equal(rows["decision"], Decision.KEPT.value), web)).select(["rights", "fetched_at"])
    times = []
    for row in kept.to_pylist():
        seen = [o["observed_at"] for o in row["rights"] or () if o["observed_at"] is not None]
        times.append(min(seen, default=row["fetched_at"]))
    return min((t for t in times if t is not None), default=None)


def now() -> datetime:
    return datetime.now(UTC)


def digest_rows(rows: pa.Table) -> str:
    """sha256 of the values of a table, whatever wrote it.

    Chunking, slack bytes under nulls and Parquet settings have no influence; the times of observation (`fetched_at`,
    `rights[].observed_at`) are left out, so that two runs that saw the same things agree.
    """
    h = hashlib.sha256()
    for name in rows.column_names:
        if name == "fetched_at":
            continue
        h.update(f"{name}:{rows.num_rows};".encode())
        column = rows[name].combine_chunks()
        _digest_array(h, column.chunk(0) if isinstance(column, pa.ChunkedArray) else column)
    return h.hexdigest()


def _digest_array(h: Any, array: pa.Array) -> None:
    h.update(np.packbits(np.asarray(array.is_valid().to_numpy(zero_copy_only=False), dtype=bool)).tobytes())
    kind = array.type
    if pa.types.is_struct(kind):
        for field, child in zip(kind, array.flatten(), strict=True):
            if field.name != "observed_at":
                _digest_array(h, child)
    elif pa.types.is_map(kind):
        pairs = pa.struct([pa.field("key", kind.key_type, nullable=False), ("value", kind.item_type)])
        _digest_array(h, array.cast(pa.list_(pairs)))
    elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        if pa.types.is_list(kind):
            lengths = pc.fill_null(pc.list_value_length(array), 0)
            h.update(lengths.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        _digest_array(h, array.flatten())
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        filled = pc.fill_null(array.cast(pa.binary()), b"")
        h.update(pc.binary_length(filled).to_numpy(zero_copy_only=False).astype("<i8").tobytes())
        h.update(b"".join(filled.to_pylist()))
    elif pa.types.is_timestamp(kind):
        h.update(pc.fill_null(array.cast(pa.int64()), 0).to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    else:
        values = array.drop_null().to_numpy(zero_copy_only=False)
        h.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
