"""Job files: what is accepted, and how a mistake is told."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import yaml

from curation.errors import UserError
from pipelines import config

JOBS = Path(config.__file__).parent / "jobs"
CURATE = {"kind": "curate", "source": {"kind": "folder", "path": "pictures"}, "output": "out"}


def write(tmp_path: Path, raw: object) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(raw))
    return str(path)


def test_the_issue_s_own_example_loads(tmp_path: Path) -> None:
    text = """
kind: curate
name: drawings
source: {kind: folder, path: pictures/, metadata: pictures.csv}
licences: {allow: [CC0-1.0, CC-BY-4.0, CC-BY-SA-4.0, "http://web.resource.org/cc/PublicDomain"], unstated: hold}
optout: [{kind: list, path: optout.csv}]
duplicates: {exact: true, perceptual: {radius: 3}}
captions: [{kind: metadata}, {kind: template, text: "a drawing of {title}"}]
clip: {model: embedded}
safety: {concepts: {weapon: 0.3, nudity: 0.25}, action: drop}
image_size: 64
output: runs/drawings/manifests
workers: 2
seed: 0
"""
    (tmp_path / "job.yaml").write_text(text)
    job = config.load_job(str(tmp_path / "job.yaml"), kind="curate")
    assert job.safety.concepts == {"weapon": 0.3, "nudity": 0.25}
    assert config.check(yaml.safe_load(config.to_yaml(job)), "curate") == job


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_job_file_that_ships_is_valid_and_round_trips(path: Path) -> None:
    job = config.load_job(str(path))
    assert config.check(yaml.safe_load(config.to_yaml(job)), job.kind) == job


def test_overrides_reach_any_depth(tmp_path: Path) -> None:
    raw = CURATE | {"optout": [{"path": "a.csv"}]}
    sets = ["workers=3", "duplicates.perceptual.radius=5", "optout.0.path=b.csv", "licences.allow=[CC0-1.0]", "name=x"]
    job = config.load_job(write(tmp_path, raw), sets, kind="curate")
    assert (job.workers, job.duplicates.perceptual.radius, job.optout[0].path) == (3, 5, "b.csv")
    assert job.licences.allow == ("CC0-1.0",)


def test_a_job_comes_from_standard_input_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(yaml.safe_dump(CURATE)))
    assert config.load_job("-", kind="curate").output == "out"


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"licenses": {}}, "licenses", "did you mean licences?"),
        ({"source": {"kind": "folder", "path": "x", "metdata": "y"}}, "source.metdata", "did you mean metadata?"),
        ({"source": {"kind": "folder"}}, "source.path", "required"),
        ({"source": {"kind": "cloud", "path": "x"}}, "source", "folder"),
        ({"safety": {"concepts": {"weapon": 1.5}}}, "safety.concepts", "between -1 and 1"),
        ({"duplicates": {"perceptual": {"radius": 99}}}, "duplicates.perceptual.radius", "99"),
        ({"captions": [{"kind": "template", "text": "{a.b}"}]}, "captions.0.text", "plain fields"),
        ({"captions": [{"kind": "template", "text": "{a"}]}, "captions.0.text", "expected"),
        ({"workers": 0}, "workers", "greater than or equal to 1"),
        ({"name": "No Spaces"}, "name", "lower-case"),
        (
            {"kind": "cure"},
            "kind",
            "curate, autoencoder, train, distill, register, index, evaluate, promote, export, serve",
        ),
        ({"kind": "train"}, "kind", "cleanplate train"),
    ],
)
def test_a_mistake_names_its_field_and_its_remedy(tmp_path: Path, changes: dict, field: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        config.load_job(write(tmp_path, CURATE | changes), kind="curate")
    assert caught.value.field == field
    assert words in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("override", ["workers", "=3", "optout.5.path=x", "name={"])
def test_a_bad_override_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError, match="--set"):
        config.load_job(write(tmp_path, CURATE | {"optout": [{"path": "a"}]}), [override], kind="curate")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [", "a: \x00"])
def test_what_is_no_job_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(UserError, match="job:"):
        config.load_job(str(tmp_path / "job.yaml"), kind="curate")
    with pytest.raises(UserError, match="no job file"):
        config.load_job(str(tmp_path / "absent.yaml"), kind="curate")


def test_a_mistake_is_told_without_its_password(tmp_path: Path) -> None:
    for user, told in (("me", "'http://r.example/a@b'"), ("me:s3@cret", "holds a password")):
        with pytest.raises(UserError) as caught:
            config.load_job(
                write(tmp_path, CURATE), [f"rights.registry.url=http://{user}@r.example/a@b"], kind="curate"
            )
        assert caught.value.field == "rights.registry.url"
        assert told in caught.value.message
        assert "cret" not in caught.value.message
