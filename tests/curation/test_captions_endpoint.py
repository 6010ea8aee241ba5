"""The endpoint captioner against a small server on loopback that speaks the protocol, well and badly."""

from __future__ import annotations

import base64
import io
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from curation.captions import CaptionInput, CaptionPolicy, CaptionsConfig, EndpointCaptions, Failed
from curation.errors import UserError

KEY = "sk-very-secret-0123456789"
REQUEST = TypeAdapter(CompletionCreateParamsNonStreaming)


class Server(ThreadingHTTPServer):
    """Describes a picture by its colour, as OpenAI's own types say. The model's name says how it behaves."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.asked: Counter[str] = Counter()  # by model and colour
        self.requests: list[dict[str, Any]] = []
        self.over = threading.Event()  # lets slow answers go when the test is done
        self.together = threading.Barrier(4)


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        colour, model = colour_of(body), body["model"]
        server.requests.append({"body": body, "path": self.path, "headers": dict(self.headers)})
        server.asked[f"{model} {colour}"] += 1
        times = server.asked[f"{model} {colour}"]
        if model == "locked" and self.headers["Authorization"] != f"Bearer {KEY}":
            self.answer(401, error(f"wrong key: {self.headers['Authorization']}"))
        elif model == "busy" and times <= 2:
            self.answer(429, error("slow down"), {"Retry-After": "0"})
        elif model == "busy for an hour":
            self.answer(429, error("come back later"), {"Retry-After": "3600"})
        elif model == "shaky" and times == 1:
            self.answer(500, error("out of memory"))
        elif model == "broken" and colour == "red":
            self.answer(500, error(f"key {KEY} made me fall over"))
        elif model == "down":
            self.answer(503, b"<html>")
        elif model == "unknown":
            self.answer(404, error("no such model"))
        elif model == "elsewhere":
            self.answer(307, b"", {"Location": "http://169.254.169.254/"})
        elif model == "picky" and colour == "red":
            self.answer(400, error("I see red"))
        elif model == "hangs up" and times == 1:
            self.close_connection = True
        elif model == "slow" and colour == "red":
            server.over.wait()
            self.close_connection = True
        elif model == "drips" and colour == "red":
            self.drip()
        elif model == "four at a time":
            server.together.wait(20)
            self.answer(200, completion(colour))
        elif model in ODD:
            self.answer(200, ODD[model])
        else:
            self.answer(200, completion(f"A picture in {colour}."))

    def drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        while not self.server.over.wait(0.05):
            self.wfile.write(b" ")

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Quiet."""


def completion(content: str | None, finish: str = "stop") -> bytes:
    message = {"role": "assistant", "content": content, "refusal": None}
    choice = {"index": 0, "finish_reason": finish, "message": message, "logprobs": None}
    told = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return ChatCompletion.model_validate(told).model_dump_json().encode()


def error(message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "server_error", "code": None}}).encode()


ODD = {
    "no json": b"<html>hello</html>",
    "no choices": b'{"choices": []}',
    "a list": b"[1, 2]",
    "not utf-8": b"\xff\xfe{",
    "no text": completion(None),
    "blank": completion("  \n "),
    "withheld": completion("A", "content_filter"),
    "cut in the first sentence": completion("A red square that", "length"),
    "cut in the second": completion("A red square. It has four", "length"),
    "quoted": completion('\n"A red square on white." \n'),
    "many lines": completion("A red\n\n  square\twith\u00a0edges"),
    "endless": b" " * (2 << 20),
}


def colour_of(body: dict[str, Any]) -> str:
    """What the picture in a request shows; the request must be one by OpenAI's own types."""
    REQUEST.validate_python(body)
    (message,) = body["messages"]
    text, image = message["content"]
    assert (message["role"], text["type"], image["type"]) == ("user", "text", "image_url")
    kind, data = image["image_url"]["url"].split(";base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert kind == f"data:image/{(picture.format or '').lower()}"
        r, g, b = picture.convert("RGB").getpixel((0, 0))  # type: ignore[misc]
    return ("red", "green", "blue")[int(np.argmax([r, g, b]))]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


def picture(colour: str, kind: str = "PNG") -> CaptionInput:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, kind)
    return CaptionInput(picture=buffer.getvalue())


