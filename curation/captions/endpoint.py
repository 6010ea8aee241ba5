"""Captions by a vision-language model behind an endpoint that speaks OpenAI's protocol, as vLLM and Ray Serve do."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from curation.captions.captioner import CaptionInput, Failed, Named, Said
from curation.clip import Clip, ClipConfig
from curation.errors import UserError
from curation.manifest import now

if TYPE_CHECKING:
    import httpx

_PROMPT = (
    "Describe this picture in one sentence, plainly and only with what can be seen. Answer with the sentence alone."
)
_ANSWER_CAP = 1 << 20  # bytes; a caption has some hundred
_UNAVAILABLE = {"connection", "http_429", "http_502", "http_503", "http_504"}
_OUR_MISTAKE = {
    401: ("refuses the key", "api_key_env", "set the variable that api_key_env names to a key that the endpoint takes"),
    403: ("refuses the key", "api_key_env", "set the variable that api_key_env names to a key that the endpoint takes"),
    404: ("has no such model or path", "model", "name a model it serves (GET /v1/models); url usually ends in /v1"),
}


class EndpointCaptions(Named):
    """Which model is asked, what, and how patiently. Answers of such a model are not ours to repeat: they are stored
    once, and the manifest is made of what is stored."""

    kind: Literal["endpoint"] = "endpoint"
    url: str = Field(description="the API's root, such as http://localhost:8000/v1; requests go to /chat/completions")
    model: str = Field(min_length=1, description="the model's name there")
    prompt: str = Field(_PROMPT, min_length=1, description="what is said beside the picture")
    max_tokens: int = Field(100, ge=1, le=4096, description="tokens of an answer at most")
    temperature: float = Field(0, ge=0, le=2, description="sent along; 0: the likeliest words")
    seed: int | None = Field(0, description="sent along; null: none")
    api_key_env: str | None = Field(
        None, pattern=r"^[A-Za-z_]\w*$", description="environment variable, of the workers, that holds the key"
    )
    timeout_s: float = Field(60, gt=0, le=3600, description="seconds for one answer, from first to last byte")
    retries: int = Field(3, ge=0, le=20, description="further attempts after 429, a fault of the server or of the way")
    backoff_s: float = Field(1, ge=0, le=60, description="wait before the first further attempt; doubles each time")
    max_retry_after_s: float = Field(60, ge=0, le=3600, description="longest wait that the endpoint may ask for")
    concurrency: int = Field(8, ge=1, le=256, description="requests at a time of each worker")
    always: bool = Field(False, description="asked also where there are enough good captions")

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be http:// or https:// with a host")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("must not carry a user, a query or a fragment: keys go into api_key_env's variable")
        return url.rstrip("/")

    def check(self, clip: ClipConfig | None) -> None:
        """Raises UserError: the key's variable is not set, or what it holds cannot be a key."""
        self.key()

    def key(self) -> str | None:
        """The key.

        Raises:
            UserError: the variable is not set, or holds what no header can.
        """
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            raise UserError(
                f"the environment variable {self.api_key_env} {'holds no key' if key else 'is not set'}",
                field="api_key_env",
                remedy="set it where cleanplate and Ray's workers run, or leave api_key_env out",
            )
        return key

    def identity(self) -> dict[str, Any]:
        return self.model_dump(
            mode="json", include={"kind", "name", "model", "prompt", "max_tokens", "temperature", "seed", "always"}
        )

    def build(self, clip: Clip | None) -> Endpoint:
        """Raises UserError: as `check`."""
        return Endpoint(self)


