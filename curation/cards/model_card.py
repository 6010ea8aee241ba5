"""A model card: the sections of Mitchell et al. 2019, "Model Cards for Model Reporting", about a model and its data."""

from __future__ import annotations

from curation.cards.disclosed import (
    Disclosed,
    Model,
    amounts,
    clean,
    drop_funnel,
    limits,
    made_from,
    protocols,
    rights_said,
    signals_seen,
    verdicts,
)
from curation.cards.document import Answer, Document, Section, Table, absent, says, stated
from curation.report import words

# Below this many pictures, a model of this kind has seen each one so often that it draws them from memory.
BY_HEART = 10_000


def card(of: Disclosed, model: Model) -> Document:
    """The nine sections."""
    said = of.provider.statements
    return Document(
        "model-card",
        f"Model card: {clean(model.name)}",
        "After Mitchell et al., Model Cards for Model Reporting (2019).",
        of.basis(),
        (
            Section("1", "Model details", _details(of, model)),
            Section(
                "2", "Intended use",
                (
                    stated("Intended use", of.provider.model.purpose, "what the model is for", "model.purpose"),
                    stated("Out of scope", of.provider.model.out_of_scope, "uses it is not for", "model.out_of_scope"),
                ),
            ),
            Section(
                "3", "Factors",
                (stated("Groups and conditions", said.biases, "no bias is measured here", "statements.biases"),),
            ),
            Section("4", "Metrics", _metrics(model)),
            Section(
                "5", "Evaluation data",
                (says("Evaluation data", "The metrics are of training; no data were held out for them.", "software"),),
            ),
            Section("6", "Training data", _data(of, model)),
            Section(
                "7", "Quantitative analyses",
                (says("Analyses", "None beyond the metrics above and the figures of sections 6 and 8.", "software"),),
            ),
            Section(
                "8", "Ethical considerations",
                (says("Rights policy", rights_said(of)), protocols(of), signals_seen(of), verdicts(of)),
            ),
            Section("9", "Caveats and recommendations", (says("Known limits", [*_memory(model), *limits(of)]),)),
        ),
    )  # fmt: skip


def _details(of: Disclosed, model: Model) -> tuple[Answer | Table, ...]:
    said = of.provider
    rows = (
        ("kind", f"text-conditional diffusion model of {model.image_size} × {model.image_size} pixels"),
        ("parameters", f"{model.parameters:,}"),
        ("predicts", clean(model.prediction)),
        ("text encoder", f"{clean(model.text_encoder)}, frozen"),
        ("training configuration (sha256)", clean(model.config_sha256)),
        ("training set", clean(model.training_set_digest)),
        ("takedown ledger heeded in training", clean(model.ledger or "none named")),
    )
    who = " · ".join(part for part in (said.provider.name, said.provider.contact) if part)
    return (
        stated("Who made it", who, "the provider's name and contact", "provider.name"),
        made_from(of, "Models it was made from", "whether there are any"),
        Table("The model", ("what", "value"), rows, origin="model"),
    )


def _metrics(model: Model) -> tuple[Answer | Table, ...]:
    if not model.metrics:
        return (absent("Metrics", "the bundle holds none", "--model"),)
    rows = tuple((clean(name), f"{value:.6g}") for name, value in sorted(model.metrics.items()))
    return (Table("Measured in training", ("metric", "value"), rows, origin="model"),)


def _data(of: Disclosed, model: Model) -> tuple[Answer | Table, ...]:
    times = model.images_seen / max(model.training_rows, 1)
    seen = (
        f"{words.many(model.training_rows, 'picture')}, each seen {times:.1f} times on average "
        f"({model.images_seen:,} in all)."
    )
    ranked = sorted(model.licences.items(), key=lambda item: (-item[1], item[0]))
    trained = Table(
        "Licences of what was trained on",
        ("licence as stated", "pictures"),
        tuple((clean(name), n) for name, n in ranked),
        ("total", sum(model.licences.values())),
        origin="model",
    )
    return (
        says("Training set", seen, "model"),
        trained,
        drop_funnel(of),
        amounts("Data sets", "dataset", {name: place.amount for name, place in of.facts.datasets().items()}),
        amounts("Domains", "domain", of.domains()),
    )


def _memory(model: Model) -> list[str]:
    times = model.images_seen / max(model.training_rows, 1)
    if model.training_rows < BY_HEART:
        return [
            f"It knows its training pictures by heart: with {words.many(model.training_rows, 'picture')}, each seen "
            f"{times:.0f} times, it redraws them. Treat what it draws as copies of the training set."
        ]
    return ["It may redraw single training pictures; compare what it draws with them before you publish it."]
