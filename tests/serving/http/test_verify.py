"""Files sent to be verified: as a body or in a form, ours or anything."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.admission import Limits
from serving.api import RequestError
from serving.finishing import encode
from serving.http.verify import uploaded
from serving.identity import CredentialsConfig
from serving.job import ServeJob
from serving.records import Archive, Record, RecordsConfig
from tests.serving.local import JOB, error_of, send
from tests.serving.test_verification import NAME, made, stripped
from tests.serving.test_watermark import drawing

URL = "/v1/images/verify"
PNG = encode(drawing(64), "png", 100)


class _NoBackend:
    """Nobody is asked to draw."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> ServeJob:
    folder = tmp_path_factory.mktemp("verify")
    return JOB.model_copy(
        update={
            "credentials": CredentialsConfig(folder=str(folder / "credentials")),
            "records": RecordsConfig(folder=str(folder / "records")),
        }
    )


@pytest.fixture(scope="module")
def signed(job: ServeJob) -> bytes:
    return made(Path(job.credentials.folder or ""), drawing(64))


def ask(job: ServeJob, **request: Any) -> httpx.Response:
    return send(_NoBackend(), "POST", URL, job, **request)


def test_a_file_is_verified_as_a_body_and_in_a_form(job: ServeJob, signed: bytes) -> None:
    answers = [
        ask(job, content=signed, headers={"Content-Type": "image/png"}),
        ask(job, content=signed),
        ask(job, files={"image": ("a.png", signed, "image/png")}),
        ask(job, data={"more": "words"}, files={"file": ("b.png", signed)}),
    ]
    for answer in answers:
        assert answer.status_code == 200
        found = answer.json()
        assert (found["verdict"], found["image_id"], found["watermark"]["state"]) == ("ours", NAME, "found")
        assert found["record"] is None


def test_the_record_of_a_picture_of_ours_is_named(job: ServeJob, signed: bytes) -> None:
    fields: dict[str, Any] = dict.fromkeys(Record.model_fields, None)
    fields |= {"id": NAME, "created": 2**31, "model": "a", "model_version": "3", "manifest_id": "m", "backend": "b"}
    fields |= {"exact": True, "prompt_sha256": "0", "seed": 7, "steps": 5, "guidance_scale": 2.0, "sampler": "ddim"}
    fields |= {"size": "64x64", "output_format": "png", "output_compression": 90, "finish_reason": "stop"}
    fields |= {"request_id": "r", "watermark": ask(job, content=signed).json()["watermark"]["payload"]}
    assert job.records is not None
    known = {
        name: value for name, value in fields.items() if value is not None or Record.model_fields[name].is_required()
    }
    Archive(job.records).keep([Record.model_validate(known)])
    record = ask(job, content=signed).json()["record"]
    assert record == f"http://test/v1/images/{NAME}"
    assert send(_NoBackend(), "GET", record.removeprefix("http://test"), job).json()["seed"] == 7
    assert ask(job, content=PNG).json()["record"] is None
    # Without credentials the payload leads to it, and to nobody else's.
    lost = ask(job, content=stripped(signed)).json()
    assert (lost["verdict"], lost["record"], lost["candidates"]) == ("marked", None, [record])
    Archive(job.records).keep([Record.model_validate(known | {"key": "somebody"})])
    assert ask(job, content=stripped(signed)).json()["candidates"] == []
    assert ask(job, content=signed).json()["record"] is None


@pytest.mark.parametrize("body", [b"no picture", PNG[:60], b"\xff\xd8\xff"])
def test_what_is_no_picture_is_answered_in_our_shape(job: ServeJob, body: bytes) -> None:
    answer = ask(job, content=body)
    error = error_of(answer)
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_image", "image")


def test_an_empty_body_and_a_form_without_a_file(job: ServeJob) -> None:
    assert error_of(ask(job))["code"] == "invalid_image"
    answer = ask(job, files={"other": (None, "words")})
    assert (answer.status_code, error_of(answer)["code"]) == (400, "missing_required_parameter")


def test_files_may_be_larger_than_other_bodies_and_have_a_limit_too(job: ServeJob, signed: bytes) -> None:
    large = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8), "png", 100)
    assert len(large) > job.limits.max_body_bytes
    assert ask(job, content=large).status_code == 200
    small = job.model_copy(update={"limits": Limits(max_body_bytes=4096, max_upload_bytes=len(large) - 1)})
    answer = ask(small, content=large)
    assert (answer.status_code, error_of(answer)["code"]) == (413, "body_too_large")


def test_a_server_whose_certificate_cannot_be_read_says_so(job: ServeJob) -> None:
    broken = job.model_copy(update={"credentials": job.credentials.model_copy(update={"certificate": "/nowhere.pem"})})
    answer = ask(broken, content=PNG)
    assert (answer.status_code, error_of(answer)["code"]) == (503, "verification_unavailable")
    assert "Retry-After" in answer.headers
    assert "nowhere" not in answer.text


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200),
    st.text('b;=" -\r\n', max_size=12),
    st.sampled_from(["", "multipart/form-data; boundary=b", "image/png"]),
)
def test_any_body_and_any_type_are_read_or_refused(body: bytes, after: str, kind: str) -> None:
    with contextlib.suppress(RequestError):
        assert uploaded(kind + after, body)


@pytest.mark.parametrize("content", [b"\r\n--b", b"\r\n", b"--b--", b"\r\n\r\n", b"\x00\xff" * 9 + b"\r"])
def test_a_forms_file_is_taken_byte_by_byte(content: bytes) -> None:
    head = b'--bound\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    form = b'--bound\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n' + head + content + b"\r\n--bound--\r\n"
    assert uploaded("multipart/form-data; boundary=bound", form) == content
    assert uploaded('Multipart/Form-Data; charset=utf-8; boundary="bound"', form) == content
