"""What every document is made from, and the pieces that several of them share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from curation.cards import practice
from curation.cards.difference import Difference
from curation.cards.document import Answer, Size, Table, absent, says, stated
from curation.cards.domains import Amount
from curation.cards.facts import Facts, Place
from curation.cards.provider import Provider
from curation.errors import UserError
from curation.manifest import Manifest
from curation.report import funnel, words
from curation.report.page import visible, without_user

SHOWN = 25  # of tables whose tail is summed
# Sections of the summary by how the provider says a dataset was acquired.
SECTIONS = {
    "public-dataset": "2.1", "licensed": "2.2.1", "third-party": "2.2.2", "crawl": "2.3", "user": "2.4",
    "synthetic": "2.5", "other": "2.6",
}  # fmt: skip
# Sections whose content was taken from the web; the domains of what others delivered are not theirs to be named.
CRAWLED = ("2.1", "2.3")
UNCLASSED = "not classified"


class Model(BaseModel):
    """What a bundle says of a model, as `pipelines.disclose` reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  # with its version, where it is registered
    manifest_id: str
    training_rows: int
    training_set_digest: str
    licences: dict[str, int]
    ledger: str | None
    images_seen: int
    parameters: int
    image_size: int
    prediction: str
    text_encoder: str
    config_sha256: str
    metrics: dict[str, float]
    made_from: tuple[str, ...] = ()  # other models, each with what it was trained on


@dataclass(frozen=True)
class Disclosed:
    """A manifest with what was counted in it, what its provider says, the model and the manifest before it."""

    manifest: Manifest
    facts: Facts
    provider: Provider
    model: Model | None = None
    difference: Difference | None = None
    sme: bool = False

    def __post_init__(self) -> None:
        for name in self.provider.sources:
            if name not in self.facts.datasets():
                known = ", ".join(map(repr, self.facts.datasets())) or "none: it kept no row"
                raise UserError(
                    f"the manifest has no kept row of the dataset {name!r}",
                    field=f"--provider sources.{name}",
                    remedy=f"use the names of the manifest: {known}",
                )
        if self.model is not None and self.model.manifest_id != self.manifest.id:
            raise UserError(
                f"{self.model.name} was trained on the manifest {self.model.manifest_id[:12]}, not on "
                f"{self.manifest.id[:12]}",
                field="--model",
                remedy="give the manifest that it was trained on, or leave the model out",
            )

    def section(self, dataset: str, domain: str | None) -> str:
        """Where rows of a dataset and domain belong: as the provider says, else with the web pages we fetched."""
        stated = self.provider.sources.get(dataset)
        if stated is not None:
            return SECTIONS[stated.kind]
        return "2.3" if domain is not None else UNCLASSED

    def by_section(self) -> dict[str, dict[str, Place]]:
        """Kept rows by section of the summary and dataset."""
        found: dict[str, dict[str, Place]] = {}
        for (dataset, domain), place in sorted(self.facts.places.items(), key=lambda item: (item[0][0], str(item[0]))):
            found.setdefault(self.section(dataset, domain), {}).setdefault(dataset, Place()).add(place)
        return found

    def domains(self) -> dict[str, Amount]:
        """Kept rows that were taken from the web, by registrable domain."""
        found: dict[str, Amount] = {}
        for (dataset, domain), place in self.facts.places.items():
            if domain is not None and self.section(dataset, domain) in CRAWLED:
                found.setdefault(domain, Amount()).add(place.amount)
        return found

    def collected(self) -> Place:
        """Rows that our crawler fetched, whatever their section, and when."""
        found = Place()
        for (_, domain), place in self.facts.places.items():
            if domain is not None:
                found.add(place)
        return found

    def basis(self) -> tuple[tuple[str, str], ...]:
        info = self.manifest.info
        found = [
            ("Manifest", info.id),
            ("Data set", visible(info.name)),
            ("Made", f"{info.created_at.date().isoformat()}, by cleanplate {visible(info.code_version)}"),
            ("Training content", f"{self.facts.kept.rows:,} kept of {self.facts.rows:,} inputs"),
        ]
        if self.model is not None:
            found.append(("Model", f"{visible(self.model.name)}, trained on {self.model.training_rows:,} of them"))
        return tuple(found)


def period(of: Disclosed, question: str) -> Answer:
    """When the pictures were fetched that were fetched from the web."""
    place = of.collected()
    if not place.amount.rows:
        return says(question, "No kept picture was fetched from the web.")
    if place.first is None or place.last is None:
        return absent(question, "when the pictures were fetched", "sources.NAME.period")
    return says(question, f"{place.first:%m/%Y} to {place.last:%m/%Y} ({place.span}).")


