"""Who asks, as far as the HTTP face knows: what the endpoints pass on to the desk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from serving.api import RequestError
from serving.keys import Key

TIMEOUT_HEADER = "X-Request-Timeout-Seconds"


@dataclass(frozen=True)
class Asker:
    """Whoever sent a request.

    Attributes:
        request_id: of the request.
        base_url: what the API's paths are appended to, as the client wrote it.
        seconds: how long it waits; None where it does not say.
        key: its key; None where the server wants none.
    """

    request_id: str
    base_url: str
    seconds: float | None = None
    key: Key | None = None

    @property
    def key_id(self) -> str | None:
        return None if self.key is None else self.key.id

    def sees(self, owner: str | None) -> bool:
        """Whether what was drawn with that key is to be shown."""
        return owner == self.key_id or (self.key is not None and self.key.may("admin"))


def _asker(request: Request) -> Asker:
    return Asker(
        request_id=request.state.request_id,
        base_url=str(request.base_url).rstrip("/"),
        seconds=_seconds(request.headers.get(TIMEOUT_HEADER)),
        key=getattr(request.state, "key", None),
    )


def _seconds(given: str | None) -> float | None:
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise RequestError(f"{TIMEOUT_HEADER} must be a number of seconds above 0.", code="invalid_value")
    return seconds


FromAsker = Annotated[Asker, Depends(_asker)]
"""The type of an endpoint's parameter that is to be who asks."""
