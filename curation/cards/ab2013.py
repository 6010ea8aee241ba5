"""The statement of California's AB 2013: Civil Code section 3111(a), its twelve items in their order."""

from __future__ import annotations

from curation.cards import practice
from curation.cards.disclosed import Disclosed, amounts, clean, counts, drop_funnel, period
from curation.cards.document import Answer, Document, Section, Table, absent, says, size, stated
from curation.report import words

_TITLES = (
    "Sources or owners of the datasets",
    "How the datasets further the intended purpose of the system",
    "Number of data points",
    "Types of data points",
    "Data protected by copyright, trademark or patent, or entirely in the public domain",
    "Whether the datasets were purchased or licensed",
    "Personal information (Civil Code 1798.140(v))",
    "Aggregate consumer information (Civil Code 1798.140(b))",
    "Cleaning, processing and other modification",
    "Time period of collection",
    "Dates the datasets were first used",
    "Synthetic data generation",
)
_PUBLIC = ("CC0", "PDM", "Public Domain")


def statement(of: Disclosed) -> Document:
    """The twelve items, each answered from the data or called absent."""
    said = of.provider.statements
    items: tuple[tuple[Answer | Table, ...], ...] = (
        _sources(of),
        (stated("Purpose", of.provider.model.purpose, "what the system is for", "model.purpose"),),
        (says("Data points", f"{of.facts.kept.rows:,} pictures, {size(of.facts.kept.bytes)} as received."),),
        _types(of),
        _protected(of),
        _bought(of),
        (
            stated("Personal information", said.personal_information,
                   "whether people can be recognised; creators' names and captions may be personal information",
                   "statements.personal_information"),
        ),
        (
            stated("Aggregate consumer information", said.consumer_information, "whether there is any",
                   "statements.consumer_information"),
        ),
        _cleaning(of),
        _period(of),
        (stated("First used", said.first_used, "the dates", "statements.first_used"),),
        (
            stated("Synthetic data", said.synthetic_data, "whether synthetic data generation is used",
                   "statements.synthetic_data"),
            counts("Captions by who wrote them", "captioner", of.facts.captioners),
        ),
    )  # fmt: skip
    sections = tuple(
        Section(f"({i})", title, found) for i, (title, found) in enumerate(zip(_TITLES, items, strict=True), start=1)
    )
    return Document(
        "ab2013",
        "Training data documentation",
        "Under California Civil Code section 3111(a) (AB 2013), item by item.",
        of.basis(),
        sections,
    )


def _sources(of: Disclosed) -> tuple[Answer | Table, ...]:
    datasets = {name: place.amount for name, place in of.facts.datasets().items()}
    found: list[Answer | Table] = [amounts("Datasets", "dataset", datasets)]
    if domains := of.domains():
        found.append(amounts("Domains the pictures were fetched from", "domain", domains))
    for name in datasets:
        said = of.provider.sources.get(name)
        text = [text for text in (said.owner, said.description, said.url) if text] if said else []
        label = f"Source or owner of “{clean(name, 60)}”"
        found.append(
            says(label, text, "provider") if text else absent(label, "its owner", f"sources.{clean(name, 60)}.owner")
        )
    return tuple(found)


def _types(of: Disclosed) -> tuple[Answer | Table, ...]:
    facts = of.facts
    captioned = sum(n for name, n in facts.captioners.items() if name != "no caption")
    text = [f"Still pictures, {captioned:,} of {facts.kept.rows:,} with a caption, which is the only label."]
    if facts.widths and facts.heights:
        (least, most), (low, high) = facts.widths, facts.heights
        text.append(f"From {least:,} to {most:,} pixels wide and from {low:,} to {high:,} high, as received.")
    said = of.provider.content.types
    return (
        says("Characteristics", text),
        stated("Types of content", said, "photography, artworks, or what else is shown", "content.types"),
        amounts("File formats", "format", facts.formats),
    )


def _protected(of: Disclosed) -> tuple[Answer | Table, ...]:
    found = of.facts.licences
    public = sum(a.rows for name, a in found.items() if name.startswith(_PUBLIC) or "/publicdomain/" in name)
    kept = of.facts.kept.rows
    text = [f"{public:,} of {kept:,} pictures ({words.share(public, kept)}) state a dedication to the public domain."]
    if public < kept:
        text.append("Of the others it must be taken that they include data protected by copyright.")
    text.append("Trademarks and patents are not recorded.")
    own = of.provider.statements.copyright
    return (
        *([says("Statement", own, "provider")] if own else []),
        says("From the licences as stated", text),
        amounts("Licences as stated", "licence", found),
    )


def _bought(of: Disclosed) -> tuple[Answer | Table, ...]:
    found: list[Answer] = []
    for name in of.facts.datasets():
        label, field = f"“{clean(name, 60)}”", f"sources.{clean(name, 60)}"
        said = of.provider.sources.get(name)
        if said is None or (said.purchased is None and said.kind != "licensed"):
            found.append(absent(label, "whether it was purchased or licensed", f"{field}.purchased"))
            continue
        text = "Purchased." if said.purchased else "Not purchased."
        text = text if said.purchased is not None else ""
        if said.kind == "licensed":
            text += " Licensed." if not said.agreement else f" Licensed: {said.agreement}"
        found.append(says(label, text.strip(), "provider"))
    return tuple(found)


def _cleaning(of: Disclosed) -> tuple[Answer | Table, ...]:
    steps = practice.cleaning(of.manifest.info)
    purpose = (
        "Steps, so that what is trained on may be used, can be decoded, is safe, is described and stands there once"
    )
    first: Answer | Table = (
        says(purpose, steps) if steps else absent(purpose, "the job says nothing of it", "statements.processing")
    )
    return first, drop_funnel(of)


def _period(of: Disclosed) -> tuple[Answer | Table, ...]:
    found = [period(of, "Fetched from the web")]
    for name, said in sorted(of.provider.sources.items()):
        if said.period:
            found.append(says(f"“{clean(name, 60)}”", said.period, "provider"))
    going = of.provider.model.continuous
    label = "Is collection going on?"
    found.append(
        absent(label, "whether it is", "model.continuous")
        if going is None
        else says(label, "Yes." if going else "No.", "provider")
    )
    return tuple(found)
