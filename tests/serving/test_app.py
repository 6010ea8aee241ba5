"""The whole of it: a version in a real registry, Ray Serve, HTTP, the OpenAI client."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from curation.clip import ClipConfig
from curation.errors import UserError
from serving import client
from serving.canary import place
from serving.job import ServeJob
from serving.jobs import JobsConfig
from serving.observability import ObservabilityConfig
from serving.records import RecordsConfig
from serving.rollout import CanaryConfig, RolloutConfig
from serving.selftest import TAG, Drawn
from tests.bench.kills import processes
from tests.ports import free_port
from tests.serving import tiny
from training.bundle import INFO_FILE

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def job(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> ServeJob:
    """A job whose model is registered in an SQLite registry of its own."""
    from training.tracking import register

    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder}/mlflow.db"
    register(str(bundle), "tiny", alias="champion", tracking_uri=uri)
    return ServeJob(
        model="models:/tiny@champion",
        tracking_uri=uri,
        cache=str(folder / "cache"),
        port=free_port(),
        max_queued_requests=1,
        request_timeout_s=120,
        rollout=RolloutConfig(poll_s=0.2, canary=CanaryConfig(alias="next", share=0.5, min_requests=5, max_slowdown=1)),
        observability=ObservabilityConfig(log_file=str(folder / "log.jsonl")),
        records=RecordsConfig(folder=str(folder / "records")),
        jobs=JobsConfig(folder=str(folder / "jobs")),
    )


@pytest.fixture(scope="module")
def url(job: ServeJob, ray_cluster: None) -> Iterator[str]:
    from serving import app

    yield app.run(job)
    app.stop(job)


def pixels(encoded: str | None) -> bytes:
    with Image.open(io.BytesIO(base64.b64decode(encoded or ""))) as picture:
        return picture.convert("RGB").tobytes()


def test_the_openai_client_gets_the_same_pixels_twice(url: str) -> None:
    import openai

    with openai.OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0) as api:
        answers = [
            api.images.generate(
                prompt="a red apple",
                model="tiny",
                n=2,
                size="auto",
                extra_body={"seed": 7, "num_inference_steps": 2, "sampler": "dpmsolver++", "guidance_scale": 3.0},
            )
            for _ in range(2)
        ]
        assert [model.id for model in api.models.list()] == ["tiny"]
        assert api.models.retrieve("tiny").owned_by == "cleanplate"
        with pytest.raises(openai.BadRequestError) as refused:
            api.images.generate(prompt="a", size="1024x1024")
        assert (refused.value.param, refused.value.code) == ("size", "unsupported_value")
        with pytest.raises(openai.NotFoundError):
            api.images.generate(prompt="a", model="dall-e-3")
        stream = api.images.generate(
            prompt="a red apple",
            stream=True,
            partial_images=2,
            extra_body={"seed": 7, "num_inference_steps": 6},
        )
        told = [event.type.removeprefix("image_generation.") for event in stream]
        assert told == ["partial_image", "partial_image", "completed"]
    pictures = [[pixels(datum.b64_json) for datum in answer.data or []] for answer in answers]
    assert pictures[0] == pictures[1]
    assert len(set(pictures[0])) == 2
    assert len(pictures[0][0]) == 16 * 16 * 3


def test_a_picture_is_fetched_later_and_drawn_again_by_its_id(url: str) -> None:
    with httpx.Client(base_url=url, timeout=60) as http:
        body = {"prompt": "a red apple", "num_inference_steps": 2, "response_format": "url"}
        taken = http.put("/v1/images/jobs/poster-7", json=body)
        assert taken.status_code == 201
        while http.get(taken.headers["location"]).json()["status"] in ("queued", "running"):
            time.sleep(0.05)
        (datum,) = http.get("/v1/images/jobs/poster-7/result").json()["data"]
        assert http.get(datum["url"]).content.startswith(b"\x89PNG")
        again = http.post(f"/v1/images/{datum['id']}/reproduce", json={"prompt": "a red apple"})
        assert again.json()["reproduction"]["pixels_equal"] is True


def test_the_server_and_the_plain_process_make_the_same_picture(url: str, job: ServeJob) -> None:
    import torch

    from serving.api import GenerationRequest
    from serving.generator import load

    threads = torch.get_num_threads()
    torch.set_num_threads(job.cpu_threads)
    try:
        here = load(job).generate(GenerationRequest(prompt="a boat", seed=3, num_inference_steps=2))
    finally:
        torch.set_num_threads(threads)
    there = client.generate(url, "a boat", seed=3, num_inference_steps=2)
    assert there.data[0].pixels_sha256 == here.pictures[0].pixels_sha256
    assert there.data[0].credentials
    assert (there.model, there.model_version) == ("tiny", "1")


def test_health_and_models(url: str) -> None:
    assert httpx.get(f"{url}/v1/health/live").json()["status"] == "live"
    ready = httpx.get(f"{url}/v1/health/ready").json()
    standing = ready.pop("rollout")
    expected = {"status": "ready", "model": "tiny", "version": "1", "backend": "onnx-fp32", "exact": True}
    assert ready == expected
    (held,) = standing["versions"]
    assert (held["version"], held["state"], held["aliases"]) == ("1", "live", ["champion"])
    assert standing["problem"] is None
    (entry,) = httpx.get(f"{url}/v1/models").json()["data"]
    assert (entry["version"], entry["alias"], entry["manifest_id"]) == ("1", "champion", "m" * 64)
    assert httpx.get(f"{url}/v1/guide").json()["vocabulary"]["captions"] == ["a red apple"]
    assert f'href="{httpx.URL(url).path.rstrip("/")}/page/page.css"' in httpx.get(f"{url}/").text


def test_bad_bodies_are_answered_in_shape_through_the_proxy(url: str) -> None:
    for answer, status in (
        (httpx.post(f"{url}/v1/images/generations", content=b"{"), 400),
        (httpx.post(f"{url}/v1/images/generations", json={"prompt": "a", "colour": "red"}), 400),
        (httpx.post(f"{url}/v1/images/generations", content=b" " * 300_000), 413),
        (httpx.get(f"{url}/v1/images/generations"), 405),
        (httpx.get(f"{url}/v1/nothing"), 404),
    ):
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_one_request_too_many_is_told_when_to_come_again(url: str) -> None:
    """One is sampled and one waits: of six at once at least three must be refused, and at least two served."""
    answers: list[httpx.Response] = []

    def ask() -> None:
        body = {"prompt": "a", "num_inference_steps": 100}
        answers.append(httpx.post(f"{url}/v1/images/generations", json=body, timeout=60))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = sorted(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 2
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "overloaded"


def test_a_client_that_leaves_frees_the_sampler(url: str) -> None:
    long = {"prompt": "a", "num_inference_steps": 100, "n": 10}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/images/generations", json=long, timeout=0.5)
    streamed = long | {"stream": True, "partial_images": 3}
    with httpx.stream("POST", f"{url}/v1/images/generations", json=streamed, timeout=60) as stream:
        assert next(stream.iter_lines()) == "event: image_generation.partial_image"
    # Ten pictures of a hundred steps take far longer than the next request may wait.
    answer = client.generate(url, "a", num_inference_steps=1, timeout_s=30)
    assert answer.timings.queue_ms < 5_000


def scraped(url: str) -> dict[str, float]:
    """The server's metrics, summed over all labels."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            found[sample.name] += sample.value
    return dict(found)


