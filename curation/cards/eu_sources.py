"""Section 2 of the public summary: where the training content came from, dataset by dataset and domain by domain."""

from __future__ import annotations

from dataclasses import replace

from curation.cards import practice
from curation.cards.disclosed import SECTIONS, UNCLASSED, Disclosed, clean, counts, period
from curation.cards.document import Answer, Section, Size, Table, absent, says, size, stated, yes_no
from curation.cards.domains import Listed
from curation.cards.facts import Place
from curation.report import words

_TITLES = {
    "2.1": "publicly available datasets",
    "2.2.1": "licensed by rightsholders or their representatives",
    "2.2.2": "private datasets of other third parties",
    "2.3": "crawled and scraped from online sources",
    "2.4": "user data",
    "2.5": "synthetic data",
    "2.6": "other sources",
    UNCLASSED: "not in the data: how the provider came by them",
}


def sources(of: Disclosed, listed: Listed) -> tuple[Section, ...]:
    by, said = of.by_section(), of.provider.statements
    rows = tuple(
        (number, title, sum(p.amount.rows for p in found.values()), Size(sum(p.amount.bytes for p in found.values())))
        for number, title in _TITLES.items()
        if (found := by.get(number, {})) or number != UNCLASSED
    )
    total = ("total", "", of.facts.kept.rows, Size(of.facts.kept.bytes))
    overview = Table("Kept pictures by section", ("section", "source", "kept pictures", "size"), rows, total)
    return (
        Section("2", "List of data sources", (overview, *_unclassed(of, by))),
        Section("2.1", "Publicly available datasets", _class(of, by, "2.1", "publicly available datasets")),
        Section("2.2", "Private non-publicly available datasets obtained from third parties"),
        Section(
            "2.2.1", "Datasets commercially licensed by rightsholders or their representatives",
            _class(of, by, "2.2.1", "data under licensing agreements with rightsholders or their representatives"),
        ),
        Section(
            "2.2.2", "Private datasets obtained from other third parties",
            _class(of, by, "2.2.2", "private datasets of other third parties"),
        ),
        Section("2.3", "Data crawled and scraped from online sources", _crawled(of, by, listed)),
        Section(
            "2.4", "User data",
            (
                yes_no(
                    "Was data from user interactions with the AI model used to train the model?",
                    said.user_interactions, "statements.user_interactions",
                ),
                yes_no(
                    "Was data collected from user interactions with the provider's other services or products used?",
                    said.other_services, "statements.other_services",
                ),
                *([says("Services or products", said.services, "provider")] if said.services else []),
                *_tables(of, by, "2.4"),
            ),
        ),
        Section(
            "2.5", "Synthetic data",
            (
                *_class(of, by, "2.5", "synthetic data created by the provider or on their behalf"),
                *([says("Use of synthetic data", said.synthetic_data, "provider")] if said.synthetic_data else []),
                _captions(of),
            ),
        ),
        Section(
            "2.6", "Other sources of data",
            (
                *_class(of, by, "2.6", "sources other than those of 2.1 to 2.5"),
                *([says("Description", said.other_sources, "provider")] if said.other_sources else []),
            ),
        ),
    )  # fmt: skip


def _captions(of: Disclosed) -> Table:
    note = "whether captions that a model wrote to describe pictures are synthetic data is for the provider to judge"
    return replace(counts("Captions by who wrote them", "captioner", of.facts.captioners), note=note)


def _unclassed(of: Disclosed, by: dict[str, dict[str, Place]]) -> list[Answer | Table]:
    found = by.get(UNCLASSED, {})
    if not found:
        return []
    names = ", ".join(clean(name, 40) for name in found)
    what = f"how the provider acquired the datasets that were read from files ({names})"
    return [absent("Data sets that are not classified", what, "sources.NAME.kind"), *_tables(of, by, UNCLASSED)]


def _class(of: Disclosed, by: dict[str, dict[str, Place]], number: str, what: str) -> tuple[Answer | Table, ...]:
    """Whether there is content of a section, and the datasets it is."""
    question = f"Were {what} used to train the model?"
    if by.get(number):
        return (says(question, "Yes.", "provider"), *_tables(of, by, number))
    if UNCLASSED in by:
        kind = next(kind for kind, section in SECTIONS.items() if section == number)
        return (absent(question, "not all datasets are classified", f"sources.NAME.kind: {kind}"),)
    return (
        says(question, "No kept picture is classified as such.", "provider" if of.provider.sources else "manifest"),
    )