RED, GREEN, BLUE = picture("red"), picture("lime", "JPEG"), picture("blue", "WEBP")


def endpoint(server: Server, model: str = "steady", **changes: Any) -> EndpointCaptions:
    settings = {"url": server.url, "model": model, "backoff_s": 0.01, "timeout_s": 20, "concurrency": 4}
    return EndpointCaptions.model_validate({**settings, **changes})


def test_a_request_is_what_the_protocol_says(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_KEY", KEY)
    said = endpoint(server, api_key_env="VLM_KEY", max_tokens=50).build(None)([RED, CaptionInput(), GREEN, BLUE])
    assert said == ["A picture in red.", None, "A picture in green.", "A picture in blue."]
    first = server.requests[0]
    assert first["path"] == "/v1/chat/completions"
    assert first["headers"]["Authorization"] == f"Bearer {KEY}"
    body = first["body"]
    assert (body["model"], body["max_tokens"], body["temperature"], body["seed"]) == ("steady", 50, 0, 0)
    endpoint(server, seed=None).build(None)([RED])
    assert "seed" not in server.requests[-1]["body"]
    assert "Authorization" not in server.requests[-1]["headers"]


def test_answers_come_back_in_order_and_some_at_a_time(server: Server) -> None:
    rows = [RED, GREEN, BLUE, RED, BLUE, GREEN, GREEN, RED]
    said = endpoint(server, "four at a time").build(None)(rows)  # each answer waits for three more requests
    assert said == ["red", "green", "blue", "red", "blue", "green", "green", "red"]


@pytest.mark.parametrize(("model", "asked"), [("busy", 3), ("shaky", 2), ("hangs up", 2)])
def test_what_may_pass_is_asked_again(server: Server, model: str, asked: int) -> None:
    assert endpoint(server, model).build(None)([RED]) == ["A picture in red."]
    assert server.asked[f"{model} red"] == asked


def test_a_refusal_is_not_asked_again(server: Server) -> None:
    said = endpoint(server, "picky").build(None)([RED, GREEN])
    assert said == [Failed("http_400", "I see red"), "A picture in green."]
    assert server.asked["picky red"] == 1


def test_retries_end(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_KEY", KEY)
    said = endpoint(server, "broken", retries=2, api_key_env="VLM_KEY").build(None)([RED, GREEN])
    assert said == [Failed("http_500", "key *** made me fall over"), "A picture in green."]
    assert server.asked["broken red"] == 3


@pytest.mark.parametrize("model", ["slow", "drips"])
def test_a_slow_answer_is_a_timeout_and_holds_nobody_up(server: Server, model: str) -> None:
    began = time.monotonic()
    said = endpoint(server, model, timeout_s=0.3, retries=1).build(None)([RED, BLUE])
    assert said == [Failed("timeout", "no answer within 0.3 s"), "A picture in blue."]
    assert isinstance(said[0], Failed)
    assert said[0].may_pass
    assert server.asked[f"{model} red"] == 2
    assert time.monotonic() - began < 15  # as against for ever


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("no json", "bad_answer"), ("no choices", "bad_answer"), ("a list", "bad_answer"), ("not utf-8", "bad_answer"),
        ("no text", "no_text"), ("blank", "no_text"), ("withheld", "content_filter"), ("endless", "too_large"),
        ("cut in the first sentence", "cut_off"),
    ],
)  # fmt: skip
def test_an_odd_answer_is_a_failure_of_its_row(server: Server, model: str, said: str) -> None:
    (found,) = endpoint(server, model).build(None)([RED])
    assert isinstance(found, Failed)
    assert (found.reason, found.may_pass, server.asked[f"{model} red"]) == (said, False, 1)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("cut in the second", "A red square."),
        ("quoted", "A red square on white."),
        ("many lines", "A red square with edges"),
    ],
)
def test_a_text_is_one_clean_line(server: Server, model: str, text: str) -> None:
    stage = CaptionsConfig(captioners=(endpoint(server, model),)).build(None)
    assert [caption.text for caption in stage([RED])[0]] == [text]


