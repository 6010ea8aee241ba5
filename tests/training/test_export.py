"""Exports are what they say: the same pictures, rows for themselves, and refused where they are not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curation.errors import UserError
from tests.training.test_bundle import describe
from training import network, parity, space
from training.bundle import DiffusionModel, load_bundle, write_bundle
from training.export import BUILDERS, Order, export
from training.export_job import ExportJob, Format, Limits
from training.exported import FILES, REPORT_FILE, ExportReport, load_exported, read_report
from training.objective import Prediction
from training.onnx_denoiser import (
    INPUTS,
    OUTPUT,
    AsUnet,
    OnnxDenoiser,
    Rows,
    TorchDenoiser,
    record,
    with_unet,
    write_graph,
)
from training.quantize import quantize
from training.sampling import SAMPLERS, SamplingParams, sample
from training.schedules import SigmoidSchedule
from training.text import TextEncoder
from training.unet import UnetConfig
from training.video import VideoUnetConfig

pytestmark = pytest.mark.slow  # networks are trained, in seconds each

CAPTIONS = ["a red circle", "a blue square", "a green circle"]


def build(
    tower: Path, prediction: Prediction = "sample", cross_attention: tuple[bool, ...] = (False, True)
) -> DiffusionModel:
    """An untrained network, by default with every kind of layer; its middle always attends."""
    torch.manual_seed(1)
    text = TextEncoder(tower)
    channels = (32,) * len(cross_attention)
    shape = UnetConfig(
        block_out_channels=channels, layers_per_block=1, attention_heads=2, cross_attention=cross_attention
    )
    unet = network.build(shape, channels=12, side=8, width=text.width).eval()
    return DiffusionModel(
        unet=unet, text=text, betas=SigmoidSchedule().betas(), prediction=prediction, image_size=16, patch_size=2
    )


def job(**changes: Any) -> ExportJob:
    """Little is compared; the network is untrained, so its pictures are noise and int8's limits are wide."""
    given = {
        "model": "here",
        "formats": ("int8",),
        "calibration": {"pictures": 3},
        "comparison": {"batches": 3, "pictures": 3},
        "limits": {"int8": {"min_psnr": 15, "max_row_error": 0.02}},
    }
    return ExportJob.model_validate({**given, **changes})


@pytest.fixture(scope="module")
def bundle(tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    info = describe().model_copy(
        update={"image_size": 16, "patch_size": 2, "captions": CAPTIONS, "sampling": SamplingParams(steps=4)}
    )
    write_bundle(folder, build(tower), info)
    return folder


@pytest.fixture(scope="module")
def model(bundle: Path) -> DiffusionModel:
    return load_bundle(bundle)


@pytest.fixture(scope="module")
def calls(model: DiffusionModel) -> list[Rows]:
    return record(model, CAPTIONS, [5, 6, 7], SamplingParams(steps=4))


@pytest.fixture(scope="module")
def report(bundle: Path) -> ExportReport:
    """The bundle is exported as ONNX and int8."""
    return export(bundle, bundle / "onnx", job())


def test_the_sampler_is_recorded_by_timestep(model: DiffusionModel, calls: list[Rows]) -> None:
    assert [sorted(set(call.timestep.tolist())) for call in calls] == [[999], [749], [499], [249]]
    assert all(len(call) == 6 for call in calls)  # with and without the prompt
    assert calls[0].x.shape == (6, 12, 8, 8)
    assert not np.array_equal(calls[0].x, calls[1].x)
    told = model.text.encode([*CAPTIONS, "", "", ""])
    np.testing.assert_array_equal(calls[3].states, told.states)
    np.testing.assert_array_equal(calls[3].mask, told.mask)
    np.testing.assert_array_equal(calls[3].pooled, told.pooled)


def test_the_graph_answers_as_torch_does_at_any_batch_size(
    report: ExportReport, bundle: Path, model: DiffusionModel, calls: list[Rows]
) -> None:
    checks = report.artifacts["onnx"].checks
    assert checks.parity.batch_sizes[0] == 1
    assert checks.parity.max_relative_error < 1e-5
    assert checks.parity.max_row_error < 1e-5
    assert checks.likeness.psnr > 50
    graph, torchs = OnnxDenoiser(bundle / "onnx" / FILES["onnx"]), TorchDenoiser(model)
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 33):
        rows = Rows.join(calls)[rng.integers(0, 24, size)]
        rows = replace(rows, x=rng.normal(size=rows.x.shape).astype(np.float32), timestep=rng.integers(0, 1000, size))
        np.testing.assert_allclose(graph.predict(rows), torchs.predict(rows), atol=2e-5)


