"""`cleanplate export`: from a registered version to files with hashes, which come back with the model."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
import yaml

from curation.errors import UserError
from pipelines import config, promote
from pipelines.export import Exported
from pipelines.promote import PromoteJob
from tests.pipelines.test_cli import Cleanplate, cleanplate
from tests.training.test_bundle import describe
from tests.training.test_export import CAPTIONS, Again, build
from training.bundle import write_bundle
from training.export import BUILDERS
from training.export_job import ExportJob
from training.exported import FILES, REPORT_FILE, load_exported, read_report
from training.sampling import SamplingParams, sample
from training.tracking import ModelVersion, export_of, find, register, resolve

pytestmark = pytest.mark.slow  # networks are trained, in seconds each

__all__ = ["cleanplate"]  # a fixture

LITTLE = ("comparison.batches=2", "comparison.pictures=2", "calibration.pictures=2", "limits.int8={min_psnr: 10}")
SETS = [word for override in LITTLE for word in ("--set", override)]


@pytest.fixture(scope="module")
def bundle(tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    info = describe().model_copy(
        update={"image_size": 16, "patch_size": 2, "captions": CAPTIONS, "sampling": SamplingParams(steps=3)}
    )
    write_bundle(folder, build(tower, cross_attention=(False,)), info)  # the exporter's time goes by layers
    return folder


@pytest.fixture(scope="module")
def graph(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle's graph, made once by torch's exporter."""
    folder = tmp_path_factory.mktemp("graph") / "e"
    from training.export import export

    job = ExportJob.model_validate({"model": "x", "comparison": {"batches": 1, "pictures": 2}})
    export(bundle, folder, job)
    return folder / FILES["onnx"]


