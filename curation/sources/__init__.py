"""Where inputs are listed: folders, tables, Parquet files and tars of pictures, lists on the web, and unions of these.

A source turns into one Arrow table with a row for every input, in a stated order, whatever the inputs later turn out
to be. It reads names and metadata only; bytes are fetched by `fetch`.
"""

from curation.sources.files import FolderSource
from curation.sources.iiif import IIIFSource
from curation.sources.inputs import INPUTS, Source
from curation.sources.parquet import ParquetSource
from curation.sources.tables import TableSource, read_table
from curation.sources.union import SourceConfig, UnionSource
from curation.sources.urls import UrlListSource
from curation.sources.webdataset import WebDatasetSource

__all__ = [
    "INPUTS",
    "FolderSource",
    "IIIFSource",
    "ParquetSource",
    "Source",
    "SourceConfig",
    "TableSource",
    "UnionSource",
    "UrlListSource",
    "WebDatasetSource",
    "read_table",
]
