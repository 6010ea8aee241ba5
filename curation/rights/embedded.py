"""What a file's own metadata says about its use: the PLUS data-mining property that IPTC recommends (2023.1).

A statement in the file goes where the file goes, also to other hosts. Its vocabulary is
http://ns.useplus.org/LDF/ldf-XMPSpecification#DataMining; a licence that the file names is evidence of who claims what,
and `licences` weighs it beside what the source states.
"""

from __future__ import annotations

from collections.abc import Mapping

from curation.manifest import Verdict
from curation.rights.verdict import Observation

_WHERE = "file"
_VOCABULARY = {
    "DMI-ALLOWED": Verdict.ALLOW,
    "DMI-UNSPECIFIED": Verdict.UNKNOWN,
    "DMI-PROHIBITED": Verdict.DENY,
    "DMI-PROHIBITED-AIMLTRAINING": Verdict.DENY,
    "DMI-PROHIBITED-GENAIMLTRAINING": Verdict.DENY,
    "DMI-PROHIBITED-EXCEPTSEARCHENGINEINDEXING": Verdict.DENY,
    # The reservation stands in words that a machine cannot read: until somebody has, it is a prohibition.
    "DMI-PROHIBITED-SEECONSTRAINT": Verdict.DENY,
    "DMI-PROHIBITED-SEEEMBEDDEDRIGHTSEXPR": Verdict.DENY,
}
# Metadata in which a reservation may have stood that could not be read.
_VITAL = frozenset({"xmp", "container", "sidecar"})


def observe(embedded: Mapping[str, str]) -> list[Observation]:
    """What the fields of `metadata.Embedded` amount to, an observation for every statement.

    A value that is not in the vocabulary, and metadata that could not be read whole, are errors and no permission.
    """
    observed = [Observation("plus_data_mining", v, _WHERE, mining(v)) for v in _values(embedded.get("data_mining"))]
    if licence := embedded.get("licence"):
        observed.append(Observation("embedded_licence", licence, _WHERE, Verdict.UNKNOWN))
    if _VITAL & set(embedded.get("damaged", "").split(",")):
        observed.append(Observation("embedded_metadata", f"damaged: {embedded['damaged']}", _WHERE, Verdict.ERROR))
    return observed


def mining(value: str) -> Verdict:
    """The verdict of one plus:DataMining value, as a URI of the vocabulary or its last part.

    Any value that begins as a prohibition is one, so that one that is added to the vocabulary is heeded.
    """
    name = value.strip().rstrip("/").rsplit("/", 1)[-1].rsplit("#", 1)[-1].upper()
    known = _VOCABULARY.get(name)
    if known is None:
        return Verdict.DENY if name.startswith("DMI-PROHIBITED") else Verdict.ERROR
    return known


def _values(lines: str | None) -> list[str]:
    return [line for line in (lines or "").split("\n") if line.strip()]
