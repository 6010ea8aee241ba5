"""What a file's own metadata says about its use: the PLUS data-mining property that IPTC recommends (2023.1).

A statement in the file goes where the file goes, also to other hosts. Its vocabulary is
http://ns.useplus.org/LDF/ldf-XMPSpecification#DataMining; a licence that the file names is evidence of who claims what,
and `licences` weighs it beside what the source states.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from curation.manifest import Verdict
from curation.rights.verdict import IN_FILE, Observation

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
    "DMI-PROHIBITED-SEELINKEDRIGHTSEXPR": Verdict.DENY,
}
_TERM = re.compile(r"(?:https?://ns\.useplus\.org/ldf/vocab/)?(DMI-[A-Z-]+)/?", re.IGNORECASE | re.ASCII)
_MAX_VALUE = 500
# Metadata in which a reservation may have stood that could not be read.
_VITAL = frozenset({"xmp", "container", "sidecar"})


def observe(embedded: Mapping[str, str]) -> list[Observation]:
    """What the fields of `metadata.Embedded` amount to, an observation for every statement.

    A value that is not in the vocabulary, and metadata that could not be read whole, are errors and no permission.
    """
    terms = embedded.get("other_constraints", "")
    observed = []
    for value in _values(embedded.get("data_mining")):
        said = f"{value} ({terms})" if terms and value.upper().endswith("SEECONSTRAINT") else value
        observed.append(Observation("plus_data_mining", said[:_MAX_VALUE], IN_FILE, mining(value)))
    if terms and not observed:
        observed.append(Observation("plus_other_constraints", terms[:_MAX_VALUE], IN_FILE, Verdict.UNKNOWN))
    if licence := embedded.get("licence"):
        observed.append(Observation("embedded_licence", licence, IN_FILE, Verdict.UNKNOWN))
    if _VITAL & set(embedded.get("damaged", "").split(",")):
        observed.append(Observation("embedded_metadata", f"damaged: {embedded['damaged']}", IN_FILE, Verdict.ERROR))
    return observed


def mining(value: str) -> Verdict:
    """The verdict of one plus:DataMining value, as a URI of the vocabulary or its last part, in any case.

    Whatever speaks of a prohibition is one: terms that are added to the vocabulary, those of other places, and the
    words that editors show for them ("Prohibited for AI/ML training"). What permits must be the term and nothing else.
    """
    if match := _TERM.fullmatch(value.strip()):
        known = _VOCABULARY.get(match[1].upper())
        if known is not None:
            return known
    said = value.upper()
    return Verdict.DENY if "DMI-PROHIBITED" in said or said.lstrip().startswith("PROHIBITED") else Verdict.ERROR


def _values(lines: str | None) -> list[str]:
    return [line for line in (lines or "").split("\n") if line.strip()]