def clean(text: str, limit: int = 120) -> str:
    """A stranger's text as it may stand in a document: no passwords, no control characters, not without end."""
    text = without_user(text)
    return visible(text if len(text) <= limit else text[: limit - 1] + "…")


def amounts(
    title: str, name: str, found: Mapping[str, Amount], *, shown: int = SHOWN, note: str | None = None
) -> Table:
    """Kept rows and bytes by name, most rows first, the tail summed; the total is that of all of them."""
    ranked = sorted(found.items(), key=lambda item: (-item[1].rows, -item[1].bytes, item[0]))
    return tail(title, name, [(name, a.rows, a.bytes) for name, a in ranked], shown=shown, note=note)


def tail(
    title: str, name: str, ranked: Iterable[tuple[str, int, int]], *, shown: int = SHOWN, note: str | None = None
) -> Table:
    """A table of the first `shown` of ranked rows and bytes by name, one line for all others, and their total."""
    every = list(ranked)
    rows: list[tuple[str, int, Size]] = [(clean(n), r, Size(b)) for n, r, b in every[:shown]]
    rest = every[shown:]
    if rest:
        rows.append((f"{len(rest):,} others", sum(r for _, r, _ in rest), Size(sum(b for _, _, b in rest))))
    total = ("total", sum(r for _, r, _ in every), Size(sum(b for _, _, b in every)))
    return Table(title, (name, "kept pictures", "size as received"), tuple(rows), total, note)


def creators(of: Disclosed) -> Table:
    """Kept rows by creator as stated. Beyond what is counted exactly, the difference is with the others."""
    tally, kept = of.facts.creators, of.facts.kept
    top = tally.top(SHOWN)
    rows: list[tuple[str, int, Size]] = [(clean(name), n, Size(size)) for name, (n, size) in top]
    rest = kept.rows - sum(n for _, n, _ in rows), kept.bytes - sum(size for _, _, size in rows)
    if rest[0] or rest[1]:
        rows.append(("all others", rest[0], Size(rest[1])))
    note = f"a count may be short by up to {tally.error:,}, which is then with the others" if tally.error else None
    total = ("total", kept.rows, Size(kept.bytes))
    return Table("Creators as stated", ("creator", "kept pictures", "size as received"), tuple(rows), total, note)


def counts(title: str, name: str, found: Mapping[str, int], *, of: str = "kept pictures") -> Table:
    """Rows by name with their total."""
    ranked = sorted(((n, name) for name, n in found.items() if n), key=lambda item: (-item[0], item[1]))
    rows = tuple((clean(name), n) for n, name in ranked)
    return Table(title, (name, of), rows, ("total", sum(n for n, _ in ranked)))


def made_from(of: Disclosed, question: str, what: str) -> Answer:
    """The models that the model was made from: those that its bundle names, and then what the provider says."""
    said = of.provider.model.dependencies
    if of.model is None or not of.model.made_from:
        return stated(question, said, what, "model.dependencies")
    named = [clean(text, 300) for text in of.model.made_from]
    return says(question, [*named, *([said] if said else [])], "model")


def drop_funnel(of: Disclosed) -> Table:
    """Which step every input got to; what leaves, and what is kept at the end, sums to the inputs."""
    rows: list[tuple[Any, ...]] = []
    for bar in funnel.bars(of.facts.outcomes.counts):
        left = bar.left
        rows.append((bar.step.name, bar.reached, *(left.get(d, 0) for d in ("dropped", "held", "failed")), bar.passed))
    sums = [sum(row[i] for row in rows) for i in (2, 3, 4)]
    note = f"{of.facts.rows:,} inputs = {of.facts.kept.rows:,} kept + {' + '.join(f'{n:,}' for n in sums)}"
    total = ("total", of.facts.rows, *sums, of.facts.kept.rows)
    return Table("From inputs to training content", _FUNNEL, tuple(rows), total, note)


_FUNNEL = ("step", "reached it", "dropped", "held", "failed", "passed")


