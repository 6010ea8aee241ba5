"""Telling somebody else's server that a job is done, without being sent where we should not go.

Signed as Standard Webhooks says, which OpenAI's client verifies (`client.webhooks.verify_signature`). Where a URL leads
is decided when the connection is made, by the addresses that will be connected to: no answer of a name service gets
round it. Redirects are not followed, and of the answer only the status is looked at.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver

from curation.addresses import guarded_connector, parse, public_address
from curation.fetch import FetchError
from serving.api import RequestError
from serving.jobs import Stored, WebhooksConfig

VARIABLE = "CLEANPLATE_WEBHOOK_SECRET"
"""The environment variable with the secret that those of the keys are derived from."""

_GIVES_UP = {404, 405, 410}
_LONGEST_WAIT_S = 600.0


def secret_of(owner: str | None, master: str | None = None) -> str | None:
    """With what a key's webhooks are signed; None where the operator gave no secret.

    Args:
        owner: the key's id; None where the server wants no keys.
        master: the operator's secret; None: what stands in the environment.
    """
    master = os.environ.get(VARIABLE) if master is None else master
    if not master:
        return None
    digest = hmac.new(master.encode(), f"webhook:{owner or ''}".encode(), hashlib.sha256).digest()
    return "whsec_" + base64.b64encode(digest).decode()


def check(url: str, config: WebhooksConfig, secret: str | None) -> None:
    """Refuses a webhook that will not be sent. Raises RequestError."""
    if secret is None:
        raise _refused("this server signs no webhooks: ask for the job's status")
    try:
        found = parse(url)
    except FetchError:
        raise _refused("write it as https://HOST/PATH") from None
    if found.scheme != "https" and not config.allow_http:
        raise _refused("it must begin with https://")
    if found.user is not None:
        raise _refused("it must hold no user and no password")
    host = found.host or ""
    if _looks_like_address(host) and not (config.allow_private or public_address(host)):
        raise _refused("its address is not one of the public internet")


def _refused(why: str) -> RequestError:
    return RequestError(f"This webhook is not supported: {why}.", param="webhook", code="unsupported_value")


def _looks_like_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def message(stored: Stored) -> tuple[str, bytes]:
    """What is said of a job that has ended: its id, the same for every attempt, and the body. No picture, no prompt."""
    job = stored.job
    name = hashlib.sha256(f"{stored.owner}/{job.id}/{job.created}/{job.ended}".encode()).hexdigest()[:32]
    body = {
        "id": f"evt_{name}",
        "object": "event",
        "type": f"image_generation.job.{job.status}",
        "created_at": job.ended,
        "data": {"id": job.id},
    }
    return f"evt_{name}", json.dumps(body).encode()


def signed(name: str, body: bytes, secret: str, now: float) -> dict[str, str]:
    """The headers of a message: HMAC-SHA256 over id, time and body, so that it can be neither changed nor sent again
    later."""
    stamp = str(int(now))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = hmac.new(key, f"{name}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "Content-Type": "application/json",
        "webhook-id": name,
        "webhook-timestamp": stamp,
        "webhook-signature": "v1," + base64.b64encode(signature).decode(),
    }


class Sender:
    """Sends messages, again and again where that may help. Belongs to one event loop.

    Args:
        resolver: who knows the addresses of names; the system's own unless given.
        sleep: waits so many seconds.
        clock: Unix time, seconds.
    """

    def __init__(
        self,
        config: WebhooksConfig,
        *,
        resolver: AbstractResolver | None = None,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._resolver = resolver
        self._sleep = sleep
        self._clock = clock

    async def send(self, url: str, name: str, body: bytes, secret: str) -> tuple[int, str | None]:
        """Tells `url`; returns how many attempts that took, and why the last one failed."""
        problem: str | None = None
        for attempt in range(1, self._config.attempts + 1):
            problem, again = await self._once(url, signed(name, body, secret, self._clock()), body)
            if problem is None or not again or attempt == self._config.attempts:
                return attempt, problem
            await self._sleep(min(2.0 ** (attempt - 1), _LONGEST_WAIT_S))
        raise AssertionError("the last attempt returns")

    async def _once(self, url: str, headers: dict[str, str], body: bytes) -> tuple[str | None, bool]:
        """What went wrong, and whether it may go well another time."""
        timeout = aiohttp.ClientTimeout(total=self._config.timeout_s)
        allowed = self._config.allow_private
        connector = guarded_connector(lambda address: allowed or public_address(address), self._resolver)
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session,
                session.post(parse(url), data=body, headers=headers, allow_redirects=False) as answer,
            ):
                if 200 <= answer.status < 300:
                    return None, False
                return f"it answered {answer.status}", answer.status not in _GIVES_UP
        except FetchError as error:
            return f"it is not to be asked: {error.detail}", False
        except TimeoutError:
            return f"it did not answer within {self._config.timeout_s:g} s", True
        except (aiohttp.ClientError, OSError) as error:
            return f"it could not be reached ({type(error).__name__})", True
