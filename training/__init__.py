"""Training: from a manifest's kept rows to a bundle, a model that serving can rebuild and anyone can check.

What is here: the job (`job`), the mathematics (`schedules`, `objective`, `timesteps`, `randomness`, `ema`, `averages`,
`sampling`; `pairs` says what cannot go together), the network and its conditioning (`unet`, `text`, `captions`), which
rows are trained on and what is told of them afterwards (`consent`, `roster`, `merkle`, `exposure`), the data in memory
(`data`), the loop (`loop`) with its checkpoints (`checkpoint`) and how to start from another run's (`retraining`), the
contract with serving (`bundle`, `card`), MLflow (`tracking`), and the Ray Train glue (`launch`) with what comes before
it (`prepare`, `memory`). Then what is done with a model: `evaluate` with its `distances` and `features`,
`memorization`, distillation (`distill` is its mathematics, `student`, `distill_loop`, `distill_job`, `distillation`),
and export (`export_job`, `export`, `exported`, `onnx_denoiser`, `parity`, `quantize`, `tensorrt_engine`).
`run_record` is what a run's folder remembers of it; `dependencies` are the models that a model was made from.

May import: `curation.manifest`, `curation.takedowns`, `curation.errors`, `curation.storage`,
`curation.torchvision_ops`, and nothing else of ours. Only `launch` knows Ray and only `tracking` knows MLflow; the
mathematics and the loop run in a plain process. `bundle`, `sampling`, `text`, `unet`, `schedules`, `objective` and
`tracking` are what serving uses.

To add a noise schedule: a config class with `kind` and `betas()` in `schedules.py`, and its name in the union there.
To add a prediction type: a branch in each conversion of `objective.py`. To add a U-Net preset: a row in the table of
`unet.py`. To add a sampler: its name in `sampling.SAMPLERS` and a branch in `sampling._scheduler`. To weigh the loss: a
function in `objective.py` and a field of `job.LossConfig`. Anything random: a purpose in `randomness.Purpose`, never a
generator with a state.
"""
