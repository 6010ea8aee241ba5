"""What goes with a request on its way to a replica beside its body: who asks, and how it is to be answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Call:
    """The gateway's word to a replica.

    Attributes:
        request_id: what logs and traces of this request have in common.
        flow: who shares the engine fairly with others, a key's id for instance; None: this request by itself.
        version: the model version that must answer; None: whichever is live.
        previews: of each image at most, while it is drawn.
        ids: the images' ids, one for each; None: new ones.
        seconds: until nobody waits any more; None: as long as the server lets any request take.
        trace: W3C's headers, for spans to come below the gateway's.
    """

    request_id: str = ""
    flow: str | None = None
    version: str | None = None
    previews: int = 0
    ids: tuple[str, ...] | None = None
    seconds: float | None = None
    trace: Mapping[str, str] = field(default_factory=dict)
