"""The Ray Serve application.

`build` is the import path of Serve's own tools (`serve run serving.app:build model=models:/drawings@champion`, or
`import_path: serving.app:build` with `args:` in a config file); `run` deploys a job on the Ray cluster that this
process is connected to, and `stop` takes it down.

No `from __future__ import annotations` here: Serve reads `build`'s annotation to turn `args` into a `ServeJob`, and it
does not resolve strings.
"""

import logging
import os
import re
import socket
import time
from typing import Any

import httpx
import ray
from ray import serve
from ray.serve.config import BackpressureConfig, HTTPOptions
from ray.serve.schema import LoggingConfig

from curation import storage
from curation.errors import UserError
from serving import identity, keys, traces
from serving.access import Access
from serving.canary_desk import actors
from serving.doorway import Doorway
from serving.handle import SamplerHandle
from serving.ingress import Gateway, watched
from serving.job import GATEWAY, SAMPLER, ServeJob, plan
from serving.keys import KeysConfig
from serving.replica import Sampler

_QUIET = LoggingConfig(log_level="WARNING", enable_access_log=False)


def build(args: ServeJob) -> serve.Application:
    """The application of a job: a gateway in front of the sampler's replicas.

    Under Serve's own tools, the address, the port and the path are theirs to set, and the job's are not read.
    """
    sampler: Any = serve.deployment(
        Sampler,
        name=SAMPLER,
        **_scale(args),
        ray_actor_options={"num_cpus": args.cpus_per_replica, "num_gpus": args.gpus_per_replica},
        # The replica counts its queue itself (serving.replica); what it refuses, and `describe`, must get through.
        max_ongoing_requests=args.max_ongoing_requests,
        max_queued_requests=args.max_ongoing_requests,
        max_constructor_retry_count=2,
        deployment_actors=actors(args),
        **_patience(args),
        logging_config=_QUIET,
    )

    def asgi() -> Access:
        # Runs in the gateway's replica, where the sampler's handle can be had.
        from serving.gateway import create_app

        name = serve.get_replica_context().app_name
        handle = serve.get_deployment_handle(SAMPLER, app_name=name)
        sleeps = args.autoscaling is not None and args.autoscaling.min_replicas == 0
        doorway = Doorway()
        api = create_app(SamplerHandle(handle, (lambda: _asleep(name)) if sleeps else None), args, doorway)
        return watched(api, args, doorway)

    gateway: Any = serve.deployment(
        serve.ingress(asgi)(Gateway),
        name=GATEWAY,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=args.max_ongoing_requests,
        max_queued_requests=args.max_ongoing_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1.0),
        **_patience(args),
        logging_config=_QUIET,
    )
    application: serve.Application = gateway.bind(sampler.bind(args))
    return application


def _scale(job: ServeJob) -> dict[str, Any]:
    if job.autoscaling is None:
        return {"num_replicas": job.replicas}
    return {"autoscaling_config": job.autoscaling.for_serve()}


def _patience(job: ServeJob) -> dict[str, Any]:
    """A replica that is to go gets no new requests, and ends when those under way have, however long these may take;
    one that is gone already is replaced soon."""
    return {
        "graceful_shutdown_timeout_s": job.request_timeout_s + 5,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 2.0,  # also how soon a killed one is missed
        "health_check_timeout_s": 30.0,
    }


def _asleep(application: str) -> bool:
    """Whether no replica of the sampler runs; one that is ending must not be asked, which would start another."""
    states = serve.status().applications[application].deployments[SAMPLER].replica_states
    return not any(count for state, count in states.items() if state == "RUNNING")


def check(job: ServeJob) -> None:
    """Finds what would keep the application from starting, before it is started.

    Raises:
        UserError: a model, alias or CLIP model that is not there, or more CPUs or GPUs than the cluster has.
    """
    from training.tracking import resolve

    if isinstance(job.keys, KeysConfig):
        keys.read(job.keys.file)
    traces.check(job.observability)
    resolve(job.model, tracking_uri=job.tracking_uri, cache=job.cache)
    job.prompts.check(job.clip)
    job.safety.check(job.clip)
    needed, there = plan(job), ray.cluster_resources()
    for resource, field in (("CPU", "cpus"), ("GPU", "gpus")):
        if needed[field] > there.get(resource, 0.0):
            raise UserError(
                f"{job.most_replicas} replicas need {needed[field]:g} {resource}s, the cluster has "
                f"{there.get(resource, 0.0):g}",
                field=f"{field}_per_replica",
                remedy=f"lower replicas or {field}_per_replica, or use a larger cluster",
            )


