"""`cleanplate disclose`: what has to be said in public about a manifest, and about a model that was trained on it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import BaseModel

from curation import storage
from curation.errors import UserError
from curation.manifest import Manifest

if TYPE_CHECKING:
    from curation.cards.disclosed import Disclosed, Model
    from training.dependencies import Dependency


class Disclosure(BaseModel):
    """What was written, and what the documents could not say."""

    folder: str
    files: dict[str, str]  # by document
    manifest: str
    manifest_id: str
    kept: int
    domains: int
    domains_named: int
    absent: list[str]  # questions of the EU summary that the data do not answer


def run(
    manifest: str,
    *,
    model: str | None = None,
    against: str | None = None,
    sme: bool = False,
    out: str | None = None,
    provider: str | None = None,
) -> Disclosure:
    """Writes all documents; the same manifests, model and provider's file give the same bytes.

    Args:
        manifest: a manifest's folder, or a folder of manifests.
        model: models:/NAME@alias, or a bundle's folder; without it there is no model card.
        against: an older manifest to state the differences from.
        sme: name as few domains as a small or medium-sized enterprise may; also set by the provider's file.
        out: folder, local or s3://; by default one below runs/disclosure.
        provider: YAML file with what only the provider knows, see `curation.cards.provider`.

    Raises:
        UserError: for what is not there or does not fit together, and for a manifest whose rows do not reconcile.
    """
    from curation.cards.difference import compare
    from curation.cards.disclosed import Disclosed
    from curation.cards.facts import gather
    from curation.cards.provider import Provider, load

    said = load(provider) if provider else Provider()
    found = Manifest.open(manifest)
    older = Manifest.open(against) if against else None
    try:
        disclosed = Disclosed(
            manifest=found,
            facts=gather(found),
            provider=said,
            model=_model(model) if model else None,
            difference=compare(found, older) if older else None,
            sme=sme or said.provider.sme,
        )
        return _write(disclosed, out or f"runs/disclosure/{found.id[:12]}")
    except FileNotFoundError as error:
        raise UserError(
            f"a file of the manifest is missing: {error}", field="manifest", remedy="restore it or curate again"
        ) from None


def _write(of: Disclosed, folder: str) -> Disclosure:
    from curation.cards import ab2013, croissant, datasheet, eu, html, markdown, model_card

    summary = eu.summary(of)
    texts = {
        "eu-summary.html": html.render(summary),
        "eu-summary.json": _json(summary.as_json()),
        "ab2013.md": markdown.render(ab2013.statement(of)),
        "datasheet.md": markdown.render(datasheet.sheet(of)),
        "croissant.json": _json(croissant.metadata(of, folder)),
    }
    if of.model is not None:
        texts["model_card.md"] = markdown.render(model_card.card(of, of.model))
    for name, text in texts.items():
        try:
            storage.write_bytes(storage.join(folder, name), text.encode("utf-8", "replace"))
        except OSError as error:
            raise UserError(
                f"cannot write {folder}: {error}", field="--out", remedy="name a folder that can be written"
            ) from None
    domains = summary.facts["domains"]
    return Disclosure(
        folder=folder,
        files={name: storage.join(folder, name) for name in texts},
        manifest=of.manifest.uri,
        manifest_id=of.manifest.id,
        kept=of.facts.kept.rows,
        domains=domains["all"],
        domains_named=len(domains["named"]),
        absent=summary.absent(),
    )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def _model(name: str) -> Model:
    """What the bundle says of a model: of a folder that is one, else of a version in the registry."""
    from curation.cards.disclosed import Model
    from training.bundle import read_info
    from training.dependencies import of_info
    from training.tracking import resolve

    version = resolve(name)
    info = read_info(version.bundle)
    return Model(
        name=info.name if version.name == "local" else f"{version.name} version {version.version}",
        manifest_id=info.manifest_id,
        training_rows=info.training_rows,
        training_set_digest=info.training_set_digest,
        licences=info.licences,
        ledger=info.takedown_ledger_version,
        images_seen=info.images_seen,
        parameters=info.parameters,
        image_size=info.image_size,
        prediction=str(info.prediction),
        text_encoder=info.text_encoder,
        config_sha256=info.config_sha256,
        metrics=info.metrics,
        made_from=tuple(_told(dependency) for dependency in of_info(info)),
    )


def _told(dependency: Dependency) -> str:
    what = f"{dependency.kind} {dependency.name} ({dependency.sha256[:12]}…)"
    if dependency.training_set_digest is None:
        vouched = "" if dependency.vouched is None else f"; {dependency.vouched.told}"
        return f"{what}; what it was trained on is not on record{vouched}"
    of = f"of the manifest {str(dependency.manifest_id)[:12]}…"
    return f"{what}, trained on {dependency.training_rows:,} pictures {of}, set {dependency.training_set_digest[:12]}…"


def summary(result: Disclosure) -> list[str]:
    """The result for a person."""
    lines = [
        f"{result.kept:,} kept pictures; {result.domains_named:,} of {result.domains:,} domains are named",
        *(f"written  {path}" for path in result.files.values()),
    ]
    if result.absent:
        lines.append(f"{len(result.absent)} questions of the EU summary are not in the data; give them in --provider:")
        lines += [f"  {question}" for question in result.absent]
    return lines
