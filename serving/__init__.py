"""Serving: a model version from the registry, behind OpenAI's Images API, on Ray Serve.

May import: `curation` (CLIP, safety, errors, the takedown ledger) and of `training` only what rebuilds a model from a
bundle and samples it (`bundle`, `sampling`) and what finds it in the registry (`tracking`); never the training loop.
Nothing of `pipelines`. FastAPI stands in `gateway`, Ray in `replica` and `app`; everything else runs in a plain
process, so that `cleanplate generate` without a server and the server make the same bytes with the same code.

A request's way: `gateway` (HTTP) → `admission` (what it asks for, what it costs, whether it may) → `replica` (one at a
time) → `generator` (sample) → `guard` (look at the pictures) → `generator` (encode) → `gateway` (answer).

To add:
- a field of the request: `api.GenerationRequest`, then what it means in `admission.admit` (which refuses what cannot be
  honoured: no field is ignored in silence), then `generator`;
- an endpoint: `gateway`; its models in `api`;
- a limit: `admission.Limits`;
- a check of the pictures: `guard`;
- a reason not to serve a version: `takedowns`, which `generator.load` asks in every replica;
- a setting of the deployment: `job.ServeJob`, and where `app.build` uses it.
"""
