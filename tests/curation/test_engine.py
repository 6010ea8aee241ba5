"""Curate jobs through Ray Data: every input accounted for, the same id on any number of workers, resume, S3."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curation import engine
from curation.containers import pack
from curation.engine import CurateResult, curate
from curation.fetch import FetchConfig, Fetcher
from curation.job import CurateJob
from curation.listing import listing
from curation.manifest import Decision, Manifest
from curation.sources import FolderSource
from tests.curation.faults import Faults
from tests.curation.pictures import drawing, encoded, noise
from tests.curation.seaweed import S3, seaweed

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def heap(folder: Path) -> dict[str, Any]:
    """A small heap with something of everything; returns the fields of its job."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    for i in range(16):
        (pictures / f"noise-{i:02d}.png").write_bytes(encoded(noise(i)))
    red = drawing("circle", "red")
    files = {
        "red.png": encoded(red),
        "red copy.png": encoded(red),
        "red rewrapped.webp": encoded(red, "WEBP", lossless=True),
        "red recompressed.jpg": encoded(red, "JPEG", quality=70),
        "blue.png": encoded(drawing("circle", "blue")),
        "opted out.png": encoded(noise(100)),
        "opted out recompressed.jpg": encoded(noise(100), "JPEG", quality=85),
        "broken.jpg": encoded(noise(50, (256, 256)), "JPEG")[:2000],
        "empty.png": b"",
        "no licence.png": encoded(noise(51)),
    }
    for name, data in files.items():
        (pictures / name).write_bytes(data)
    licences = [f"{p.name},{p.stem},CC0-1.0" for p in sorted(pictures.iterdir()) if p.name != "no licence.png"]
    (folder / "pictures.csv").write_text("\n".join(["path,title,licence", *licences, "gone.png,gone,CC0-1.0\n"]))
    (folder / "optout.csv").write_text("uri\nopted out.png\n")
    return {
        "source": {"kind": "folder", "path": str(pictures), "metadata": str(folder / "pictures.csv")},
        "output": str(folder / "manifests"),
        "licences": {"allow": ["CC0-1.0"]},
        "optout": [{"path": str(folder / "optout.csv")}],
        "captions": [{"kind": "template", "text": "{title}"}],
        "clip": {"batch_size": 4},
        "image_size": 32,
        "unit_size": 5,
    }


def run(fields: dict[str, Any], **changes: Any) -> CurateResult:
    job = CurateJob.model_validate(fields | changes)
    return curate(listing(job))


