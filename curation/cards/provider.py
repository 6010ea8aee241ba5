"""What only the provider can know: the YAML file that `cleanplate disclose --provider` reads.

Every field may be left out; what is left out is called absent in the documents.

    provider:
      name: Studio Klar GmbH
      contact: rights@klar.example
      sme: true
    model:
      names: [klar-1.0]
      placed_on_market: 2026-03-01
      purpose: To draw illustrations from a description.
    sources:                  # by `dataset`, as the rows of the manifest name it
      museums: {kind: public-dataset, url: "https://museums.example/open-access"}
      stamps: {kind: licensed, agreement: "Agreement of 3 May 2025 with the Stamp Society."}
    statements:
      illegal_content: Hashes are compared with the list of a hotline.
      user_interactions: false
"""

from __future__ import annotations

import datetime
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curation import storage
from curation.errors import UserError, unknown

UNNAMED = "unnamed"
"""The name that rows of a source without `dataset` go by in `sources`."""

Kind = Literal["public-dataset", "licensed", "third-party", "crawl", "user", "synthetic", "other"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Party(_Strict):
    """Who places the model on the market."""

    name: str | None = Field(None, description="legal name")
    contact: str | None = Field(None, description="address, mail address or web page")
    representative: str | None = Field(None, description="authorised representative in the Union, name and contact")
    sme: bool = Field(False, description="a small or medium-sized enterprise: fewer domains have to be named")
    code_of_practice: bool | None = Field(None, description="signatory of the Code of Practice for GPAI models")


class ModelStatement(_Strict):
    """The model the summary is about."""

    names: tuple[str, ...] = Field((), description="versioned names; the bundle's, where --model is given")
    placed_on_market: datetime.date | None = Field(None, description="date of placement on the Union market")
    dependencies: str | None = Field(None, description="models it was made from, with links to their summaries")
    continuous: bool | None = Field(None, description="whether it goes on being trained on new data")
    purpose: str | None = Field(None, description="what the model is for, and how the data further that")
    out_of_scope: str | None = Field(None, description="uses it is not meant for")


class SummaryStatement(_Strict):
    """The document itself."""

    version: str | None = None
    date: datetime.date | None = Field(None, description="of the last update")
    previous: str | None = Field(None, description="link to the previous version")


class Content(_Strict):
    """The training content as a whole."""

    types: str | None = Field(None, description="types of content: photography, visual artworks, ...")
    languages: str | None = Field(None, description="linguistic characteristics")
    other: str | None = Field(None, description="national, regional or demographic specificities")
    comments: str | None = None


class Acquisition(_Strict):
    """How the rows of one `dataset` came to the provider."""

    kind: Kind = Field(description="which section of the summary they belong in")
    name: str | None = Field(None, description="its public name")
    url: str | None = None
    description: str | None = None
    owner: str | None = Field(None, description="who owns or publishes it")
    period: str | None = Field(None, description="when it was collected, where its files do not say")
    agreement: str | None = Field(None, description="the licence agreement")
    purchased: bool | None = Field(None, description="whether it was paid for")
    generator: str | None = Field(None, description="of synthetic data: the model that made it")


class Statements(_Strict):
    """Free text for what no row says."""

    crawler: str | None = Field(None, description="more on how crawlers behave")
    rights: str | None = Field(None, description="measures to respect reservations of rights")
    illegal_content: str | None = Field(None, description="measures to avoid or remove illegal content")
    processing: str | None = Field(None, description="other information on data processing")
    user_interactions: bool | None = Field(None, description="whether the model's users' inputs were trained on")
    other_services: bool | None = Field(None, description="whether data of the provider's other services were")
    services: str | None = Field(None, description="those services or products")
    other_sources: str | None = Field(None, description="data sources of no other kind")
    copyright: str | None = Field(None, description="whether data are protected by copyright, trademark or patent")
    personal_information: str | None = Field(None, description="whether there is personal information (CCPA)")
    consumer_information: str | None = Field(None, description="whether there is aggregate consumer information (CCPA)")
    first_used: str | None = Field(None, description="when the datasets were first used in development")
    synthetic_data: str | None = Field(None, description="whether synthetic data generation is used, and what for")
    biases: str | None = None
    ethics: str | None = Field(None, description="whether there was an ethical review")
    maintenance: str | None = Field(None, description="who maintains the data set, how errors are reported")


class Dataset(_Strict):
    """The data set as it is published, for its metadata; the defaults are the manifest's."""

    name: str | None = None
    description: str | None = None
    url: str | None = Field(None, description="its page")
    licence: str | None = Field(None, description="of the compilation, an SPDX identifier or a URL")
    citation: str | None = None
    version: str | None = None
    published: datetime.date | None = None


class Provider(_Strict):
    """The whole file."""

    provider: Party = Party()
    model: ModelStatement = ModelStatement()
    summary: SummaryStatement = SummaryStatement()
    content: Content = Content()
    sources: dict[str, Acquisition] = Field({}, description="by `dataset`, as the manifest's rows name it")
    statements: Statements = Statements()
    dataset: Dataset = Dataset()


_SECTIONS: dict[str, type[BaseModel]] = {
    "provider": Party, "model": ModelStatement, "summary": SummaryStatement, "content": Content,
    "sources": Acquisition, "statements": Statements, "dataset": Dataset,
}  # fmt: skip


def load(path: str) -> Provider:
    """Reads the file. Raises UserError naming the field that is wrong and what to do about it."""
    try:
        raw = yaml.safe_load(storage.read_bytes(path).decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"no file at {path}", field="--provider", remedy="give a YAML file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no YAML file: {error}", field="--provider", remedy="mend the file") from None
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise UserError(
            f"{path} holds no fields", field="--provider", remedy=f"its fields are {', '.join(Provider.model_fields)}"
        )
    try:
        return Provider.model_validate(raw)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        first = problems[0]
        others = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        where = ".".join(map(str, first["loc"]))
        raise UserError(_message(first) + others, field=f"--provider {where}".rstrip(), remedy=_remedy(first)) from None


def _message(problem: Any) -> str:
    kind = problem["type"]
    if kind == "extra_forbidden":
        return "there is no such field"
    return "this field is required" if kind == "missing" else str(problem["msg"])


def _remedy(problem: Any) -> str:
    *parents, last = map(str, problem["loc"])
    model = _SECTIONS.get(parents[0], Provider) if parents else Provider
    if problem["type"] == "extra_forbidden":
        return unknown(last, model.model_fields)
    return "add it" if problem["type"] == "missing" else "correct the value"
