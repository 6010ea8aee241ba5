"""Job files from elsewhere: YAML that would run code, name itself, or grow without end."""

from __future__ import annotations

from pathlib import Path

import pytest

from curation.errors import UserError
from pipelines import config

TAGS = (
    "!!python/object/apply:os.mkdir [{ran}]",
    "!!python/object/new:os.mkdir [{ran}]",
    "!!python/object/apply:subprocess.check_output [[mkdir, {ran}]]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object:tests.security.planted.Program {{_where: {ran}}}",
)
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("as_override", [False, True])
def test_a_tag_runs_nothing(tag: str, as_override: bool, tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", tmp_path / "job.yaml"
    value = tag.format(ran=ran)
    path.write_text("kind: curate\noutput: out\n" + ("" if as_override else f"name: {value}\n"))
    with pytest.raises(UserError, match="YAML"):
        config.load_job(str(path), [f"name={value}"] if as_override else [])
    assert not ran.exists()


@pytest.mark.parametrize("field", ["name", "source", "captions", "filters"])
def test_aliases_of_aliases_are_refused(field: str, tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"{LAUGHS}kind: curate\noutput: out\n{field}: *a29\n")
    with pytest.raises(UserError, match="aliases"):
        config.load_job(str(path))


def test_what_holds_itself_is_refused_and_honest_aliases_are_not(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("kind: curate\noutput: out\nsource: &a {kind: union, of: [*a]}\n")
    with pytest.raises(UserError, match="aliases"):
        config.load_job(str(path))
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="YAML"):
        config.load_job(str(path))
    path.write_text("kind: curate\noutput: out\nsource: {kind: union, of: [&a {kind: folder, path: p}, *a]}\n")
    assert len(config.load_job(str(path)).source.of) == 2


@pytest.mark.parametrize("name", ["../elsewhere", "/etc/cron.d/x", "a/b", "..", "a\0b", "$(id)"])
def test_a_job_s_name_leads_nowhere(name: str) -> None:
    with pytest.raises(UserError) as caught:
        config.build({"kind": "curate", "name": name, "source": {"kind": "folder", "path": "p"}, "output": "out"})
    assert caught.value.field == "name"
