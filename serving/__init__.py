"""Serving: a model version from the registry, behind OpenAI's Images API, on Ray Serve.

May import: `curation` (CLIP, safety, errors, the takedown ledger) and of `training` only what rebuilds a model from a
bundle and samples it (`bundle`, `sampling`, `stepper`), what runs its network by other libraries (`onnx_denoiser` and
its neighbours), what finds it in the registry (`tracking`) and the index of what it was trained on
(`training.neighbours`); never the training loop.
Nothing of `pipelines`. FastAPI stands in `gateway` and its rooms (`serving.http`), Ray in `replica`, `handle`,
`canary_desk` and `app`;
everything else runs in a plain process, so that `cleanplate generate` without a server and the server make the same
bytes with the same code.

A request's way: `gateway` (HTTP) → `admission` (what it asks for, what it costs, whether it may) → `replica` →
`service` → `generator` (begin) → `engine` (steps, in passes that requests share) → `generator` (decode, `guard`,
encode) → `gateway` (answer). In the engine, `fairness` says whose turn it is, `trajectory` is one picture under way,
`submission` one request; `backends` runs the network and knows whether passes may be shared.

What a picture carries: `watermark` is the mark in its pixels (`carriers` the mathematics), `credentials` the signed
statement in its file, `identity` the certificate and keys for both (`certificates` makes some), `marking` puts both on,
in `finishing`, and `verification` reads them, for `cleanplate verify` and `/v1/images/verify`.

What a picture is like: `neighbours` looks for it in the index, names training pictures and says what is a near copy
(`nearness` is what a job says about that); `revoked` asks the takedown ledgers again what may not be named, `credit`
adds up what was served. Near copies are drawn again in rounds, by `service` and `generator` alike (`finishing.Redraw`).

Which version answers: `slots` decides (a state machine), `versions` does it (follows the aliases, loads beside what
answers), `registered` finds versions in the registry, `selftest` compares what one draws with what it drew when it was
registered, `rollout` is what a job says about all that. `canary` says who is answered by a second version and when it
goes back (`canary_desk` counts), `autoscaling` how many replicas there are, `handle` asks another one where
one went away.

What is told of all that: `context` is the request at hand, `logs`, `metrics` and `traces` what is told of it, `watch`
and `access` stand around every request in a sampler and in a gateway, `ingress` asks all processes and ends them,
`doorway` is who is inside; `observability` is what a job says about it, `dashboard` shows it.

To add:
- a field of the request: `api.GenerationRequest`, then what it means in `admission.admit` (which refuses what cannot be
  honoured: no field is ignored in silence), then `generator`;
- an endpoint: a room of `serving.http`, and its line in `gateway`; its models in `api`;
- a backend: `backends.OPENERS`;
- a limit: `admission.Limits`;
- a check of the pictures: a scorer in `guard`, its setting in `safety`; of prompts: `prompts`;
- a fact of how a picture came about: `credentials.Origin`, and where `marking` fills it in;
- a reason not to serve a version: `takedowns`, which `generator.load` asks in every replica, and `versions` while it
  answers (`ledgers` keeps what was read for it);
- a metric: `metrics`, and a panel of `dashboard.ROWS`; its labels take few values, and none of a client's making;
- a setting of the deployment: `job.ServeJob`, and where `app.build` uses it.
"""