def removed(of: Disclosed, title: str, stages: tuple[str, ...], reasons: frozenset[str] = frozenset()) -> Table:
    """Rows that these stages or reasons removed, by what decided."""
    found: dict[str, list[int]] = {}
    for outcome, n in of.facts.outcomes.counts.items():
        if outcome.decision != "kept" and (outcome.stage in stages or outcome.reason in reasons):
            name = words.reason(outcome.filter)
            if outcome.rule and outcome.filter == outcome.reason:
                name += f" ({outcome.rule})"
            entry = found.setdefault(name, [0, 0, 0])
            entry[("dropped", "held", "failed").index(outcome.decision)] += n
    ranked = sorted(found.items(), key=lambda item: (-sum(item[1]), item[0]))
    rows = tuple((clean(name), n[0], n[1], n[2], sum(n)) for name, n in ranked)
    sums = [sum(n[i] for _, n in ranked) for i in range(3)]
    total = ("total", sums[0], sums[1], sums[2], sum(sums))
    return Table(title, ("why", "dropped", "held", "failed", "all"), rows, total)


def signals_seen(of: Disclosed) -> Table:
    """For each signal and what it said: how many inputs it was seen on, and how many of these are kept."""
    found: dict[tuple[str, str], list[int]] = {}
    for (signal, verdict, decision), n in of.facts.signals.items():
        entry = found.setdefault((signal, verdict), [0, 0])
        entry[0] += n
        entry[1] += n if decision == "kept" else 0
    rows = tuple((clean(s), clean(v), n[0], n[1]) for (s, v), n in sorted(found.items()))
    note = "one input may carry several signals, so these lines have no total"
    return Table("Signals seen", ("signal", "it says", "inputs", "of these kept"), rows, None, note)


def verdicts(of: Disclosed) -> Table:
    """Kept rows by what the evidence on their rights adds up to."""
    kept = max(of.facts.kept.rows, 1)
    order = ("allow", "unknown", "error", "deny")
    names = [*order, *sorted(set(of.facts.verdicts) - set(order))]
    rows = tuple((clean(v), of.facts.verdicts[v], words.share(of.facts.verdicts[v], kept)) for v in names)
    shown = tuple(row for row in rows if row[1])
    columns = ("the evidence adds up to", "kept pictures", "share")
    return Table("Verdicts of kept pictures", columns, shown, ("total", sum(of.facts.verdicts.values()), None))


def protocols(of: Disclosed) -> Answer:
    """The opt-out protocols that the job asked."""
    question, asked = "Opt-out protocols honoured", practice.signals(of.manifest.info)
    if asked is None:
        return absent(question, "the job says nothing about signals", "statements.rights")
    files = of.facts.kept.rows - of.collected().amount.rows
    if asked and files:
        asked.append(
            f"Of sites, only pictures from the web can be asked about: for {words.many(files, 'kept picture')} from "
            "files nothing but what stands inside the files was read."
        )
    return says(question, asked or "None was asked.")


def rights_said(of: Disclosed) -> list[str]:
    """The rights policy of the job, paragraph by paragraph."""
    info = of.manifest.info
    return [*practice.rights(info), practice.ledger(info), practice.evidence(info)]


def limits(of: Disclosed) -> list[str]:
    """What a reader must not take these figures for."""
    facts, kept = of.facts, of.facts.kept
    found = [
        "Licences, creators and titles are as the source states them. Nobody has checked them with the rights holders.",
        "Whether a picture shows people, or is protected by copyright, trademark or patent, is not measured.",
    ]
    unknown = facts.verdicts["unknown"] + facts.verdicts["unstated"]
    if unknown:
        found.append(
            f"On the rights of {words.many(unknown, 'kept picture')} ({words.share(unknown, kept.rows)}) no signal "
            "speaks. Silence is not a permission."
        )
    undated = sum(n.amount.rows for (_, domain), n in facts.places.items() if domain is None)
    if undated:
        found.append(
            f"{words.many(undated, 'kept picture')} came from files. Their time is the file's own, and their domain, "
            "host and opt-outs on the web are not in the data."
        )
    if facts.source_urls:
        found.append(
            f"{words.many(facts.source_urls, 'kept picture')} came in containers that name the address it is from. "
            "These addresses stand in the rows and are not counted as domains."
        )
    if kept.unsized:
        found.append(f"The size of {words.many(kept.unsized, 'kept picture')} is not stated and counts as 0 bytes.")
    if facts.missing:
        found.append(f"The manifest is of an older version and has no {', '.join(facts.missing)}.")
    if of.model is not None and of.model.training_rows != kept.rows:
        found.append(
            f"The model was trained on {of.model.training_rows:,} of the {kept.rows:,} kept pictures; figures here are "
            "of all that were kept."
        )
    return found
