"""What a job that makes something says about being watched, and how its metrics are offered while it runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from curation.errors import UserError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

PORT_VARIABLE = "CLEANPLATE_METRICS_PORT"
_PORT = Annotated[int, Field(ge=0, le=65_535)]


class RunObservability(BaseModel):
    """How a run is watched. Nothing in it changes what comes out of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    metrics_port: _PORT | None = Field(
        None,
        description="port at which the driver offers metrics to Prometheus while it runs; null: "
        "$CLEANPLATE_METRICS_PORT, and without that none",
    )
    metrics_host: str = Field(
        "127.0.0.1", description="address that it listens on; what it tells is open to whoever reaches it"
    )
    prices: dict[str, Annotated[float, Field(ge=0)]] = Field(
        {},
        description="what a node costs for an hour, by its kind, e.g. {cpu_node: 0.2, gpu_node: 2.5}, in any one "
        "currency; without it nothing is said of money",
    )

    @property
    def port(self) -> int | None:
        """Where metrics are offered; None where nobody asked for them.

        Raises:
            UserError: a variable that is no port.
        """
        told = os.environ.get(PORT_VARIABLE)
        if self.metrics_port is not None or not told:
            return self.metrics_port
        if told.isdecimal() and int(told) <= 65_535:
            return int(told)
        raise UserError(f"{told!r} is no port", field=PORT_VARIABLE, remedy="set it to a number, or unset it")


@contextlib.contextmanager
def offered(config: RunObservability, registry: CollectorRegistry) -> Iterator[int]:
    """Answers GET /metrics from a thread for the duration of a `with` block; gives the port.

    Raises:
        UserError: an address that cannot be listened on.
    """
    from prometheus_client import start_http_server

    port = config.port
    assert port is not None
    try:
        server, thread = start_http_server(port, addr=config.metrics_host, registry=registry)
    except OSError as error:
        raise UserError(
            f"metrics cannot be offered at {config.metrics_host}:{port}: {error}",
            field="observability.metrics_port",
            remedy="choose another port, or 0 for any",
        ) from None
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
