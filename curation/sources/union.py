"""All kinds of sources, and several of them one after another."""

from __future__ import annotations

from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from curation.errors import UserError
from curation.sources.files import FolderSource
from curation.sources.iiif import IIIFSource
from curation.sources.inputs import INPUTS
from curation.sources.parquet import ParquetSource
from curation.sources.tables import TableSource
from curation.sources.urls import UrlListSource
from curation.sources.webdataset import WebDatasetSource


class UnionSource(BaseModel):
    """The inputs of several sources, in the order of the sources.

    Two sources may name different files alike: the later one's input then carries its `dataset` before its name, so
    that a source added at the end changes no name that was there. The same place twice is two inputs of one name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["union"] = "union"
    of: tuple[SourceConfig, ...] = Field(min_length=1, description="the sources")

    def inputs(self) -> pa.Table:
        found: list[pa.Table] = []
        for index, source in enumerate(self.of):
            field = f"source.of[{index}]"
            try:
                table = source.inputs()
            except UserError as error:
                where = field + (error.field or "").removeprefix("source")
                raise UserError(error.message, field=where, remedy=error.remedy) from None
            found.append(_named_apart(table, pa.concat_tables(found), field) if found else table)
        return pa.concat_tables(found)


SourceConfig = Annotated[
    FolderSource | TableSource | ParquetSource | WebDatasetSource | UrlListSource | IIIFSource | UnionSource,
    Field(discriminator="kind"),
]
UnionSource.model_rebuild()


def _named_apart(table: pa.Table, earlier: pa.Table, field: str) -> pa.Table:
    """The table with the names that mean something else in an earlier one put below its dataset."""
    new_place = pc.invert(pc.is_in(table["location"], value_set=earlier["location"]))
    named_alike = pc.is_in(table["uri"], value_set=earlier["uri"])
    clash = pc.and_(pc.and_(named_alike, new_place), pc.invert(pc.match_substring(table["uri"], "://")))
    renamed = pc.if_else(clash, pc.binary_join_element_wise(table["dataset"], table["uri"], "/"), table["uri"])
    taken = pa.chunked_array([*earlier["uri"].chunks, *table["uri"].chunks])
    still = pc.and_(clash, pc.is_in(renamed, value_set=taken))
    if pc.any(still).as_py():
        name = table["uri"].filter(still)[0].as_py()
        raise UserError(
            f"{name} names different files in several sources of one dataset",
            field=f"{field}.dataset",
            remedy="give each source a `dataset` of its own",
        )
    index = INPUTS.get_field_index("uri")
    return table.set_column(index, INPUTS.field(index), renamed)