def test_films_are_exported_and_drawn_as_torch_draws_them(tower: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    text = TextEncoder(tower)
    unet = network.build(VideoUnetConfig(preset="nano"), channels=12, side=8, width=text.width).eval()
    film = DiffusionModel(
        unet=unet,
        text=text,
        betas=SigmoidSchedule().betas(),
        prediction="sample",
        image_size=16,
        patch_size=2,
        space=space.build(2, frames=3),
    )
    few = {"image_size": 16, "patch_size": 2, "frames": 3, "captions": CAPTIONS, "sampling": SamplingParams(steps=2)}
    write_bundle(tmp_path / "bundle", film, describe().model_copy(update=few))
    report = export(tmp_path / "bundle", tmp_path / "bundle" / "onnx", job())
    assert report.inputs[0].shape == ["batch", 12, 3, 8, 8]
    assert set(report.artifacts) == {"onnx", "int8"}, report.refused
    checks = report.artifacts["onnx"].checks
    assert max(checks.parity.batch_sizes) > 1
    assert checks.parity.max_relative_error < 1e-5
    assert checks.parity.max_row_error < 1e-5
    drawn = sample(load_exported(tmp_path / "bundle"), CAPTIONS[:1], [3], SamplingParams(steps=2))
    assert drawn.shape == (1, 3, 16, 16, 3)


def test_every_input_counts(bundle: Path, report: ExportReport, calls: list[Rows]) -> None:
    graph = OnnxDenoiser(bundle / "onnx" / FILES["onnx"])
    rows = calls[0]
    before = graph.predict(rows)
    mask = rows.mask.copy()
    mask[:, 1] = ~mask[:, 1]
    for changed in (
        replace(rows, x=rows.x + 1), replace(rows, timestep=rows.timestep - 500), replace(rows, states=rows.states + 1),
        replace(rows, mask=mask), replace(rows, pooled=rows.pooled + 1),
    ):  # fmt: skip
        assert np.abs(graph.predict(changed) - before).max() > 1e-4


def test_onnxruntime_alone_runs_it(report: ExportReport, bundle: Path, calls: list[Rows], tmp_path: Path) -> None:
    """By what the report says of inputs and output, in a process that knows neither our code nor torch."""
    script = """
import json, sys
import numpy as np, onnxruntime
folder, inputs = sys.argv[1:]
report, given = json.load(open(folder + "/export.json")), np.load(inputs)
session = onnxruntime.InferenceSession(folder + "/" + report["artifacts"]["onnx"]["file"])
for port, had in zip(report["inputs"], session.get_inputs(), strict=True):
    assert (port["name"], port["shape"]) == (had.name, had.shape), had
    assert {"float32": "tensor(float)", "int64": "tensor(int64)", "bool": "tensor(bool)"}[port["dtype"]] == had.type
feed = {port["name"]: given[port["name"]].astype(port["dtype"]) for port in report["inputs"]}
np.save("out.npy", session.run([report["output"]["name"]], feed)[0])
meta = session.get_modelmeta().custom_metadata_map
assert meta["cleanplate.bundle_sha256"] == report["bundle_sha256"], meta
assert not {"torch", "training"} & set(sys.modules)
"""
    rows = Rows.join(calls)[:3]
    np.savez(tmp_path / "in.npz", **rows.feed())
    command = [sys.executable, "-I", "-c", script, str(bundle / "onnx"), str(tmp_path / "in.npz")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = OnnxDenoiser(bundle / "onnx" / FILES["onnx"], threads=1).predict(rows)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, atol=1e-6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pictures_by_onnxruntime_are_torchs(
    report: ExportReport, bundle: Path, model: DiffusionModel, sampler: Any
) -> None:
    """Every pixel within 2 of 255, guided and not."""
    outside = load_exported(bundle)
    for scale in (1.0, 2.5):
        params = SamplingParams(steps=4, sampler=sampler, guidance_scale=scale)
        ours = sample(model, CAPTIONS[:2], [1, 2], params).astype(int)
        theirs = sample(outside, CAPTIONS[:2], [1, 2], params).astype(int)
        assert np.abs(ours - theirs).max() <= 2
        assert ours.std() > 5  # not all grey


def test_a_picture_by_onnxruntime_does_not_depend_on_the_others(report: ExportReport, bundle: Path) -> None:
    outside = load_exported(bundle, threads=1)
    params = SamplingParams(steps=3)
    together = sample(outside, CAPTIONS, [1, 2, 3], params)
    assert (together[1] == sample(outside, CAPTIONS[1:2], [2], params)[0]).all()


def test_int8_is_smaller_static_and_alike(report: ExportReport, bundle: Path, calls: list[Rows]) -> None:
    import onnx

    made = report.artifacts["int8"]
    assert made.size < report.artifacts["onnx"].size / 2
    kinds = {node.op_type for node in onnx.load(bundle / "onnx" / made.file).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert "DynamicQuantizeLinear" not in kinds  # that one takes its range from the whole batch
    assert 0 < made.checks.parity.max_relative_error < 0.5
    assert made.checks.likeness.psnr < report.artifacts["onnx"].checks.likeness.psnr
    pictures = sample(load_exported(bundle, "int8"), CAPTIONS[:1], [0], SamplingParams(steps=4))
    assert pictures.shape == (1, 16, 16, 3)


def test_the_ends_of_the_network_stay_in_floats(report: ExportReport, bundle: Path) -> None:
    import onnx

    graph = onnx.load(bundle / "onnx" / FILES["int8"]).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    floats = [node for node in convolutions if made_by.get(node.input[0]) != "DequantizeLinear"]
    assert len(floats) == 2
    assert floats[0].input[0] == "x"
    assert floats[1].output[0] == OUTPUT
    assert len(convolutions) > 10


def test_ranges_come_from_the_calibration(
    bundle: Path, report: ExportReport, calls: list[Rows], tmp_path: Path, model: DiffusionModel
) -> None:
    """Calibrated on inputs a tenth as large as what comes, int8 is worse: it clips."""
    source = bundle / "onnx" / FILES["onnx"]
    rows, reference = Rows.join(calls), TorchDenoiser(model)
    errors = {}
    for name, share in (("right", 1), ("wrong", 0.1)):
        given = [replace(call, x=call.x * share, states=call.states * share) for call in calls]
        quantize(source, tmp_path / f"{name}.onnx", given, job().calibration)
        got = OnnxDenoiser(tmp_path / f"{name}.onnx").predict(rows)
        errors[name] = float(np.abs(got - reference.predict(rows)).mean())
    assert errors["wrong"] > 1.5 * errors["right"]


@pytest.mark.slow
def test_the_same_network_gives_the_same_bytes_without_this_machines_paths(
    bundle: Path, report: ExportReport, model: DiffusionModel, calls: list[Rows], tmp_path: Path
) -> None:
    """And weights beside the graph are the same weights."""
    import onnx

    path = tmp_path / "denoiser.onnx"
    write_graph(model, calls[0], path, about={}, inline_bytes=0)
    assert (tmp_path / "denoiser.onnx.data").stat().st_size > 10 * path.stat().st_size
    rows = calls[1]
    (here, there) = (OnnxDenoiser(bundle / "onnx" / FILES["onnx"]), OnnxDenoiser(path))
    np.testing.assert_array_equal(there.predict(rows), here.predict(rows))
    first, second = (onnx.load(bundle / "onnx" / FILES["onnx"]), onnx.load(path))
    assert [node.SerializeToString() for node in first.graph.node] == [n.SerializeToString() for n in second.graph.node]
    for data in (path.read_bytes(), (bundle / "onnx" / FILES["onnx"]).read_bytes()):
        assert b".py" not in data
        assert str(Path.home()).encode() not in data
    quantize(path, tmp_path / "small.onnx", calls, job().calibration)  # the weights are found there, too
    assert OnnxDenoiser(tmp_path / "small.onnx").predict(rows).shape == rows.x.shape


class Leaking:
    """A denoiser whose rows see their neighbours, as one that normalises over the batch does."""

    def __init__(self, inner: TorchDenoiser) -> None:
        self._inner = inner

    def predict(self, rows: Rows) -> np.ndarray:
        output = self._inner.predict(rows)
        return output + 1e-3 * (output.mean(axis=0, keepdims=True) - output)


class Positional(Leaking):
    """One whose rows know where they stand."""

    def predict(self, rows: Rows) -> np.ndarray:
        output = self._inner.predict(rows)
        return output * (1 + 1e-3 * np.arange(len(rows), dtype=np.float32)[:, None, None, None])


class Broken(Leaking):
    """One that overflows."""

    def predict(self, rows: Rows) -> np.ndarray:
        return self._inner.predict(rows) * np.float32(np.nan)


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Leaking, "influence of other rows"), (Positional, "influence of other rows"), (Broken, "relative error")],
)
def test_what_is_not_the_network_is_found_out(
    model: DiffusionModel, calls: list[Rows], kind: type[Leaking], said: str
) -> None:
    reference = TorchDenoiser(model)
    limits = ExportJob(model="x").limits.onnx

    def checks(denoiser: Any) -> parity.Checks:
        pictures = sample(model, CAPTIONS, [0, 1, 2], SamplingParams(steps=2))
        return parity.Checks(
            parity=parity.parity(denoiser, reference, Rows.join(calls), timesteps=1000, batches=3, seed=0),
            likeness=parity.likeness(model, denoiser, pictures, CAPTIONS, [0, 1, 2], SamplingParams(steps=2)),
        )

    found = checks(kind(reference)).failures(limits)
    assert any(failure.startswith(said) for failure in found), found
    sound = checks(reference)
    assert sound.failures(limits) == []
    assert (sound.parity.max_abs_error, sound.likeness.psnr, sound.likeness.picture_error) == (0, 100, 0)