@pytest.mark.parametrize("model", ["models:/tiny@challenger", "models:/tiny/9", "models:/nobody@champion", "./nowhere"])
def test_a_model_that_is_not_there_is_said_before_serve_starts(job: ServeJob, ray_cluster: None, model: str) -> None:
    from serving import app

    with pytest.raises(UserError) as caught:
        app.run(job.model_copy(update={"model": model, "name": "other"}))
    assert caught.value.field == "model"


def test_the_alias_moves_while_the_server_answers(url: str, job: ServeJob, bundle: Path, tmp_path: Path) -> None:
    """To a version that fails its self-test, then to a good one, then back; no answer fails or is of the bad one."""
    import torch

    from serving import selftest
    from training.tracking import register, set_alias

    def registered(name: str, tags: dict[str, str]) -> str:
        """The bundle once more: another file in it makes another version."""
        copy = tmp_path / name
        shutil.copytree(bundle, copy)
        info = json.loads((copy / INFO_FILE).read_text()) | {"name": name}
        (copy / INFO_FILE).write_text(json.dumps(info))
        made = register(str(copy), "tiny", alias=None, tracking_uri=job.tracking_uri, extra_tags=tags)
        return made.version

    def until(found: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Draws picture after picture until the server's standing is this; returns it."""
        while True:
            answers.append(client.generate(url, "a", num_inference_steps=1).model_version)
            ready: dict[str, Any] = httpx.get(f"{url}/v1/health/ready").json()
            if found(ready):
                return ready

    answers: list[str] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(job.cpu_threads)
    try:
        drawn = selftest.tags_of(str(bundle))
    finally:
        torch.set_num_threads(threads)
    other = Drawn.model_validate_json(drawn[TAG + "onnx-fp32"]).model_copy(update={"sha256": "0" * 64})
    good = registered("good", drawn)
    bad = registered("bad", {TAG + "onnx-fp32": other.model_dump_json()})
    try:
        set_alias("tiny", "champion", bad, tracking_uri=job.tracking_uri)
        standing = until(lambda ready: ready["rollout"]["problem"] is not None)
        assert "fails its self-test" in standing["rollout"]["problem"]
        assert standing["version"] == "1"
        set_alias("tiny", "champion", good, tracking_uri=job.tracking_uri)
        standing = until(lambda ready: ready["version"] == good)["rollout"]
        (live,) = (held for held in standing["versions"] if held["state"] == "live")
        assert (standing["problem"], live["self_test"]) == (
            None,
            "the bytes that onnx-fp32 drew when it was registered",
        )
    finally:
        set_alias("tiny", "champion", "1", tracking_uri=job.tracking_uri)
        until(lambda ready: ready["version"] == "1")
    assert [version for version, _ in groupby(answers)] in (["1", good, "1"], ["1", good], ["1"])


def test_a_slower_challenger_answers_its_callers_until_it_is_sent_back(
    url: str, job: ServeJob, tiny_clip: ClipConfig, tmp_path: Path
) -> None:
    from serving.registered import RETURNED
    from training.tracking import find, register

    def asked(user: str, **fields: Any) -> str:
        body = {"prompt": "a", "user": user, "num_inference_steps": 20, **fields}
        answer = httpx.post(f"{url}/v1/images/generations", json=body, timeout=120).raise_for_status()
        version = answer.json()["model_version"]
        assert answer.headers["x-model-version"] == version
        return str(version)

    heavy = tiny.write_bundle(tmp_path, tiny_clip, channels=(128, 128))
    challenger = register(str(heavy), "tiny", alias="next", tracking_uri=job.tracking_uri).version
    theirs, ours = (next(u for u in map(str, range(99)) if (place(u) < 0.5) == half) for half in (True, False))
    while asked(theirs) != challenger:
        pass
    assert asked(ours) == "1"
    assert asked(ours, model="tiny@next") == challenger
    while asked(theirs) == challenger:
        assert asked(ours) == "1"
    tags = find(f"models:/tiny/{challenger}", tracking_uri=job.tracking_uri).tags
    assert "times as long as one of version 1" in tags[RETURNED]


def test_a_request_outlives_the_replica_that_draws_it(url: str) -> None:
    from ray import serve

    body = {"prompt": "a", "seed": 5, "num_inference_steps": 100, "n": 10}

    def drawn() -> list[str]:
        answer = httpx.post(f"{url}/v1/images/generations", json=body, timeout=150).raise_for_status()
        return [datum["pixels_sha256"] for datum in answer.json()["data"]]

    whole = drawn()
    sampler: Any = serve.get_deployment_handle("sampler", app_name="cleanplate")
    (replica,) = processes("sampler")
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(drawn)
        while not sampler.status.remote().result().pictures:
            pass
        os.kill(replica, signal.SIGKILL)
        assert asked.result() == whole
    assert replica not in processes("sampler")


def test_replicas_that_cannot_load_the_model_say_why(url: str, job: ServeJob, bundle: Path, tmp_path: Path) -> None:
    """A second application, below its own path, on the Serve that runs already."""
    from serving import app

    torn = tmp_path / "torn"
    shutil.copytree(bundle, torn)
    (torn / "self_test.png").write_bytes(b"changed")
    with pytest.raises(UserError, match=r"did not start: .*self_test\.png was changed"):
        app.run(job.model_copy(update={"model": str(torn), "name": "torn", "route_prefix": "/torn"}))
    assert httpx.get(f"{url}/v1/health/ready").status_code == 200


def test_serves_own_tools_hand_over_a_checked_job(job: ServeJob) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as call

    from serving import app

    assert call(app.build, {"model": job.model, "replicas": "2"}) is not None
    with pytest.raises(ValidationError, match="replica_count"):
        call(app.build, {"model": job.model, "replica_count": 2})


def test_more_cpus_than_there_are_is_said_before_serve_starts(job: ServeJob, ray_cluster: None) -> None:
    from serving import app

    with pytest.raises(UserError, match="500 CPUs"):
        app.run(job.model_copy(update={"replicas": 500}))


def test_one_request_is_followed_from_the_gateway_to_the_sampler(url: str, job: ServeJob) -> None:
    """In the log by its id, in the metrics of both processes at one address, in what the server says at its end."""
    from serving import ingress

    before, body = scraped(url), {"prompt": "a grandmother", "n": 2, "num_inference_steps": 2, "stream": True}
    answer = httpx.post(f"{url}/v1/images/generations", json=body, headers={"X-Request-Id": "mine-1"}, timeout=60)
    assert answer.headers["x-request-id"] == "mine-1"
    for _ in range(1200):  # the gateway's line comes after the answer's last byte
        log = Path(job.observability.log_file or "").read_text()
        lines = [json.loads(line) for line in log.splitlines() if line.endswith("}")]
        mine = {line["process"].split("-")[0]: line for line in lines if line.get("request_id") == "mine-1"}
        if len(mine) == 2:
            break
        time.sleep(0.05)
    assert set(mine) == {"gateway", "sampler"}
    assert "grandmother" not in log
    assert (mine["gateway"]["outcome"], mine["gateway"]["pictures"]) == ("ok", 2)
    assert mine["sampler"]["timings"]["first_step_ms"] > 0
    after = scraped(url)
    assert after["cleanplate_scrape_complete"] == 1
    assert after["cleanplate_pictures_total"] == before.get("cleanplate_pictures_total", 0) + 2
    assert after["cleanplate_row_steps_total"] == before.get("cleanplate_row_steps_total", 0) + 2 * 2 * 2
    ended = ingress.end(job.model_copy(update={"shutdown_s": 0}))
    assert (ended.pictures, ended.cut_off) == (after["cleanplate_pictures_total"], 0)
    assert httpx.post(f"{url}/v1/images/generations", json=body).status_code == 503