def reasons(result: CurateResult) -> dict[str, str]:
    table = Manifest.open(result.manifest).table(["uri", "reason"])
    return dict(zip(table["uri"].to_pylist(), table["reason"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def made(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], CurateResult]:
    fields = heap(tmp_path_factory.mktemp("heap"))
    return fields, run(fields)


def test_every_input_has_one_row_and_its_reason(made: tuple[dict[str, Any], CurateResult]) -> None:
    fields, result = made
    found = reasons(result)
    names = {p.name for p in Path(fields["source"]["path"]).iterdir()}
    assert found.keys() == names | {"gone.png"}
    assert sum(result.counts.values()) == result.rows == len(found)
    expected = {
        "red.png": "duplicate_exact",
        "red copy.png": "passed",
        "red rewrapped.webp": "duplicate_pixel",
        "red recompressed.jpg": "duplicate_perceptual",
        "blue.png": "passed",
        "opted out.png": "opted_out",
        "opted out recompressed.jpg": "opted_out_near_copy",
        "broken.jpg": "truncated",
        "empty.png": "empty",
        "no licence.png": "licence_unstated",
        "gone.png": "not_found",
    }
    assert found | expected == found
    assert sum(reason == "passed" for reason in found.values()) == 18


def test_kept_pictures_show_in_datasets(made: tuple[dict[str, Any], CurateResult], tmp_path: Path) -> None:
    import datasets

    files = [str(p) for p in sorted(Path(made[1].manifest).glob("*.parquet"))]
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    kept = loaded.filter(lambda row: row["decision"] == "kept").cast_column("image", datasets.Image())
    assert len(kept) == made[1].counts["kept"]
    assert kept[0]["image"].size == (32, 32)


def test_two_workers_elsewhere_give_the_same_bytes(
    made: tuple[dict[str, Any], CurateResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_WRITTEN_HERE", 0)  # as for a large job, they write the manifest as well
    fields, first = made
    second = run(fields, workers=2, output=str(tmp_path))
    assert second.id == first.id
    for part in sorted(Path(first.manifest).glob("*.parquet")):
        assert part.read_bytes() == (Path(second.manifest) / part.name).read_bytes()


def test_another_policy_measures_nothing_again(made: tuple[dict[str, Any], CurateResult]) -> None:
    fields, first = made
    second = run(fields, duplicates={"exact": False, "pixel": False, "perceptual": None}, optout=[])
    assert second.units_measured == 0
    assert second.id != first.id
    assert second.counts["kept"] == first.counts["kept"] + 5
    assert run(fields).id == first.id


def test_scorers_of_their_own_give_the_same_bytes(made: tuple[dict[str, Any], CurateResult], tmp_path: Path) -> None:
    fields, first = made
    assert run(fields, scorers=1, output=str(tmp_path)).id == first.id


def test_a_new_concept_or_caption_runs_its_stage_alone(made: tuple[dict[str, Any], CurateResult]) -> None:
    fields, first = made
    second = run(
        fields,
        safety={"concepts": {"fire": 0.99}},
        captions=[{"kind": "template", "text": "a picture of {title}"}],
    )
    assert second.units_run == {"heads": first.units, "captions": first.units}
    rows = Manifest.open(second.manifest).table(["caption", "safety", "decision"], decision=Decision.KEPT).to_pylist()
    assert all(row["caption"].startswith("a picture of") for row in rows)
    assert all([entry["concept"] for entry in row["safety"]] == ["fire"] for row in rows)


def test_what_an_older_manifest_kept_stays(made: tuple[dict[str, Any], CurateResult], tmp_path: Path) -> None:
    """New copies of old winners are dropped, also larger ones; and old winners that are opted out by now take them."""
    _, first = made
    pictures = tmp_path / "new"
    pictures.mkdir()
    (pictures / "larger.png").write_bytes(encoded(noise(3, (192, 128))))
    (pictures / "copy.jpg").write_bytes(encoded(noise(4), "JPEG", quality=85))
    (pictures / "refused.jpg").write_bytes(encoded(noise(100), "JPEG", quality=90))
    (pictures / "fresh.png").write_bytes(encoded(noise(500)))
    fields = {
        "source": {"kind": "folder", "path": str(pictures)},
        "output": str(tmp_path / "manifests"),
        "licences": {"unstated": "keep"},
        "image_size": 32,
    }
    assert run(fields).counts["kept"] == 4
    second = run(fields, parent=first.manifest)
    assert reasons(second) == {
        "larger.png": "duplicate_perceptual",
        "copy.jpg": "duplicate_perceptual",
        "refused.jpg": "opted_out_near_copy",
        "fresh.png": "passed",
    }
    assert Manifest.open(second.manifest).info.parent_id == first.id
    (pictures / "later.jpg").write_bytes(encoded(noise(5), "JPEG", quality=85))
    found = reasons(run(fields, parent=second.manifest))
    assert (found["later.jpg"], found["fresh.png"]) == ("duplicate_perceptual", "passed"), "its parent's parent counts"
    (tmp_path / "optout.csv").write_text("uri\nnoise-04.png\n")
    third = run(fields, parent=first.manifest, optout=[{"path": str(tmp_path / "optout.csv")}])
    assert reasons(third)["copy.jpg"] == "opted_out_near_copy"


def test_a_new_picture_costs_its_unit_only(ray_cluster: None, tmp_path: Path) -> None:
    fields = heap(tmp_path)
    first = run(fields)
    (tmp_path / "pictures" / "zebra.png").write_bytes(encoded(noise(77)))
    second = run(fields)
    assert second.rows == first.rows + 1
    assert 1 <= second.units_measured <= 2 < second.units


def test_a_killed_driver_resumes_where_it_was(made: tuple[dict[str, Any], CurateResult], tmp_path: Path) -> None:
    fields, undisturbed = made
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"kind": "curate", **fields, "output": str(tmp_path / "manifests")}))
    command = [sys.executable, "-m", "pipelines", "curate", str(job), "--json"]
    driver = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("manifests/.work/measure-*/unit-*.parquet")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    before = len(list(tmp_path.glob("manifests/.work/measure-*/unit-*.parquet")))
    assert not (tmp_path / "manifests" / "latest.json").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(again.stdout.splitlines()[-1])
    assert result["id"] == undisturbed.id
    # A worker may finish the unit in its hands before it notices that its driver is gone.
    assert 0 <= result["units_measured"] <= result["units"] - before < result["units"]


def test_a_server_that_misbehaves_becomes_rows_that_say_how(ray_cluster: None, tmp_path: Path) -> None:
    expected = {
        "/ok": "passed",
        "/html": "not_an_image",
        "/empty": "empty",
        "/silent": "timeout",
        "/drip": "timeout",
        "/reset": "connection",
        "/too-short": "wrong_length",
        "/garbage": "connection",
        "/busy?after=1000": "http_429",
        "/404": "http_404",
        "/451": "http_451",
        "/500": "http_500",
        "/loop": "too_many_redirects",
        "/endless": "too_large",
        "/bomb": "too_large",
        "/chain?left=3": "duplicate_exact",
    }
    with Faults("0.0.0.0") as site:
        # Addresses of their own, since a host that says 429 is left alone.
        urls = {site.url(path, f"127.0.0.{number + 2}"): path for number, path in enumerate(expected)}
        (tmp_path / "urls.csv").write_text("\n".join(["url", *urls, ""]))
        patience = {"timeout_s": 0.5, "total_timeout_s": 2, "retries": 1, "backoff_s": 0.01, "max_bytes": 100_000}
        result = run(
            {"source": {"kind": "table", "path": str(tmp_path / "urls.csv")}, "output": str(tmp_path / "manifests")},
            fetch=patience | {"allow_private": True},
            rights={"signals": ["robots"]},
            licences={"unstated": "keep"},
            image_size=32,
            clip=None,
        )
        asked = dict(site.asked)
    assert {urls[uri]: reason for uri, reason in reasons(result).items()} == expected
    refusals = ("/busy", "/404", "/451")
    assert [asked[path] for path in refusals] == [1, 1, 1], "nobody is asked again who has refused"
    rows = {urls[row["uri"]]: row for row in Manifest.open(result.manifest).table().to_pylist()}
    assert len(rows["/chain?left=3"]["redirects"]) == 3
    assert {h["name"] for h in rows["/ok"]["headers"]} >= {"etag", "last-modified", "content-type"}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with seaweed(tmp_path_factory.mktemp("s3")) as server:
        yield server


def test_from_s3_to_s3(made: tuple[dict[str, Any], CurateResult], s3: S3, tmp_path: Path) -> None:
    fields = heap(tmp_path)
    for file in (tmp_path / "pictures").iterdir():
        s3.put("heap", f"pictures/{file.name}", file.read_bytes())
    s3.put("heap", "meta.csv", (tmp_path / "pictures.csv").read_bytes())
    job = tmp_path / "job.json"
    source = {"kind": "folder", "path": "s3://heap/pictures", "metadata": "s3://heap/meta.csv"}
    fields |= {"kind": "curate", "source": source, "output": "s3://heap/manifests"}
    (tmp_path / "optout.csv").write_text("uri\ns3://heap/pictures/opted out.png\n")
    job.write_text(json.dumps(fields))
    command = [sys.executable, "-m", "pipelines", "curate", str(job), "--json"]
    environment = os.environ | s3.environment
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["counts"] == made[1].counts
    assert result["reasons"] == made[1].reasons
    inspect = [sys.executable, "-m", "pipelines", "inspect", "s3://heap/manifests", "--json"]
    seen = subprocess.run(inspect, capture_output=True, text=True, check=True, env=environment)
    assert json.loads(seen.stdout)["reconciled"]
    assert not any(key.startswith("manifests/.work/staging") for key in s3.keys("heap"))
    part = s3.get("heap", result["manifest"].removeprefix("s3://heap/") + "/part-00000.parquet")
    (tmp_path / "part.parquet").write_bytes(part)
    assert pq.read_table(tmp_path / "part.parquet")["uri"][0].as_py().startswith("s3://heap/pictures/")
    assert s3.secret not in done.stdout + done.stderr


def test_a_frame_folder_in_a_bucket_is_one_input(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    frames = [encoded(noise(i)) for i in range(11)]
    for number, frame in enumerate(frames):
        s3.put("films", f"loops/walk/{number}.png", frame)
    s3.put("films", "loops/still.png", frames[0])
    inputs = FolderSource(path="s3://films/loops", sequences=True).inputs()
    assert inputs["uri"].to_pylist() == ["s3://films/loops/still.png", "s3://films/loops/walk/"]
    still, walk = Fetcher(FetchConfig())(inputs["location"].to_pylist())
    assert (still.data, walk.data) == (frames[0], pack(frames))