def test_the_measures_of_pictures(model: DiffusionModel) -> None:
    """Against figures worked out by hand: one level of 255 everywhere is 48.13 dB; other pictures are 1.4 away."""
    reference = sample(model, CAPTIONS, [0, 1, 2], SamplingParams(steps=2))
    one_off = (reference.astype(int) + np.where(reference > 127, -1, 1)).astype(np.uint8)
    found = parity.compare(one_off, reference, SamplingParams(steps=2))
    assert found.psnr == pytest.approx(20 * np.log10(255), abs=1e-9)
    spread = float(np.sqrt(((reference - reference.mean(axis=0)) ** 2).mean()))
    assert found.picture_error == pytest.approx(1 / spread)
    rng = np.random.default_rng(0)
    pairs = [rng.integers(0, 256, (200, 4, 4, 3)).astype(np.uint8) for _ in range(2)]
    assert parity.compare(*pairs, SamplingParams()).picture_error == pytest.approx(2**0.5, rel=0.03)


class Again:
    """Builds the graph by copying one that was made before: an export of torch's takes ten seconds."""

    def __init__(self, source: Path) -> None:
        self._source = source

    def build(self, order: Order) -> OnnxDenoiser:
        shutil.copy(self._source, order.folder / FILES["onnx"])
        return OnnxDenoiser(order.folder / FILES["onnx"])