def _tables(of: Disclosed, by: dict[str, dict[str, Place]], number: str) -> list[Answer | Table]:
    found = by.get(number, {})
    if not found:
        return []
    rows, whole = [], max(sum(p.amount.rows for p in found.values()), 1)
    for name, place in sorted(found.items(), key=lambda item: (-item[1].amount.rows, item[0])):
        said = of.provider.sources.get(name)
        when = said.period if said and said.period else place.span if number == "2.3" else _file_span(place)
        shown = clean(said.name if said and said.name else name)
        a = place.amount
        rows.append(
            (
                shown,
                a.rows,
                Size(a.bytes),
                words.share(a.rows, whole),
                when,
                clean(said.url) if said and said.url else None,
            )
        )
    total = ("total", sum(p.amount.rows for p in found.values()), Size(sum(p.amount.bytes for p in found.values())))
    columns = ("dataset", "kept pictures", "size", "share", "period", "link")
    table = Table("Datasets, image modality", columns, tuple(rows), (*total, None, None, None))
    return [table, *_described(of, list(found), number)]


def _file_span(place: Place) -> str | None:
    return f"files of {place.span}" if place.first else None


def _described(of: Disclosed, names: list[str], number: str) -> list[Answer]:
    found = []
    for name in names:
        said = of.provider.sources.get(name)
        if said is None:
            continue
        parts = {
            "": said.description, "Owner or publisher: ": said.owner, "Agreement: ": said.agreement,
            "Made by: ": said.generator,
        }  # fmt: skip
        text = [f"{label}{value}" for label, value in parts.items() if value]
        label = f"About {clean(said.name or name)}"
        if text:
            found.append(says(label, text, "provider"))
        elif number == "2.2.1":
            found.append(absent(label, "the licensing agreement", f"sources.{name}.agreement"))
        elif number == "2.5":
            found.append(absent(label, "the models that made it", f"sources.{name}.generator"))
        elif not said.url:
            found.append(absent(label, "a link or a description", f"sources.{name}.url"))
    return found


def _crawled(of: Disclosed, by: dict[str, dict[str, Place]], listed: Listed) -> tuple[Answer | Table, ...]:
    question = "Were crawlers used by the provider or on their behalf?"
    domains, said = of.domains(), of.provider.statements
    if not domains:
        first = (
            says(question, "Yes.", "provider")
            if by.get("2.3")
            else says(question, "No kept picture was fetched from the web.")
        )
        return (first, *_tables(of, by, "2.3"))
    info = of.manifest.info
    name, behaviour = practice.agent(info), practice.behaviour(info)
    rows = sum(a.rows for a in domains.values())
    what = (
        f"Single pictures from {len(domains):,} domains: {rows:,} kept pictures, "
        f"{size(sum(a.bytes for a in domains.values()))} as received. File formats, licences and creators are in the "
        "tables of section 1.3 and of the annex."
    )
    return (
        says(question, "Yes."),
        says("Crawler name(s)", name)
        if name
        else absent("Crawler name(s)", "the job names none", "statements.crawler"),
        says("Purposes of the crawler(s)", "To collect pictures, with what is said of them, for training.", "software"),
        says("Behaviour of the crawler(s)", behaviour, "software")
        if behaviour
        else stated("Behaviour of the crawler(s)", said.crawler, "the job says nothing of it", "statements.crawler"),
        *([says("More on behaviour", said.crawler, "provider")] if said.crawler and behaviour else []),
        period(of, "Period of data collection"),
        says("Type of content and online sources", what),
        *_tables(of, by, "2.3"),
        _domains(listed),
    )


def _domains(listed: Listed) -> Table:
    rows = [(clean(name), a.rows, Size(a.bytes)) for name, a in listed.rows]
    named = sum(a.rows for _, a in listed.rows)
    if listed.others:
        rows.append((f"{listed.others:,} other domains", listed.rest.rows, Size(listed.rest.bytes)))
    total = ("total", named + listed.rest.rows, Size(sum(a.bytes for _, a in listed.rows) + listed.rest.bytes))
    tied = len(listed.rows) - listed.quota
    note = f"{listed.rule}: {listed.quota:,} of {len(listed.rows) + listed.others:,}"
    note += f", and {tied:,} as large as the smallest of them" if tied else ""
    return Table("Most relevant domain names", ("domain", "kept pictures", "size"), tuple(rows), total, note)
