"""A datasheet: the sections of Gebru et al. 2021, "Datasheets for Datasets", answered from the manifest."""

from __future__ import annotations

from curation.cards import practice
from curation.cards.changes import changes
from curation.cards.disclosed import (
    Disclosed,
    amounts,
    clean,
    counts,
    creators,
    drop_funnel,
    limits,
    period,
    protocols,
    removed,
    rights_said,
    signals_seen,
    verdicts,
)
from curation.cards.document import Answer, Document, Section, Table, absent, says, size, stated


def sheet(of: Disclosed) -> Document:
    """The seven sections."""
    return Document(
        "datasheet",
        f"Datasheet: {clean(of.provider.dataset.name or of.manifest.info.name)}",
        "After Gebru et al., Datasheets for Datasets (2021).",
        of.basis(),
        (
            Section("1", "Motivation", _motivation(of)),
            Section("2", "Composition", _composition(of)),
            Section("3", "Collection process", _collection(of)),
            Section("4", "Preprocessing, cleaning and labelling", _processing(of)),
            Section("5", "Uses", _uses(of)),
            Section("6", "Distribution", _distribution(of)),
            Section("7", "Maintenance", _maintenance(of)),
            *changes(of),
        ),
    )


def _motivation(of: Disclosed) -> tuple[Answer | Table, ...]:
    said = of.provider
    return (
        stated("For what purpose was the dataset created?", said.model.purpose, "the purpose", "model.purpose"),
        stated("Who created it, on behalf of whom?", said.provider.name, "who", "provider.name"),
    )


def _composition(of: Disclosed) -> tuple[Answer | Table, ...]:
    facts, said = of.facts, of.provider
    datasets = {name: place.amount for name, place in facts.datasets().items()}
    instances = (
        f"{facts.kept.rows:,} pictures with what is known of them, {size(facts.kept.bytes)} as received. Beside them "
        f"stand {facts.rows - facts.kept.rows:,} rows without one: inputs that were not kept, each with its reason."
    )
    return (
        says("What do the instances represent, and how many are there?", instances),
        says(
            "Is it a sample of a larger set?",
            f"It is what was kept of {facts.rows:,} inputs, by the job's rules; section 4 counts what was left out.",
        ),
        says(
            "Is there a label, are there splits?",
            "A picture's caption is its only label. There are no splits. A copy names the picture it is a copy of.",
        ),
        amounts("Datasets it was made from", "dataset", datasets),
        amounts("Domains", "domain", of.domains()),
        amounts("Licences as stated", "licence", facts.licences),
        amounts("File formats", "format", facts.formats),
        creators(of),
        counts("Languages of captions", "language", facts.languages),
        says("Is anything missing, are there errors or noise?", limits(of)),
        stated(
            "Does it contain personal or sensitive data?", said.statements.personal_information,
            "whether people can be recognised; creators' names and captions may be personal data",
            "statements.personal_information",
        ),
        stated("Which biases are known?", said.statements.biases, "no bias is measured here", "statements.biases"),
    )  # fmt: skip


def _collection(of: Disclosed) -> tuple[Answer | Table, ...]:
    place, info, said = of.collected(), of.manifest.info, of.provider.statements
    files = of.facts.kept.rows - place.amount.rows
    web = f"{place.amount.rows:,} kept pictures were fetched from the web, {files:,} came from files."
    agent = practice.agent(info)
    how = [web, *([f"The crawler calls itself {agent}."] if agent and place.amount.rows else [])]
    how += practice.behaviour(info) if place.amount.rows else []
    return (
        says("How were the data acquired?", how),
        period(of, "Over what time frame?"),
        says("Did rights holders consent, could they refuse?", rights_said(of)),
        protocols(of),
        removed(of, "Inputs removed for their rights", practice.STAGES, practice.REASONS),
        signals_seen(of),
        verdicts(of),
        stated("Was there an ethical review?", said.ethics, "whether there was one", "statements.ethics"),
        *([says("Further measures", said.rights, "provider")] if said.rights else []),
    )


def _processing(of: Disclosed) -> tuple[Answer | Table, ...]:
    steps = practice.cleaning(of.manifest.info)
    return (
        says("What was done to the data?", steps)
        if steps
        else absent("What was done to the data?", "the job says nothing of it", "statements.processing"),
        drop_funnel(of),
        counts("Captions by who wrote them", "captioner", of.facts.captioners),
        says(
            "Are the raw data kept?",
            "The manifest keeps the training-size picture of kept rows and, of every input, its address and "
            "the sha256 of its bytes, where they came.",
            "software",
        ),
    )


def _uses(of: Disclosed) -> tuple[Answer | Table, ...]:
    model, said = of.model, of.provider.model
    used = (
        says("Has it been used already?", f"To train {clean(model.name)}.", "model")
        if model
        else absent("Has it been used already?", "which models were trained on it", "--model")
    )
    return (
        used,
        stated("What should it not be used for?", said.out_of_scope, "such uses", "model.out_of_scope"),
        says(
            "What must a user heed?",
            "Licences differ from picture to picture and stand in the rows, with the evidence for each verdict. "
            "Takedowns after its making are in the ledger, not in the manifest.",
            "software",
        ),
    )


def _distribution(of: Disclosed) -> tuple[Answer | Table, ...]:
    said, info = of.provider.dataset, of.manifest.info
    return (
        stated("Where is it distributed?", said.url, "where", "dataset.url"),
        stated("Under which licence?", said.licence, "a licence of the compilation", "dataset.licence"),
        says(
            "In which form?",
            f"{len(info.files):,} Parquet files, {info.rows:,} rows, each file with its sha256 in manifest.json; "
            "croissant.json describes every column.",
        ),
    )


def _maintenance(of: Disclosed) -> tuple[Answer | Table, ...]:
    info, said = of.manifest.info, of.provider
    parent = f"Its parent is the manifest {info.parent_id}." if info.parent_id else "It has no parent."
    if info.base_id:
        gone = sum(info.changes.values())
        parent += f" It is derived from the manifest {info.base_id} without {gone:,} pictures that it kept."
    return (
        stated("Who maintains it, how are errors reported?", said.statements.maintenance or said.provider.contact,
               "a contact", "statements.maintenance"),
        says("Is it updated?", f"A manifest never changes: what changes is published as a new one. {parent}"),
        says("Takedowns", practice.ledger(info)),
    )  # fmt: skip
