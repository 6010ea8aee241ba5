"""`cleanplate disclose`: the files, the same bytes every time, the model of a real bundle, and mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from curation.errors import UserError
from curation.manifest import Manifest
from pipelines import disclose
from pipelines.cli import main
from tests.curation.cards.samples import file, heap, manifest, web


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return manifest(tmp_path_factory.mktemp("disclose"))


@pytest.fixture
def bundle_of(tmp_path: Path) -> Callable[[str], str]:
    """The description of a bundle that says it was trained on a manifest; nothing else of a bundle is read."""

    def trained_on(manifest_id: str) -> str:
        from training.bundle import BundleInfo
        from training.dependencies import Dependency
        from training.sampling import SamplingParams

        info = BundleInfo(
            name="tiny", manifest_id=manifest_id, training_set_digest="0" * 64, training_rows=1,
            licences={"CC0-1.0": 1},
            config_sha256="0" * 64, job={}, images_seen=0, state_sha256="0" * 64, metrics={}, image_size=8,
            patch_size=1,
            prediction="v_prediction", channel_mean=(0, 0, 0), channel_std=(1, 1, 1), text_encoder="tiny",
            captions=["a red apple"], sampling=SamplingParams(steps=3), parameters=1, libraries={},
            depends_on=(
                Dependency(
                    kind="teacher", name="tutor", sha256="a" * 64, manifest_id="m" * 64, training_set_digest="d" * 64,
                    training_rows=1234,
                ),
                Dependency(kind="autoencoder", name="somebody's", sha256="b" * 64),
            ),
        )  # fmt: skip
        folder = tmp_path / "bundle"
        folder.mkdir()
        (folder / "cleanplate.json").write_text(info.model_dump_json())
        return str(folder)

    return trained_on


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_document_is_written_and_the_same_each_time(found: Manifest, tmp_path: Path) -> None:
    done = disclose.run(found.uri, out=str(tmp_path / "a"))
    disclose.run(str(Path(found.uri).parent), out=str(tmp_path / "b"))
    once, again = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert once == again
    assert set(once) == {"eu-summary.html", "eu-summary.json", "ab2013.md", "datasheet.md", "croissant.json"}
    assert set(once) == set(done.files)
    assert json.loads(once["eu-summary.json"])["facts"]["kept"]["rows"] == done.kept == 65
    assert "1.1 Provider name and contact details" in done.absent
    assert not [path for path in Path(found.uri).iterdir() if not path.name.startswith(("part-", "manifest.json"))]


def test_the_default_folder_is_named_after_the_manifest(
    found: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert disclose.run(found.uri).folder == f"runs/disclosure/{found.id[:12]}"
    assert (tmp_path / "runs" / "disclosure" / found.id[:12] / "eu-summary.html").is_file()


def test_with_a_bundle_there_is_a_model_card(found: Manifest, tmp_path: Path, bundle_of: Callable[[str], str]) -> None:
    out = tmp_path / "out"
    disclose.run(found.uri, model=bundle_of(found.id), out=str(out))
    card = (out / "model_card.md").read_text()
    assert card.startswith("# Model card: tiny\n")
    assert "1 picture, each seen 0.0 times" in card
    assert "trained on 1 of the 65 kept pictures" in card
    text = (out / "eu-summary.json").read_text()
    assert "tiny" in json.loads(text)["basis"]["Model"]
    for said in (card, text, (out / "eu-summary.html").read_text()):  # what it was made from, and on what that was
        assert "teacher tutor (aaaaaaaaaaaa…), trained on 1,234 pictures of the manifest mmmmmmmmmmmm…" in said
        assert "b" * 12 + "…); what it was trained on is not on record" in said


def test_a_bundle_of_another_manifest_is_refused(
    found: Manifest, tmp_path: Path, bundle_of: Callable[[str], str]
) -> None:
    with pytest.raises(UserError, match="was trained on the manifest") as caught:
        disclose.run(found.uri, model=bundle_of("f" * 64), out=str(tmp_path / "none"))
    assert caught.value.field == "--model"
    assert not (tmp_path / "none").exists()


def test_a_missing_part_is_a_mistake_to_mend(tmp_path: Path) -> None:
    broken = manifest(tmp_path / "m", [web(0)], [file(0)])
    Path(broken.uri, broken.info.files[1].name).unlink()
    with pytest.raises(UserError, match="missing"):
        disclose.run(broken.uri, out=str(tmp_path / "out"))


def test_a_folder_that_cannot_be_written(found: Manifest, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(UserError, match="cannot write") as caught:
        disclose.run(found.uri, out=str(tmp_path / "taken"))
    assert caught.value.field == "--out"


def test_the_command(
    found: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    older = manifest(tmp_path / "older", heap()[:20])
    stated = tmp_path / "provider.yaml"
    stated.write_text("provider: {name: Klar}\nsources: {stamps: {kind: licensed}}\n")
    options = ["--against", older.uri, "--sme", "--out", str(tmp_path / "out"), "--provider", str(stated)]
    monkeypatch.setattr("sys.argv", ["cleanplate", "disclose", found.uri, *options, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["kept"], said["domains"], said["domains_named"]) == (65, 12, 1)
    summary = json.loads((tmp_path / "out" / "eu-summary.json").read_text())
    assert summary["sections"][-1]["title"] == "Annex: changes since the previous summary"
    assert summary["facts"]["sme"] is True


def test_a_mistake_in_the_providers_file_ends_with_2(
    found: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.yaml").write_text("provider: {nmae: Klar}")
    monkeypatch.setattr("sys.argv", ["cleanplate", "disclose", found.uri, "--provider", str(tmp_path / "p.yaml")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "did you mean name?" in capsys.readouterr().err
