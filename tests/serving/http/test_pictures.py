"""What is remembered of pictures, asked for through the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from curation.clip import ClipConfig
from serving import guard
from serving.admission import Limits
from serving.api import MAX_SEED, GenerationRequest, RequestError
from serving.call import Call
from serving.generator import Generation, Generator
from serving.job import ServeJob
from serving.records import RecordsConfig
from serving.safety import OutputSafety
from tests.serving.http.test_events import events_of
from tests.serving.local import JOB, LocalBackend, error_of, post, send
from training.bundle import DiffusionModel
from training.tracking import ModelVersion

BODY = {"prompt": "a red apple", "seed": 4, "num_inference_steps": 2, "n": 2, "negative_prompt": "blue"}


@pytest.fixture
def job(tmp_path: Path) -> ServeJob:
    return JOB.model_copy(update={"records": RecordsConfig(folder=str(tmp_path))})


def test_a_picture_is_drawn_again_by_its_id(generator: Generator, job: ServeJob) -> None:
    backend = LocalBackend(generator)
    first, second = post(backend, BODY, job).json()["data"]
    record = send(backend, "GET", f"/v1/images/{second['id']}", job).json()
    assert (record["seed"], record["steps"], record["model_version"], record["prompt"]) == (5, 2, "3", None)
    told = {"prompt": "a red apple", "negative_prompt": "blue"}
    answer = send(backend, "POST", f"/v1/images/{second['id']}/reproduce", job, json=told)
    assert answer.status_code == 200
    (again,) = answer.json()["data"]
    assert (again["id"], again["b64_json"]) == (second["id"], second["b64_json"])
    assert answer.json()["reproduction"] == {
        "of": second["id"],
        "pixels_equal": True,
        "recorded_sha256": second["pixels_sha256"],
        "same_backend": True,
    }
    assert backend.calls[-1].version == "3"
    assert first["pixels_sha256"] != second["pixels_sha256"]


def test_a_later_image_of_the_largest_seed_is_drawn_again(generator: Generator, job: ServeJob) -> None:
    backend = LocalBackend(generator)
    body = {"prompt": "a red apple", "seed": MAX_SEED, "n": 2, "num_inference_steps": 2}
    drawn = post(backend, body, job).json()["data"][1]
    answer = send(backend, "POST", f"/v1/images/{drawn['id']}/reproduce", job, json={"prompt": "a red apple"})
    assert answer.status_code == 200
    assert answer.json()["data"][0]["seed"] == drawn["seed"] == MAX_SEED + 1
    assert answer.json()["reproduction"]["pixels_equal"]


def test_where_prompts_are_kept_nothing_has_to_be_sent(generator: Generator, tmp_path: Path) -> None:
    job = JOB.model_copy(update={"records": RecordsConfig(folder=str(tmp_path), prompts=True)})
    backend = LocalBackend(generator)
    datum = post(backend, BODY, job).json()["data"][0]
    answer = send(backend, "POST", f"/v1/images/{datum['id']}/reproduce", job)
    assert answer.json()["reproduction"]["pixels_equal"] is True


@pytest.mark.parametrize(
    ("told", "status", "param", "code"),
    [
        ({}, 400, "prompt", "missing_required_parameter"),
        ({"prompt": "a red apple"}, 400, "negative_prompt", "missing_required_parameter"),
        ({"prompt": "a blue boat", "negative_prompt": "blue"}, 409, "prompt", "prompt_differs"),
        ({"prompt": "a red apple", "negative_prompt": "red"}, 409, "negative_prompt", "prompt_differs"),
        ({"prompt": "a red apple", "seed": 5}, 400, "seed", "unknown_parameter"),
    ],
)
def test_another_prompt_draws_nothing(
    generator: Generator, job: ServeJob, told: dict[str, Any], status: int, param: str, code: str
) -> None:
    backend = LocalBackend(generator)
    datum = post(backend, BODY, job).json()["data"][0]
    answer = send(backend, "POST", f"/v1/images/{datum['id']}/reproduce", job, json=told)
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code)
    assert backend.asked == 1


def test_a_version_that_is_gone_is_said(generator: Generator, job: ServeJob) -> None:
    class Moved(LocalBackend):
        async def generate(self, request: GenerationRequest, call: Call) -> Generation:
            if call.version is not None:
                raise RequestError("gone", status=409, code="version_not_served")
            return await super().generate(request, call)

    datum = post(Moved(generator), BODY, job).json()["data"][0]
    told = {"prompt": "a red apple", "negative_prompt": "blue"}
    answer = send(Moved(generator), "POST", f"/v1/images/{datum['id']}/reproduce", job, json=told)
    assert (answer.status_code, error_of(answer)["code"]) == (409, "version_not_served")


@pytest.mark.parametrize("keeps", [True, False])
def test_what_was_never_drawn_is_a_404(generator: Generator, job: ServeJob, keeps: bool) -> None:
    asked = job if keeps else JOB
    for method, path in (("GET", ""), ("POST", "/reproduce")):
        answer = send(LocalBackend(generator), method, f"/v1/images/img_{'0' * 32}{path}", asked)
        assert (answer.status_code, error_of(answer)["code"]) == (404, "image_not_found")
    answer = send(LocalBackend(generator), "GET", "/v1/pictures/x", asked)
    assert (answer.status_code, error_of(answer)["code"]) == (404, "picture_not_found")


def test_a_picture_lies_at_its_url_for_a_while(generator: Generator, job: ServeJob, tmp_path: Path) -> None:
    backend = LocalBackend(generator)
    whole = post(backend, BODY, job).json()["data"]
    linked = post(backend, BODY | {"response_format": "url", "output_format": "webp"}, job).json()["data"]
    assert all(datum["b64_json"] is None for datum in linked)
    url = urlsplit(linked[0]["url"])
    assert url.netloc == "test"
    answer = send(backend, "GET", url.path, job)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
    assert answer.content[8:12] == b"WEBP"
    assert linked[0]["pixels_sha256"] == whole[0]["pixels_sha256"]
    name = url.path.rpartition("/")[2]
    late = f"/v1/pictures/{1:08x}{name[name.index('-') :]}"
    answer = send(backend, "GET", late, job)
    assert (answer.status_code, error_of(answer)["code"]) == (410, "picture_expired")


def test_a_streamed_picture_is_remembered_too(generator: Generator, job: ServeJob) -> None:
    backend = LocalBackend(generator)
    ((_, data),) = events_of(post(backend, BODY | {"n": 1, "stream": True, "response_format": "url"}, job).text)
    assert data["b64_json"] is None
    assert send(backend, "GET", urlsplit(data["url"]).path, job).status_code == 200
    assert send(backend, "GET", f"/v1/images/{data['id']}", job).json()["pixels_sha256"] == data["pixels_sha256"]


def test_nothing_of_a_withheld_picture_is_kept(
    version: ModelVersion, model: DiffusionModel, tiny_clip: ClipConfig, job: ServeJob, tmp_path: Path
) -> None:
    watching = guard.build(OutputSafety(concepts={"weapon": -0.99}), tiny_clip)
    backend = LocalBackend(Generator(version, model, watching, Limits()))
    (datum,) = post(backend, BODY | {"n": 1, "response_format": "url"}, job).json()["data"]
    assert (datum["url"], datum["b64_json"], datum["pixels_sha256"]) == (None, None, None)
    assert [path.suffix for path in tmp_path.rglob("*.*")] == [".json"]
    record = send(backend, "GET", f"/v1/images/{datum['id']}", job).json()
    assert (record["finish_reason"], record["pixels_sha256"]) == ("content_filtered", None)
    told = {"prompt": "a red apple", "negative_prompt": "blue"}
    again = send(backend, "POST", f"/v1/images/{datum['id']}/reproduce", job, json=told).json()
    assert (again["data"][0]["b64_json"], again["reproduction"]["pixels_equal"]) == (None, None)


def test_pictures_are_not_lost_where_they_cannot_be_remembered(generator: Generator, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    job = JOB.model_copy(update={"records": RecordsConfig(folder=str(tmp_path / "file"))})
    assert post(LocalBackend(generator), BODY, job).status_code == 200
    answer = post(LocalBackend(generator), BODY | {"response_format": "url"}, job)
    assert (answer.status_code, error_of(answer)["code"]) == (503, "storage_unavailable")
