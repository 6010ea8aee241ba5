"""Which rights signals a job asks for, and what it does where they say nothing or cannot be had."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation.rights.registry import RegistryConfig

Signal = Literal["robots", "aipref", "content_signal", "tdmrep", "robots_tags", "ai_txt", "rsl", "c2pa", "plus"]
SIGNALS: tuple[Signal, ...] = (
    *("robots", "aipref", "content_signal", "tdmrep", "robots_tags", "ai_txt", "rsl", "c2pa", "plus"),
)


class RightsConfig(BaseModel):
    """Every signal is asked for unless the job says otherwise; what was asked for stands in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    signals: tuple[Signal, ...] = Field(SIGNALS, description="what sites, answers and files are asked for")
    pages: bool = Field(True, description="also read the page that a row's `page_url` names, where it names one")
    indexing: bool = Field(False, description="take noindex, noimageindex and none for a refusal of training, too")
    advisory: tuple[str, ...] = Field(
        ("robots_ai_agents",),
        description="signals that are recorded and decide nothing; [] heeds what is said to others",
    )
    trusted_only: bool = Field(False, description="take a C2PA permission only from a signer that `anchors` vouch for")
    anchors: str | None = Field(None, description="PEM text of the root certificates that C2PA signers are trusted by")
    cache_hours: float = Field(24, gt=0, le=24, description="how long a site's files are not asked for again")
    registry: RegistryConfig | None = Field(None, description="a do-not-train registry to ask about URLs")
    unknown: Literal["keep", "hold", "drop"] = Field(
        "keep", description="what to do where no signal speaks; `licences.unstated` decides besides"
    )
    error: Literal["hold", "drop", "keep"] = Field("hold", description="what to do where a check could not be done")

    @model_validator(mode="after")
    def _somebody_is_trusted(self) -> RightsConfig:
        if self.trusted_only and not self.anchors:
            raise ValueError("trusted_only without anchors trusts nobody: give the roots' PEM text in anchors")
        if self.anchors and "-----BEGIN CERTIFICATE-----" not in self.anchors:
            raise ValueError("anchors is no PEM text: give what stands in the file, not its path")
        return self
