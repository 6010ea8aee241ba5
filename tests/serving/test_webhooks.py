"""Where webhooks go, and above all where they do not."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from serving.api import RequestError
from serving.jobs import WebhooksConfig
from serving.webhooks import Sender, check, secret_of

SECRET = secret_of(None, "the operator's secret")
assert SECRET is not None


class Names(AbstractResolver):
    """Every name is at this address."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        found: ResolveResult = {
            "hostname": host, "host": self._address, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0,
        }  # fmt: skip
        return [found]

    async def close(self) -> None:
        return


def sent(url: str, address: str, **config: Any) -> tuple[int, str | None]:
    async def no_sleep(seconds: float) -> None:
        return

    async def go() -> tuple[int, str | None]:
        sender = Sender(WebhooksConfig(**config), resolver=Names(address), sleep=no_sleep)
        return await sender.send(url, "evt_1", b"{}", str(SECRET))

    return asyncio.run(go())


class Listener:
    """Whether anybody connects to a port of this machine."""

    def __enter__(self) -> Listener:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.port = self._socket.getsockname()[1]
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def asked(self) -> bool:
        try:
            self._socket.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.7", "169.254.169.254", "::1", "::ffff:127.0.0.1", "0.0.0.0"])
def test_a_name_that_leads_inside_is_not_asked(address: str) -> None:
    with Listener() as listener:
        attempts, problem = sent(f"https://hook.example:{listener.port}/", address)
        assert attempts == 1
        assert "not to be asked" in str(problem)
        assert not listener.asked()


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "127.1", "0x7f000001", "[::1]", "localhost"])
def test_no_spelling_of_an_address_leads_inside(host: str) -> None:
    with Listener() as listener:
        _, problem = sent(f"http://{host}:{listener.port}/", "127.0.0.1", allow_http=True)
        assert problem is not None
        assert not listener.asked()


def test_where_the_operator_allows_it_this_machine_is_asked() -> None:
    with Listener() as listener:
        attempts, problem = sent(
            f"http://hook.example:{listener.port}/", "127.0.0.1",
            allow_http=True, allow_private=True, timeout_s=0.1, attempts=2,
        )  # fmt: skip
        assert (attempts, problem) == (2, "it did not answer within 0.1 s")
        assert listener.asked()


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/done",
        "ftp://example.org",
        "https://user:word@example.org",
        "https://127.0.0.1/",
        "https://10.1.2.3/",
        "https://[::1]/",
        "https://",
        "example.org",
        "file:///etc/passwd",
        "https://2130706433/",
    ],
)
def test_a_webhook_that_will_not_be_sent_is_refused_at_once(url: str) -> None:
    with pytest.raises(RequestError) as caught:
        check(url, WebhooksConfig(), SECRET)
    assert (caught.value.status, caught.value.param) == (400, "webhook")


def test_without_a_secret_there_are_no_webhooks() -> None:
    check("https://example.org/done?job=1", WebhooksConfig(), SECRET)
    with pytest.raises(RequestError, match="signs no webhooks"):
        check("https://example.org/done", WebhooksConfig(), None)
