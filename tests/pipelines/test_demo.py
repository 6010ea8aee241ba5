"""The whole road, once, at a tiny budget: the demo's own steps, its summary and its picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.dataset as pads
import pytest
from PIL import Image

pytestmark = [pytest.mark.ray, pytest.mark.slow]
BUDGET = (
    *("train.images=320", "train.checkpoint_every=160", "train.sample={steps: 2, prompts: [cactus]}"),
    *("serve.port=8123", "serve.defaults={steps: 2, guidance_scale: 2.5, sampler: ddim}"),
)


def test_the_demo_ends_with_a_picture_and_books_that_balance(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines", "demo", "--out", str(tmp_path / "demo"), "--json"]
    command += [part for override in BUDGET for part in ("--set", override)]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads((tmp_path / "demo" / "summary.json").read_text())

    rows = pads.dataset(result["manifest"], format="parquet", exclude_invalid_files=True).to_table(
        columns=["uri", "decision", "reason"]
    )
    assert Counter(rows["decision"].to_pylist()) == {d: n for d, n in result["counts"].items() if n}
    assert Counter(rows["reason"].to_pylist()) == result["reasons"]
    files = {path.name for path in (tmp_path / "demo" / "pictures").iterdir()}
    assert set(rows["uri"].to_pylist()) == files
    assert len(rows) == len(files) == result["inputs"]
    assert {"opted_out", "licence_unstated", "licence_not_allowed", "duplicate_exact"} < result["reasons"].keys()
    assert result["counts"]["failed"] == 6

    assert result["images_seen"] == 320
    assert [answer["prompt"] for answer in result["answers"]][:2] == ["red apple", "cactus"]
    assert all(len(answer["images"]) == 4 for answer in result["answers"])
    assert 0 <= result["retrieval_top1"] <= 1
    with Image.open(result["grid"]) as grid:
        assert min(grid.size) > 500

    # Straight from the registry, without a server; the one registered model is found by itself.
    command = [sys.executable, "-m", "pipelines", "generate", "red apple", "--seed", "3", "--json", "--steps", "2"]
    command += ["--out", str(tmp_path / "apple.png")]
    generated = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert json.loads(generated.stdout)["source"] == "registry"
    with Image.open(tmp_path / "apple.png") as apple:
        assert apple.size == (32, 32)
