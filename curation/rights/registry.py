"""A do-not-train registry that is asked about URLs, by the wire form of Spawning's `opts-api`.

A plug-in that no job needs. The key comes from the environment (SPAWNING_API_KEY). URLs are sent a line each, and
answered by `{"urls": [{"url": …, "optOut": true}, …]}`, of which the order says nothing.
"""

from __future__ import annotations

import ipaddress
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, field_validator

from curation.errors import UserError
from curation.manifest import Verdict, now
from curation.places import is_url, same_url
from curation.rights.raw import shown
from curation.rights.verdict import Observation

KEY = "SPAWNING_API_KEY"
SIGNAL = "registry"
_ANSWER_LIMIT = 2**26  # bytes; 10,000 URLs of 2,000 characters twice over


class RegistryConfig(BaseModel):
    """Which registry to ask, and what it means when it cannot be had."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["spawning"] = "spawning"
    url: str = Field(description="where URLs are POSTed to, such as https://opts-api.example/api/v2/query/urls/")
    batch: int = Field(1000, ge=1, le=10_000, description="URLs in one request")
    timeout_s: float = Field(20, gt=0, le=600, description="how long the whole answer to one request may take")
    on_failure: Literal["error", "unknown"] = Field(
        "error", description="what a URL's verdict is when the registry cannot be asked"
    )

    @field_validator("url")
    @classmethod
    def _keeps_the_key(cls, url: str) -> str:
        if not is_url(url) or not (url.lower().startswith("https://") or _is_loopback(urlsplit(url).hostname or "")):
            raise ValueError("must be an https:// URL: a key goes with it")
        if urlsplit(url).username is not None:  # it is evidence, and stands in every row
            raise ValueError("must hold no name or password")
        return url


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _NoAnswerError(Exception):
    """The registry gave no usable answer; `lasting` when asking on would only take time."""

    def __init__(self, message: str, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


class Registry:
    """A registry, ready to be asked.

    Raises:
        UserError: when the environment has no key for it.
    """

    def __init__(self, config: RegistryConfig) -> None:
        self._config = config
        _key()

    def observe(self, urls: Sequence[str]) -> dict[str, Observation]:
        """What the registry says about every URL. It never raises for what the registry does.

        `optOut` denies. That a URL is not in it permits nothing: `unknown`. A URL that the answer leaves out, or says
        something unreadable about, is an error. Where the registry cannot be asked, `on_failure` decides; once it does
        not answer in time or at all, it is not asked about the rest.
        """
        found: dict[str, Observation] = {}
        # A line end inside a URL would ask about other URLs.
        whole = [url for url in dict.fromkeys(urls) if url.splitlines() == [url] and url == url.strip()]
        given_up: _NoAnswerError | None = None
        with httpx.Client(timeout=self._config.timeout_s, follow_redirects=False, trust_env=False) as client:
            for at in range(0, len(whole), self._config.batch):
                batch = whole[at : at + self._config.batch]
                try:
                    if given_up is not None:
                        raise given_up
                    answers = self._ask(client, batch)
                except _NoAnswerError as failure:
                    given_up = failure if failure.lasting else None
                    verdict = Verdict.ERROR if self._config.on_failure == "error" else Verdict.UNKNOWN
                    found.update((url, self._observation(str(failure), verdict)) for url in batch)
                else:
                    found.update((url, self._weigh(answers, url)) for url in batch)
        for url in urls:
            if url not in found:
                found[url] = self._observation("not a URL that can be asked about", Verdict.ERROR)
        return found

    def _ask(self, client: httpx.Client, batch: Sequence[str]) -> dict[str, list[Any]]:
        """What is answered about a batch: the values of `optOut` by URL in normal form. Raises _NoAnswerError."""
        headers = {"Content-Type": "text/plain", "Authorization": f"API {_key()}"}
        body, deadline = bytearray(), time.monotonic() + self._config.timeout_s
        try:
            content = "\n".join(batch).encode("utf-8", "surrogatepass")
            with client.stream("POST", self._config.url, content=content, headers=headers) as response:
                if response.status_code != 200:
                    raise _NoAnswerError(f"status {response.status_code}")
                for part in response.iter_bytes():
                    body += part
                    if len(body) > _ANSWER_LIMIT:
                        raise _NoAnswerError("an answer too long to be read")
                    if time.monotonic() > deadline:
                        raise _NoAnswerError(f"no whole answer in {self._config.timeout_s:g} s", lasting=True)
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise _NoAnswerError(f"{type(error).__name__}: {error}", isinstance(error, httpx.TransportError)) from error
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise _NoAnswerError("an answer that is no JSON") from error
        items = answer.get("urls") if isinstance(answer, Mapping) else None
        if not isinstance(items, list):
            raise _NoAnswerError("an answer without a list of URLs")
        answers: dict[str, list[Any]] = {}
        for item in items:
            if isinstance(item, Mapping) and isinstance(item.get("url"), str):
                answers.setdefault(same_url(item["url"]), []).append(item.get("optOut"))
        return answers

    def _weigh(self, answers: Mapping[str, Sequence[Any]], url: str) -> Observation:
        stated = answers.get(same_url(url))
        if not stated:
            return self._observation("left out of the answer", Verdict.ERROR)
        if any(value is True for value in stated):
            return self._observation("optOut: true", Verdict.DENY)
        if any(value is not False for value in stated):
            return self._observation(f"optOut: {str(stated[0])[:100]}", Verdict.ERROR)
        return self._observation("optOut: false", Verdict.UNKNOWN)

    def _observation(self, value: str, verdict: Verdict) -> Observation:
        return Observation(SIGNAL, shown(value), self._config.url, verdict, now())


def _key() -> str:
    """Read where it is used and kept nowhere, so that it is in no message, no pickle and no manifest."""
    key = os.environ.get(KEY, "")
    if not key or not key.isascii() or not key.isprintable():
        raise UserError(
            f"{KEY} is {'not a key' if key else 'not set'}",
            field="rights.registry",
            remedy="set it to the registry's key, or leave the registry out",
        )
    return key