@pytest.mark.parametrize(
    ("model", "field", "message"),
    [
        ("locked", "captions.api_key_env", "refuses the key"),
        ("unknown", "captions.model", "no such model"),
        ("elsewhere", "captions.url", "sends elsewhere"),
        ("down", "captions.url", "is not there"),
        ("busy for an hour", "captions.url", "is not there"),
    ],
)
def test_what_no_row_can_help_stops_the_run(server: Server, model: str, field: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        endpoint(server, model, retries=1).build(None)([RED, GREEN])
    assert caught.value.field == field
    assert server.asked[f"{model} red"] <= 2


def test_nobody_at_the_port_stops_the_run(server: Server) -> None:
    server.server_close()
    with pytest.raises(UserError, match="is not there: Connect"):
        endpoint(server, retries=1).build(None)([RED])


def test_failures_of_rows_are_told_beside_what_others_said(server: Server) -> None:
    captioners = (endpoint(server, "picky", name="vlm"), endpoint(server, "steady", always=True))
    told = CaptionsConfig(captioners=captioners).build(None).tell([RED, GREEN])
    assert told[0].failed == {"vlm": Failed("http_400", "I see red")}
    assert [caption.source for caption in told[0].captions] == ["endpoint"]
    assert not told[1].failed
    assert [caption.source for caption in told[1].captions] == ["vlm"]  # the second said the same
    assert server.asked["steady green"] == 1


def test_only_rows_without_a_good_caption_are_asked(server: Server) -> None:
    captioners = ({"kind": "metadata"}, endpoint(server).model_dump())
    config = CaptionsConfig.model_validate({"captioners": captioners, "policy": CaptionPolicy(min_words=2)})
    rows = [
        CaptionInput(metadata={"caption": "a red square"}, picture=RED.picture),
        CaptionInput(metadata={"caption": "square"}, picture=BLUE.picture),
    ]
    said = config.build(None)(rows)
    assert [[c.source for c in captions] for captions in said] == [["metadata"], ["metadata", "endpoint"]]
    assert server.asked == {"steady blue": 1}


def test_the_key_is_nowhere_but_in_its_header(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VLM_KEY", KEY)
    config = endpoint(server, "steady", api_key_env="VLM_KEY")
    with caplog.at_level(logging.DEBUG):
        captioner = config.build(None)
        captioner([RED])
        monkeypatch.setenv("VLM_KEY", KEY + "x")
        with pytest.raises(UserError) as caught:
            endpoint(server, "locked", api_key_env="VLM_KEY").build(None)([RED])
    told = [caplog.text, str(caught.value), repr(captioner), repr(config), json.dumps(config.identity())]
    assert not any(KEY in text for text in told)


def test_mistakes_are_found_before_anything_starts(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLM_KEY", raising=False)
    config = CaptionsConfig(captioners=(endpoint(server, api_key_env="VLM_KEY"),))
    with pytest.raises(UserError, match="VLM_KEY is not set") as caught:
        config.check(None)
    assert caught.value.field == "captions.0.api_key_env"
    for bad in ("two words", "schlüssel", "a\nb"):
        monkeypatch.setenv("VLM_KEY", bad)
        with pytest.raises(UserError, match="holds no key") as caught:
            config.check(None)
        assert bad not in str(caught.value)
    monkeypatch.setenv("VLM_KEY", KEY)
    config.check(None)
    with pytest.raises(UserError, match="the job keeps none"):
        config.check(None, pictures=False)
    for url in ("localhost:8000", "ftp://a/b", "http://user:pass@host/v1", "https://host/v1?key=abc", "http:///v1"):
        with pytest.raises(ValidationError, match="url"):
            endpoint(server, url=url)


def test_the_identity_is_what_was_asked_of_whom(server: Server) -> None:
    base = endpoint(server).identity()
    for same in ({"url": "http://elsewhere/v1"}, {"timeout_s": 5}, {"retries": 0}, {"concurrency": 1}):
        assert endpoint(server, **same).identity() == base
    for other in ({"model": "m"}, {"prompt": "Tags, please."}, {"max_tokens": 9}, {"seed": 2}, {"name": "vlm"}):
        assert endpoint(server, **other).identity() != base
