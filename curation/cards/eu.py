"""The public summary of training content for general-purpose AI models: Article 53(1)(d) of Regulation (EU) 2024/1689.

Sections and numbers are those of the Commission's template (C(2025) 5235 of 24 July 2025, adopted as C(2025) 8311 of
5 December 2025).
"""

from __future__ import annotations

from typing import Any

from curation.cards import practice
from curation.cards.changes import changes
from curation.cards.disclosed import (
    Disclosed,
    amounts,
    clean,
    creators,
    drop_funnel,
    limits,
    made_from,
    period,
    protocols,
    removed,
    rights_said,
    signals_seen,
    verdicts,
)
from curation.cards.document import Answer, Document, Section, Table, absent, says, size, stated, yes_no
from curation.cards.domains import Listed, largest
from curation.cards.eu_sources import sources

_IMAGES = ((10**6, "Less than 1 million images"), (10**9, "1 million to 1 billion images"))
_TOKENS = 10**9


def summary(of: Disclosed) -> Document:
    """The summary with every section of the template."""
    listed = largest(of.domains(), sme=of.sme)
    sections = (_head(of), *_general(of), *sources(of, listed), *_processing(of), *_annexes(of))
    return Document(
        "eu-summary",
        "Public summary of training content for general-purpose AI models",
        "Under Article 53(1)(d) of Regulation (EU) 2024/1689, in the sections of the Commission's template.",
        of.basis(),
        sections,
        _facts(of, listed),
    )


def _head(of: Disclosed) -> Section:
    said = of.provider.summary
    previous = f"The manifest {of.difference.older.id}; see the annex." if of.difference else None
    return Section(
        "",
        "This summary",
        (
            says("Version of the summary", said.version, "provider")
            if said.version
            else says("Version of the summary", f"manifest {of.manifest.id[:12]}"),
            stated("Last update", f"{said.date:%d/%m/%y}" if said.date else None, "the date", "summary.date"),
            says("Previous version", said.previous or previous or "", "provider" if said.previous else "manifest")
            if said.previous or previous
            else absent("Previous version", "a link to it, if there is one", "summary.previous"),
        ),
    )


def _general(of: Disclosed) -> tuple[Section, ...]:
    party, said = of.provider.provider, of.provider.model
    who = " · ".join(part for part in (party.name, party.contact) if part)
    names: Answer = stated("Versioned model name(s)", ", ".join(said.names), "the model's names", "model.names")
    if not said.names and of.model is not None:
        names = says("Versioned model name(s)", clean(of.model.name), "model")
    day = said.placed_on_market
    return (
        Section("1", "General information"),
        Section(
            "1.1",
            "Provider identification",
            (
                stated("Provider name and contact details", who, "the provider's name and contact", "provider.name"),
                stated(
                    "Authorised representative name and contact details", party.representative,
                    "the representative, for a provider established outside the Union", "provider.representative",
                ),
            ),
        ),
        Section(
            "1.2",
            "Model identification",
            (
                names,
                made_from(
                    of, "Model dependencies", "whether the model results from another general-purpose AI model"
                ),
                stated(
                    "Date of placement of the model on the Union market", day.isoformat() if day else None, "the date",
                    "model.placed_on_market",
                ),
            ),
        ),
        _characteristics(of),
    )  # fmt: skip


def _characteristics(of: Disclosed) -> Section:
    facts, said, kept = of.facts, of.provider.content, of.facts.kept
    images = next((text for limit, text in _IMAGES if kept.rows < limit), "More than 1 billion images")
    captioned = sum(n for name, n in facts.captioners.items() if name != "no caption")
    # A token is at least one character, so this many characters are at most as many tokens.
    tokens = "Less than 1 billion tokens" if facts.characters < _TOKENS else "not in the data: the number of tokens"
    rows = (
        ("image", images, f"{kept.rows:,} pictures, {size(kept.bytes)} as received"),
        ("text", tokens, f"captions of {captioned:,} pictures, {facts.characters:,} characters"),
    )
    return Section(
        "1.3",
        "Modalities, overall training data size and other characteristics",
        (
            Table("Training data after pre-processing", ("modality", "size", "in figures"), rows),
            stated("Types of content", said.types, "photography, artworks, or what else is shown", "content.types"),
            amounts("File formats", "format", facts.formats),
            _latest(of),
            yes_no("Is the model continuously trained on new data?", of.provider.model.continuous, "model.continuous"),
            says("Linguistic characteristics", said.languages, "provider")
            if said.languages
            else says("Linguistic characteristics", _languages(of)),
            stated(
                "Other relevant characteristics", said.other, "national, regional or demographic specificities",
                "content.other",
            ),
            says("Additional comments", [*([said.comments] if said.comments else []), *limits(of)]),
        ),
    )  # fmt: skip


