"""What a model was made from, on a real SQLite store: named, found again, with its training set, at any depth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from curation.errors import UserError
from tests.training.test_bundle import describe
from training import dependencies, merkle
from training.bundle import INFO_FILE, BundleInfo, read_info
from training.card import model_card
from training.dependencies import MOST, Dependency, Statement, made_from, of_info, of_tags, to_tag, unique
from training.roster import FILE as ROSTER_FILE
from training.roster import Roster, RosterInfo
from training.tracking import (
    ModelVersion,
    Run,
    dependencies_of,
    dependency_set,
    find,
    register,
    resolve,
    rosters_of,
    tag_version,
    training_set,
    versions_of_bundle,
)


def roster_of(*pictures: str) -> Roster:
    ids = tuple(sorted(hashlib.sha256(picture.encode()).hexdigest() for picture in pictures))
    info = RosterInfo(
        manifest_id="m" * 64, manifest_uri="/manifests", digest=merkle.digest(ids), base_rows=len(ids),
        base_digest=merkle.digest(ids), removed_digest=merkle.digest(()),
    )  # fmt: skip
    return Roster(ids, np.arange(len(ids)), info)


class Store:
    """Bundles of which nothing but the description is there, and their versions."""

    def __init__(self, root: Path, uri: str) -> None:
        self.root = root
        self.uri = uri

    def bundle(self, name: str, roster: Roster, copies: dict[str, Roster] | None = None, **said: Any) -> str:
        told = {"name": name, "training_set_digest": roster.info.digest, "training_set_digest_kind": "merkle", **said}
        folder = self.root / name / "bundle"
        folder.mkdir(parents=True)
        (folder / INFO_FILE).write_text(describe().model_copy(update=told).model_dump_json())
        (folder.parent / ROSTER_FILE).write_bytes(roster.to_parquet())
        dependencies.keep(str(folder.parent), copies or {})
        return str(folder)

    def version(self, bundle: str, roster: Roster, copies: dict[str, Roster] | None = None) -> ModelVersion:
        name = Path(bundle).parent.name
        run = Run.start(name, uri=self.uri, experiment="dependencies", known_run_id=None, tags={"manifest_id": "d"})
        run.training_set(roster)
        run.dependencies(copies or {})
        return register(bundle, name, tracking_uri=self.uri, run_id=run.run_id)


@pytest.fixture
def store(tmp_path: Path, tracking_uri: str) -> Store:
    return Store(tmp_path, tracking_uri)


def digest_of(bundle: str) -> str:
    return hashlib.sha256((Path(bundle) / INFO_FILE).read_bytes()).hexdigest()


def named(found: Iterable[Dependency]) -> list[tuple[str, str | None]]:
    return [(dependency.name, dependency.through) for dependency in found]


def chain(store: Store, *names: str) -> list[str]:
    """Bundles of which each was distilled from the one before; only their own runs have their training sets."""
    bundles: list[str] = []
    for name in names:
        said: dict[str, Any] = {}
        if bundles:
            teacher = digest_of(bundles[-1])
            said = {"distilled_from": teacher, "depends_on": made_from("teacher", teacher, read_info(bundles[-1]))}
        bundles.append(store.bundle(name, roster_of(name), **said))
    return bundles


def test_a_bundle_names_all_it_was_made_from_and_so_do_its_tags(store: Store) -> None:
    teacher, student, pupil = chain(store, "first", "second", "third")
    info = read_info(pupil)
    assert named(info.depends_on) == [("second", None), ("first", digest_of(student))]
    assert [d.sha256 for d in info.depends_on] == [digest_of(student), digest_of(teacher)]
    assert info.depends_on[1].training_set_digest == roster_of("first").info.digest
    assert of_tags({dependencies.TAG: to_tag(info.depends_on)}) == info.depends_on
    version = store.version(pupil, roster_of("third"))
    assert of_tags(find("third", tracking_uri=store.uri).tags) == info.depends_on
    assert dependencies_of(version, tracking_uri=store.uri) == list(info.depends_on)
    card = model_card(info)
    assert card.count("| teacher |") == 1
    assert digest_of(student) in card
    assert roster_of("first").info.digest in card


def test_copies_are_enough_to_have_every_training_set(store: Store) -> None:
    teacher, student = chain(store, "alpha", "beta")
    copies = rosters_of(resolve(teacher))
    assert {sha256: roster.ids for sha256, roster in copies.items()} == {digest_of(teacher): roster_of("alpha").ids}
    dependencies.keep(str(Path(student).parent), copies)
    version = store.version(student, roster_of("beta"), copies)
    for of in (version, resolve(student)):
        (dependency,) = dependencies_of(of, tracking_uri=store.uri)
        assert dependency_set(of, dependency, tracking_uri=store.uri).ids == roster_of("alpha").ids
    everything = rosters_of(version, tracking_uri=store.uri)
    assert set(everything) == {digest_of(teacher), digest_of(student)}
    # a copy of another set is not taken for it
    other = store.version(store.bundle("gamma", roster_of("gamma"), depends_on=(dependency,)), roster_of("gamma"))
    assert other.run_id is not None
    forged = {dependency.sha256: roster_of("another")}
    again = store.version(
        store.bundle("delta", roster_of("delta"), depends_on=(dependency,)), roster_of("delta"), forged
    )
    for of in (other, again):
        with pytest.raises(UserError, match=r"teacher alpha .* not on record"):
            dependency_set(of, dependency, tracking_uri=store.uri)


def test_a_statement_travels_in_bundle_tags_and_card(store: Store) -> None:
    word = Statement(by="Jane | for us", ground="its data card", date=date(2026, 1, 2))
    foreign = Dependency(kind="autoencoder", name="from elsewhere", sha256="e" * 64, statement=word)
    teacher = store.bundle("latent", roster_of("latent"), depends_on=(foreign,))
    student = store.bundle(
        "latent-student", roster_of("mine"), depends_on=made_from("teacher", digest_of(teacher), read_info(teacher))
    )
    version = store.version(student, roster_of("mine"))
    behind = dependencies_of(version, tracking_uri=store.uri)[1]
    assert (behind.vouched, behind.through) == (word, digest_of(teacher))
    assert "statement" not in to_tag([foreign.model_copy(update={"statement": None})])
    assert "Jane &#124; for us stated on 2026-01-02 that" in model_card(read_info(teacher))
    assert foreign.model_copy(update={"training_set_digest": "f" * 64}).vouched is None
    for by in ("", "Jane\nBob"):
        with pytest.raises(ValidationError):
            Statement(by=by, ground="its data card", date=date(2026, 1, 2))


def test_the_registry_has_what_was_not_copied_and_what_older_students_do_not_name(store: Store) -> None:
    teacher = store.bundle("old-teacher", roster_of("old"))
    student = store.bundle("old-student", roster_of("new"), distilled_from=digest_of(teacher))
    pupil = store.bundle(
        "old-pupil", roster_of("newer"), depends_on=(Dependency(kind="teacher", name="x", sha256=digest_of(student)),)
    )
    version = store.version(pupil, roster_of("newer"))
    assert named(of_info(read_info(student))) == [("of an older student", None)]
    (unknown,) = dependencies_of(version, tracking_uri=store.uri)
    with pytest.raises(UserError, match="not on record"):
        dependency_set(version, unknown, tracking_uri=store.uri)
    store.version(student, roster_of("new"))
    store.version(teacher, roster_of("old"))
    found = dependencies_of(version, tracking_uri=store.uri)
    assert [(d.sha256, d.through) for d in found] == [
        (digest_of(student), None), (digest_of(teacher), digest_of(student)),
    ]  # fmt: skip
    sets = [dependency_set(version, d, tracking_uri=store.uri).ids for d in found]
    assert sets == [roster_of("new").ids, roster_of("old").ids]
    (known,) = versions_of_bundle(digest_of(teacher), tracking_uri=store.uri)
    assert training_set(known, tracking_uri=store.uri).ids == roster_of("old").ids


def test_circles_end_and_long_chains_are_refused(store: Store) -> None:
    first, second = (store.version(store.bundle(name, roster_of(name)), roster_of(name)) for name in ("ring", "round"))
    for one, other in ((first, second), (second, first)):
        tag = to_tag([Dependency(kind="teacher", name=other.name, sha256=other.tags["bundle_sha256"])])
        tag_version(one.name, one.version, {dependencies.TAG: tag}, tracking_uri=store.uri)
    found = dependencies_of(find("ring", tracking_uri=store.uri), tracking_uri=store.uri)
    assert [d.name for d in found] == ["round"]
    said = dict.fromkeys(("manifest_id", "training_set_digest", "ledger_version", "through"), "f" * 64)
    said |= {"name": "n" * 100, "ledger_uri": "s3://" + "l" * 150}
    many = [
        Dependency.model_validate({"kind": "autoencoder", "sha256": f"{i:064x}", "training_rows": 10**9, **said})
        for i in range(MOST + 1)
    ]
    assert unique([*many[:MOST], *many[:MOST]]) == many[:MOST]
    with pytest.raises(UserError, match=f"more than {MOST}"):
        unique(many)
    info = describe().model_copy(update={"depends_on": tuple(many[:MOST])})
    with pytest.raises(UserError, match=f"more than {MOST}"):
        made_from("teacher", "f" * 64, info)
    assert len(to_tag(many[:MOST])) < 8000  # MLflow's limit of a run's tag


@pytest.mark.parametrize("told", ["", "[{]", '[{"kind": "teacher"}]', '[{"kind": "x", "name": "", "sha256": ""}]'])
def test_damaged_tags_are_no_permission(told: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        of_tags({dependencies.TAG: told})
    with pytest.raises(UserError, match="cannot be read"):
        of_tags({"distilled_from": "x' OR 'y"})


def test_a_folder_is_asked_without_making_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"sqlite:///{tmp_path}/none/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    _, student = chain(Store(tmp_path, uri), "one", "two")
    version = resolve(student)
    (dependency,) = dependencies_of(version)
    with pytest.raises(UserError, match="not on record"):
        dependency_set(version, dependency)
    assert not (tmp_path / "none").exists()


def test_older_bundles_are_read(tmp_path: Path) -> None:
    told = json.loads(describe().model_dump_json())
    del told["depends_on"]
    assert of_info(BundleInfo.model_validate(told)) == ()
    assert of_info(BundleInfo.model_validate({**told, "distilled_from": "a" * 64}))[0].sha256 == "a" * 64