@pytest.fixture
def built(report: ExportReport, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILDERS, "onnx", lambda: Again(bundle / "onnx" / FILES["onnx"]))


STRICT = {"int8": {"min_psnr": 99.0}}


def test_what_is_over_its_limit_is_not_kept(bundle: Path, built: None, tmp_path: Path) -> None:
    strict = export(bundle, tmp_path / "e", job(limits=STRICT))
    assert list(strict.artifacts) == ["onnx"]
    assert "limit 99" in strict.refused["int8"][0]
    assert {path.name for path in (tmp_path / "e").iterdir()} == {FILES["onnx"], REPORT_FILE}
    assert read_report(tmp_path / "e") == strict
    assert strict.tags()["export.formats"] == "onnx"
    assert strict.tags()["export.onnx.parity"].startswith("passed: relative error")
    with pytest.raises(UserError, match="holds no int8"):
        load_exported(bundle, "int8", folder=tmp_path / "e")


def test_force_keeps_it_and_says_so(bundle: Path, built: None, tmp_path: Path) -> None:
    forced = export(bundle, tmp_path / "e", job(limits=STRICT, force=True))
    assert not forced.refused
    assert "limit 99" in forced.artifacts["int8"].forced[0]
    assert forced.tags()["export.int8.parity"].startswith("failed: PSNR")
    assert forced.tags()["export.onnx.parity"].startswith("passed")
    assert load_exported(bundle, "int8", folder=tmp_path / "e")