def run(job: ServeJob, *, ready_timeout_s: float = 120.0) -> str:
    """Deploys the job on the Ray cluster this process is connected to and waits until it answers.

    Args:
        job: what to serve.
        ready_timeout_s: seconds to wait for readiness after Serve has started the replicas.

    Returns:
        The URL that `/v1/…` is appended to.

    Raises:
        UserError: as `check`, a port that is taken, or replicas that cannot load the model.
    """
    job = _rooted(job)
    check(job)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if _serve_runs() and not serve.status().applications:
        serve.shutdown()  # left from an earlier job, with that one's host and port
    if not _serve_runs():
        check_port(job)
    serve.start(
        http_options=HTTPOptions(
            host=job.host,
            port=job.port,
            # The gateway answers 504 by itself; this one only ends what the gateway could not.
            request_timeout_s=job.request_timeout_s + 30,
            keep_alive_timeout_s=60,
        ),
        logging_config=_QUIET,
    )
    try:
        serve.run(build(job), name=job.name, route_prefix=job.route_prefix)
    except RuntimeError as error:
        reason = _reason(job, str(error))
        stop(job)
        raise UserError(
            f"the replicas did not start: {reason}", field="model", remedy="mend that and serve again"
        ) from error
    _await_ready(job, ready_timeout_s)
    return job.url


def stop(job: ServeJob) -> None:
    """Takes the application down. Serve itself stays with its cluster, for `run` to find and replace."""
    serve.delete(job.name)


def _rooted(job: ServeJob) -> ServeJob:
    """The job with its relative paths made absolute: a replica may run in another folder than the driver."""
    from training.tracking import tracking_uri

    uri, model = tracking_uri(job.tracking_uri), job.model
    if uri.startswith("sqlite:///"):
        uri = "sqlite:///" + os.path.abspath(uri.removeprefix("sqlite:///"))
    if os.path.isdir(model):
        model = os.path.abspath(model)
    cache = None if job.cache is None else os.path.abspath(job.cache)
    ledger = None if job.ledger is None else storage.absolute(job.ledger)
    watching = job.observability
    if watching.log_file is not None:
        watching = watching.model_copy(update={"log_file": os.path.abspath(watching.log_file)})
    update: dict[str, Any] = {"tracking_uri": uri, "model": model, "cache": cache, "ledger": ledger}
    update["prompts"] = job.prompts.rooted()
    update["attribution"] = job.attribution.rooted()
    update["observability"] = watching
    if job.records is not None:
        update["records"] = job.records.model_copy(update={"folder": storage.absolute(job.records.folder)})
    if job.jobs is not None:
        update["jobs"] = job.jobs.model_copy(update={"folder": storage.absolute(job.jobs.folder)})
    if isinstance(job.keys, KeysConfig):
        usage = job.keys.usage or f"{job.keys.file}.usage"
        places = {"file": storage.absolute(job.keys.file), "usage": storage.absolute(usage)}
        update["keys"] = job.keys.model_copy(update=places)
    return job.model_copy(update=update | identity.rooted(job.credentials, job.watermark))


def _serve_runs() -> bool:
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True


def check_port(job: ServeJob) -> None:
    """Raises UserError when something else listens already; Serve itself would only log it and retry."""
    family = socket.AF_INET6 if ":" in job.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((job.host, job.port))
        except OSError as error:
            raise UserError(
                f"cannot listen on {job.host}:{job.port} ({error.strerror})",
                field="port",
                remedy="end what listens there, or give another port",
            ) from error


def _await_ready(job: ServeJob, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    reason = "no answer"
    with httpx.Client(timeout=10, trust_env=False) as client:
        while time.monotonic() < deadline:
            try:
                answer = client.get(f"{job.url}/v1/health/ready")
                if answer.status_code == 200:
                    return
                reason = f"status {answer.status_code}"
            except httpx.TransportError as error:
                reason = str(error)
            time.sleep(0.1)
    stop(job)
    raise UserError(
        f"nothing became ready at {job.url} within {timeout_s:g} s ({reason})",
        field="port",
        remedy="if Serve runs in this cluster already, it keeps its first host and port: serve there, or shut it down",
    )


def _reason(job: ServeJob, message: str) -> str:
    """Why the replicas did not start: the exception at the end of the traceback that Serve keeps of one."""
    deployments = serve.status().applications[job.name].deployments
    lines = [line.strip() for state in deployments.values() for line in state.message.splitlines()]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return raised[-1] if raised else message
