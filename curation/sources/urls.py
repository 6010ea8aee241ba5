"""Lists on the web: a text of URLs, and how a source gets its listing documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from curation import storage
from curation.containers import broken_member
from curation.errors import UserError
from curation.fetch import FetchConfig, Fetcher
from curation.manifest import Reason
from curation.sources.inputs import INPUTS, as_text, stated_columns, without_password, without_passwords

_SCHEME = re.compile(r"^https?(?=://)", re.IGNORECASE)
_NO_URL = broken_member(Reason.BAD_URL, "the line is no http(s), s3 or gs URL")


class UrlListSource(BaseModel):
    """A plain text with a URL on each line, in its order; what follows a `#` at a line's beginning is a comment.

    A line that is no URL is an input too, and fails as `bad_url`: a list from elsewhere must not name files of here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["http"] = "http"
    path: str = Field(description="the list: a local file, s3://, gs:// or http(s)://")
    fetch: FetchConfig = Field(FetchConfig(), description="how a list on the web is fetched")
    dataset: str = Field("http", description="name of the collection, for the manifest's `dataset` column")

    def inputs(self) -> pa.Table:
        data = document(self.path, self.fetch)
        if data.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
            raise UserError(
                f"{self.path} is a web page", field="source.path", remedy="give a text with one URL on each line"
            )
        text = data.decode("utf-8-sig", "backslashreplace")
        lines = [line for raw in text.splitlines() if (line := raw.strip()) and not line.startswith("#")]
        if not lines:
            raise UserError(f"{self.path} lists nothing", field="source.path", remedy="write one URL on each line")
        given = pa.array([_SCHEME.sub(lambda scheme: scheme[0].lower(), line) for line in lines], pa.string())
        is_url = pc.match_substring_regex(given, r"^(https?|s3|gs)://[^/]")
        columns = {
            "uri": without_passwords(given),
            "location": pc.if_else(is_url, given, _NO_URL),
            "dataset": pa.repeat(self.dataset, len(lines)),
            "size": pa.nulls(len(lines), pa.int64()),
            "modified": pa.nulls(len(lines), INPUTS.field("modified").type),
            **stated_columns(pa.table({"nothing": pa.nulls(len(lines), pa.string())})),
        }
        return pa.table(columns, schema=INPUTS)


@contextmanager
def asking(fetch: FetchConfig) -> Iterator[Fetcher]:
    """A fetcher of listing documents, for hosts that are told who asks.

    Raises:
        UserError: naming a field below `source.fetch`.
    """
    try:
        fetch.check(has_urls=True)
    except UserError as error:
        raise UserError(error.message, field=f"source.{error.field}", remedy=error.remedy) from None
    with closing(Fetcher(fetch)) as fetcher:
        yield fetcher


def document(path: str, fetch: FetchConfig) -> bytes:
    """A listing document, from a store or from the web, where it is fetched like any picture.

    Raises:
        UserError: naming `source.path`, when it does not come.
    """
    if without_password(path) != path:
        raise UserError(
            f"{without_password(path)} is given with a password",
            field="source.path",
            remedy="fetch the list yourself and give the file: a job file stands in the manifest",
        )
    if not path.startswith(("http://", "https://")):
        try:
            return storage.read_bytes(path)
        except OSError as error:
            raise UserError(
                f"cannot read {path} ({as_text(error.strerror or error)})",
                field="source.path",
                remedy="give a file, s3://, gs:// or http(s)://",
            ) from None
    with asking(fetch) as fetcher:
        (found,) = fetcher([path])
    if found.data is None:
        raise UserError(
            f"{path} did not come: {found.reason} ({found.detail})",
            field="source.path",
            remedy="check the URL; `source.fetch` has the time-outs, the largest size and who may be asked",
        )
    return found.data