def test_nothing_is_built_from_a_graph_that_is_refused(bundle: Path, built: None, tmp_path: Path) -> None:
    good = export(bundle, tmp_path / "e", job(formats=("onnx",)))
    bad = export(bundle, tmp_path / "e", job(limits={"onnx": {"max_relative_error": 0.0}}))
    assert not bad.artifacts
    assert set(bad.refused) == {"onnx", "int8"}
    assert read_report(tmp_path / "e") == good  # as it was
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_a_newer_export_replaces_the_older_and_nothing_else(bundle: Path, built: None, tmp_path: Path) -> None:
    shutil.copytree(bundle / "onnx", tmp_path / "e")
    assert (tmp_path / "e" / FILES["int8"]).exists()
    (tmp_path / "e" / "mine.txt").write_text("x")
    export(bundle, tmp_path / "e", job(formats=("onnx",)))
    assert {path.name for path in (tmp_path / "e").iterdir()} == {FILES["onnx"], REPORT_FILE, "mine.txt"}
    with pytest.raises(UserError, match="something else than an export"):
        export(bundle, tmp_path, job())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / REPORT_FILE).unlink(), "no export at"),
        (lambda folder: (folder / REPORT_FILE).write_text("{}"), "is damaged"),
        (lambda folder: (folder / FILES["onnx"]).write_bytes(b"x"), "was changed"),
        (lambda folder: (folder / FILES["onnx"]).unlink(), "is missing"),
        (lambda folder: change(folder, "bundle_sha256", "0" * 64), "from another bundle"),
        (lambda folder: change(folder, "schema_version", 2), "newer cleanplate"),
    ],
)
def test_a_damaged_export_is_refused(
    report: ExportReport, bundle: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in (bundle / "onnx").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    assert load_exported(bundle, folder=folder)
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_exported(bundle, folder=folder)


def change(folder: Path, field: str, value: Any) -> None:
    raw = json.loads((folder / REPORT_FILE).read_text())
    (folder / REPORT_FILE).write_text(json.dumps({**raw, field: value}))


def test_a_file_that_is_no_graph_of_ours_is_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    (tmp_path / "x.onnx").write_bytes(b"no graph")
    port = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("a", "b")]
    graph = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "g", port[:1], port[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "y.onnx")
    for name, message in (("x", "is no ONNX graph"), ("y", "takes a, not x, timestep"), ("z", "is no ONNX graph")):
        with pytest.raises(UserError, match=message):
            OnnxDenoiser(tmp_path / f"{name}.onnx")


def test_an_example_of_one_row_is_refused(model: DiffusionModel, calls: list[Rows], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two rows"):
        write_graph(model, calls[0][:1], tmp_path / "x.onnx", about={})


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_tensorrt_without_a_gpu_is_refused_before_anything_is_made(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="torch sees none") as caught:
        export(bundle, tmp_path / "e", job(formats=("tensorrt",)))
    assert "NVIDIA GPU" in str(caught.value.remedy)
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_a_tensorrt_engine_keeps_its_limits(bundle: Path, built: None, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt")
    made = export(bundle, tmp_path / "e", job(formats=("tensorrt",), half=False)).artifacts["tensorrt"]
    assert made.checks.parity.max_relative_error < 0.02


@pytest.mark.slow
def test_a_flows_timesteps_are_not_whole(tower: Path, tmp_path: Path) -> None:
    model = build(tower, "flow")
    params = SamplingParams(steps=3, sampler="heun", guidance_scale=1)
    calls = record(model, CAPTIONS, [1, 2, 3], params)
    assert calls[0].timestep.dtype == np.float32
    write_graph(model, calls[0], tmp_path / "flow.onnx", about={})
    graph = OnnxDenoiser(tmp_path / "flow.onnx")
    found = parity.parity(graph, TorchDenoiser(model), Rows.join(calls), timesteps=1000, batches=3, seed=0)
    assert found.max_relative_error < 1e-5
    half = replace(calls[0], timestep=np.full(3, 0.5, np.float32))
    assert np.abs(graph.predict(half) - TorchDenoiser(model).predict(half)).max() < 1e-5
    pictures = [sample(with_unet(model, unet), CAPTIONS, [1, 2, 3], params) for unet in (model.unet, AsUnet(graph))]
    assert np.abs(pictures[0].astype(int) - pictures[1]).max() <= 2


def test_formats_and_limits_of_a_job() -> None:
    assert ExportJob(model="m", formats=("int8", "onnx", "int8")).formats == ("onnx", "int8")
    assert Limits().max_relative_error is None
    kinds: set[Format] = set(FILES)
    assert kinds == set(BUILDERS) == set(type(ExportJob(model="m").limits).model_fields)
    assert INPUTS == ("x", "timestep", "states", "mask", "pooled")