@pytest.fixture
def version(
    graph: Path, bundle: Path, empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ModelVersion:
    """Registered in a store of the test's own, with a cache of its own; later graphs are copies of the one."""
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_store, tmp_path / "runs" / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs/mlflow.db")
    monkeypatch.setitem(BUILDERS, "onnx", lambda: Again(graph))
    return register(str(bundle), "drawings")


def tags_of(version: ModelVersion) -> dict[str, str]:
    tags = find(f"models:/{version.name}/{version.version}").tags
    return {key: value for key, value in tags.items() if key.startswith("export.")}


def test_an_export_is_attached_and_comes_back_with_the_model(
    cleanplate: Cleanplate, version: ModelVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = resolve("models:/drawings@champion")  # downloaded before there was an export
    done = cleanplate("export", "models:/drawings@champion", "--int8", "--out", "exported", *SETS, "--json")
    assert done.returncode == 0, done.stderr
    told = Exported.model_validate_json(done.stdout.splitlines()[-1])
    assert (told.model, told.version, told.folder, told.attached) == ("drawings", "1", "exported", True)
    assert [made.format for made in told.formats] == ["onnx", "int8"]

    tags = tags_of(version)
    assert tags["export.formats"] == "onnx,int8"
    assert tags["export.onnx.parity"].startswith("passed: relative error")
    for made in told.formats:
        assert made.sha256 == tags[f"export.{made.format}.sha256"]
        assert made.sha256 == hashlib.sha256(Path(made.file).read_bytes()).hexdigest()

    with pytest.raises(UserError, match="has no export"):
        export_of(cached)  # as it was known then
    again = resolve("models:/drawings@champion")
    assert again.bundle == cached.bundle
    assert not (Path(again.bundle) / "onnx").exists()
    folder = export_of(again)
    assert read_report(folder) == read_report("exported")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    elsewhere = resolve("models:/drawings@champion")
    for kind in ("onnx", "int8"):
        one, other = (load_exported(found.bundle, kind, folder=export_of(found)) for found in (again, elsewhere))
        params = SamplingParams(steps=3)
        pictures = sample(one, CAPTIONS, [1, 2, 3], params)
        np.testing.assert_array_equal(pictures, sample(other, CAPTIONS, [1, 2, 3], params))
    artifacts = mlflow.MlflowClient().list_logged_model_artifacts(str(version.model_id), "onnx")
    assert {artifact.path for artifact in artifacts} == {f"onnx/{n}" for n in (*list(FILES.values())[:2], REPORT_FILE)}


def test_what_was_changed_in_the_store_is_refused(cleanplate: Cleanplate, version: ModelVersion) -> None:
    assert cleanplate("export", "drawings", "--out", "exported", *SETS).returncode == 0
    (report,) = Path("runs").rglob(REPORT_FILE)
    report.write_text(report.read_text().replace('"opset": 20', '"opset": 21'))
    with pytest.raises(UserError, match="was changed"):
        export_of(resolve("drawings"))


def test_a_refused_format_is_not_attached_and_exits_1(cleanplate: Cleanplate, version: ModelVersion) -> None:
    strict = [*SETS, "--set", "limits.int8.min_psnr=99"]
    done = cleanplate("export", "drawings", "--int8", "--out", "exported", *strict)
    assert done.returncode == 1
    assert "int8     REFUSED: PSNR of the pictures" in done.stdout
    assert tags_of(version)["export.formats"] == "onnx"
    assert not list(Path("runs").rglob(FILES["int8"]))

    forced = cleanplate("export", "drawings", "--int8", "--force", "--out", "exported", *strict)
    assert forced.returncode == 0
    assert "FORCED: PSNR" in forced.stdout
    assert tags_of(version)["export.int8.parity"].startswith("failed: PSNR")
    assert len(list(Path("runs").rglob(FILES["int8"]))) == 1

    assert cleanplate("export", "drawings", "--out", "exported", *SETS).returncode == 0
    assert "export.int8.parity" not in tags_of(version)  # the newer export has none

    nothing = cleanplate("export", "drawings", "--out", "exported", *SETS, "--set", "limits.onnx.min_psnr=101")
    assert nothing.returncode == 1
    assert tags_of(version)["export.onnx.parity"].startswith("passed")  # that of the one before


def test_promotion_reads_the_tag(cleanplate: Cleanplate, version: ModelVersion) -> None:
    job = PromoteJob.model_validate({"export": {"required": True}})

    def gate() -> str:
        (found,) = [gate for gate in promote.run("drawings", "1", job, alias="x").gates if gate.gate == "export parity"]
        return found.outcome

    before = gate()
    assert cleanplate("export", "drawings", "--out", "exported", *SETS).returncode == 0
    after = gate()
    strict = ["--force", *SETS, "--set", "limits.onnx.min_psnr=101"]
    assert cleanplate("export", "drawings", "--out", "exported", *strict).returncode == 0
    assert (before, after, gate()) == ("failed", "passed", "failed")


def test_a_bundles_folder_gets_its_export_inside(
    cleanplate: Cleanplate, version: ModelVersion, bundle: Path, tmp_path: Path
) -> None:
    """And is registered with it."""
    shutil.copytree(bundle, tmp_path / "b")
    done = cleanplate("export", str(tmp_path / "b"), *SETS, "--json")
    told = Exported.model_validate_json(done.stdout.splitlines()[-1])
    assert (told.model, told.folder, told.attached) == ("local", str(tmp_path / "b" / "onnx"), False)
    local = resolve(str(tmp_path / "b"))
    assert load_exported(local.bundle, folder=export_of(local))


def test_a_job_file_says_the_same(cleanplate: Cleanplate, version: ModelVersion) -> None:
    raw = {"kind": "export", "model": "drawings", "out": "exported", "comparison": {"batches": 2, "pictures": 2}}
    Path("job.yaml").write_text(yaml.safe_dump(raw))
    dry = cleanplate("export", "job.yaml", "--int8", "--set", "calibration.method=percentile", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    resolved, resources = dry.stdout.split("---\n")
    job = ExportJob.model_validate(yaml.safe_load(resolved))
    assert (job.formats, job.calibration.method, job.comparison.batches) == (("onnx", "int8"), "percentile", 2)
    assert json.loads(resources) == {"formats": ["onnx", "int8"], "cpus": 1, "gpus": 0}
    assert not Path("exported").exists()
    assert config.load_job("job.yaml").kind == "export"  # so that `cleanplate submit` takes it
    assert cleanplate("export", "job.yaml").returncode == 0
    assert read_report("exported").job.comparison.pictures == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent"], "no model is registered as absent"),
        (["absent", "--dry-run"], "no model is registered as absent"),
        (["drawings", "--set", "comparison.picture=3"], "did you mean pictures?"),
        (["drawings", "--set", "formats=[int4]"], "formats"),
        (["nowhere.yaml"], "no job file at nowhere.yaml"),
        (["s3://bucket/bundle"], "name a local folder: --out DIR"),
        (["drawings", "--out", "."], "holds something else than an export"),
        pytest.param(
            ["drawings", "--tensorrt"], "torch sees none here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here"),
        ),
    ],
)  # fmt: skip
def test_a_users_mistake_exits_2(
    cleanplate: Cleanplate, version: ModelVersion, arguments: list[str], words: str
) -> None:
    done = cleanplate("export", *arguments)
    assert done.returncode == 2, done.stdout
    assert words in done.stderr
    assert not tags_of(version)