def _latest(of: Disclosed) -> Answer:
    question, place = "Latest date of data acquisition", of.collected()
    if place.last is not None:
        return says(question, f"{place.last:%m/%Y}, of what was fetched from the web.")
    return period(of, question) if place.amount.rows else absent(question, "when files came", "sources.NAME.period")


def _languages(of: Disclosed) -> str:
    known = {name: n for name, n in of.facts.languages.items() if n}
    if not known:
        return "No kept picture has a caption."
    listed = sorted(known.items(), key=lambda item: (-item[1], item[0]))
    return "Languages of the captions, as recognised: " + ", ".join(f"{clean(name)} {n:,}" for name, n in listed) + "."


def _processing(of: Disclosed) -> tuple[Section, ...]:
    said, info = of.provider.statements, of.manifest.info
    safety = practice.safety(info)
    return (
        Section("3", "Data processing aspects"),
        Section(
            "3.1", "Respect of reservation of rights from text and data mining exception or limitation",
            (
                yes_no(
                    "Are you a signatory to the Code of Practice for general-purpose AI models?",
                    of.provider.provider.code_of_practice, "provider.code_of_practice",
                ),
                protocols(of),
                says("Measures before and during data collection", rights_said(of)),
                stated("Further measures", said.rights, "measures beside those of the job", "statements.rights"),
                removed(of, "Inputs removed for their rights", practice.STAGES, practice.REASONS),
                signals_seen(of),
                verdicts(of),
            ),
        ),
        Section(
            "3.2", "Removal of illegal content",
            (
                stated(
                    "Measures taken", said.illegal_content, "measures against illegal content beside those below",
                    "statements.illegal_content",
                ),
                says("Measures of the job", safety)
                if safety
                else says("Measures of the job", "The job measures no safety concept and runs no classifier."),
                removed(of, "Inputs removed as unsafe", ("safety",)),
            ),
        ),
        Section(
            "3.3", "Other information",
            (
                drop_funnel(of),
                *([says("Steps", steps)] if (steps := practice.cleaning(info)) else []),
                *([says("Further information", said.processing, "provider")] if said.processing else []),
            ),
        ),
    )  # fmt: skip


def _annexes(of: Disclosed) -> tuple[Section, ...]:
    items = (amounts("Licences as stated", "licence", of.facts.licences), creators(of))
    return Section("", "Annex: licences and creators", items), *changes(of)


def _facts(of: Disclosed, listed: Listed) -> dict[str, Any]:
    """The figures for machines, in full where the document sums a tail."""
    facts = of.facts
    return {
        "schema": "cleanplate/eu-summary/1",
        "manifest_id": of.manifest.id,
        "inputs": facts.rows,
        "kept": {"rows": facts.kept.rows, "bytes": facts.kept.bytes},
        "sme": of.sme,
        "domains": {
            "all": len(listed.rows) + listed.others,
            "named": [{"domain": name, "rows": a.rows, "bytes": a.bytes} for name, a in listed.rows],
            "others": {"domains": listed.others, "rows": listed.rest.rows, "bytes": listed.rest.bytes},
        },
        "datasets": {name: {"rows": p.amount.rows, "bytes": p.amount.bytes} for name, p in facts.datasets().items()},
        "licences": {name: {"rows": a.rows, "bytes": a.bytes} for name, a in sorted(facts.licences.items())},
        "verdicts": {name: n for name, n in sorted(facts.verdicts.items()) if n},
        "ledger": of.manifest.info.ledger
        and of.manifest.info.ledger.model_dump(mode="json", include={"version", "entries"}),
    }