class Endpoint:
    """A client. The key lies in its headers and goes nowhere else."""

    def __init__(self, config: EndpointCaptions) -> None:
        import httpx

        self._config = config
        self._key = config.key()
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        self._client = httpx.Client(
            headers=headers,
            timeout=config.timeout_s,
            follow_redirects=False,  # a key and a picture are for this endpoint alone
            limits=httpx.Limits(max_connections=config.concurrency),
        )

    def __call__(self, rows: Sequence[CaptionInput]) -> list[Said]:
        """Asks for each row that has a picture.

        Raises:
            UserError: the endpoint refuses the key, knows no such model or sends elsewhere; or it was there for no row.
        """
        pictured = [row for row, told in enumerate(rows) if told.picture is not None]
        said: list[Said] = [None] * len(rows)
        with ThreadPoolExecutor(self._config.concurrency) as pool:
            answers = pool.map(self._ask, (rows[row].picture or b"" for row in pictured))
            for row, answer in zip(pictured, answers, strict=True):
                said[row] = answer
        failed = [answer for answer in said if isinstance(answer, Failed)]
        if failed and len(failed) == len(pictured) and all(answer.reason in _UNAVAILABLE for answer in failed):
            raise UserError(
                f"the endpoint {self._config.url} is not there: {failed[0].detail or failed[0].reason}",
                field="captions.url",
                remedy="start it, or mend url, and run the same command again: finished units are kept",
            )
        return said

    def _ask(self, picture: bytes) -> Said:
        config, body = self._config, json.dumps(self._body(picture)).encode()
        for attempt in range(config.retries + 1):
            answer, again, wait = self._once(body)
            if not again or attempt == config.retries or wait > config.max_retry_after_s:
                break
            time.sleep(max(wait, config.backoff_s * 2**attempt))
        return answer

    def _body(self, picture: bytes) -> dict[str, Any]:
        config = self._config
        kind = "png" if picture.startswith(b"\x89PNG") else "webp" if picture[8:12] == b"WEBP" else "jpeg"
        url = f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
        content = [{"type": "text", "text": config.prompt}, {"type": "image_url", "image_url": {"url": url}}]
        body = {
            "model": config.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
        }
        return body if config.seed is None else {**body, "seed": config.seed}

    def _once(self, body: bytes) -> tuple[Said, bool, float]:
        """An answer, whether to ask again, and after how many seconds at least."""
        import httpx

        ends = time.monotonic() + self._config.timeout_s
        try:
            url, headers = f"{self._config.url}/chat/completions", {"Content-Type": "application/json"}
            with self._client.stream("POST", url, content=body, headers=headers) as response:
                data = b""
                for piece in response.iter_bytes():
                    data += piece
                    if len(data) > _ANSWER_CAP:
                        return Failed("too_large", f"an answer of more than {_ANSWER_CAP} bytes"), False, 0
                    if time.monotonic() > ends:
                        raise httpx.ReadTimeout("the answer takes too long")
        except httpx.TimeoutException:
            return Failed("timeout", f"no answer within {self._config.timeout_s:g} s"), True, 0
        except httpx.HTTPError as error:
            return Failed("connection", self._safe(f"{type(error).__name__}: {error}")), True, 0
        if response.status_code == 200:
            return _caption(data), False, 0
        return self._status(response, data)

    def _status(self, response: httpx.Response, data: bytes) -> tuple[Said, bool, float]:
        status, url = response.status_code, self._config.url
        if status in _OUR_MISTAKE or 300 <= status < 400:
            sends = ("sends elsewhere", "url", "name the address that it sends to")
            what, field, remedy = _OUR_MISTAKE.get(status, sends)
            raise UserError(f"{url} {what} (HTTP {status})", field=f"captions.{field}", remedy=remedy)
        again = status == 429 or status >= 500
        failed = Failed(f"http_{status}", self._safe(_message(data)))
        return failed, again, _retry_after(response.headers.get("retry-after"))

    def _safe(self, text: str) -> str:
        """A line for people that cannot hold the key, should the endpoint have repeated it."""
        return (text if self._key is None else text.replace(self._key, "***"))[:200]


def _caption(data: bytes) -> Said:
    """The text of an answer.

    One that was cut off at `max_tokens` ends with its last whole sentence.
    """
    try:
        choice = json.loads(data)["choices"][0]
        text, finish = choice["message"]["content"], choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError):
        return Failed("bad_answer", "the answer is not one of a chat completion")
    if finish == "content_filter":
        return Failed("content_filter", "the endpoint withholds its answer")
    if not isinstance(text, str) or not text.strip():
        return Failed("no_text", "the answer has no text")
    text = text.strip()
    if finish == "length":
        whole = re.match(r".*[.!?。！？](?=\s|$|[^\x00-\x7f])", text, re.DOTALL)
        if whole is None:
            return Failed("cut_off", "the answer ends within its first sentence: raise max_tokens")
        text = whole.group()
    unquoted = re.fullmatch(r"[\"“](?P<inside>[^\"“”]+)[\"”]", text)
    return unquoted["inside"].strip() if unquoted else text


def _message(data: bytes) -> str:
    """What an error's body says, if it speaks the protocol."""
    try:
        told = json.loads(data)
        message = (told.get("error") or {}).get("message") or told.get("message")
    except (ValueError, AttributeError):
        return ""
    return message if isinstance(message, str) else ""


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header, a number or a date; 0 where it is absent or makes no sense."""
    if value is None:
        return 0
    if re.fullmatch(r"\d{1,9}", value.strip()):
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - now()).total_seconds())
    except (TypeError, ValueError):
        return 0
