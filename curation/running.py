"""The driver's record of a run while it runs: its event log, how it stands, and what it costs.

How a run stands is one small file beside the log, written anew every few seconds: `cleanplate status` reads it, whether
or not it can reach the cluster. A thread does that and looks which nodes are there. None of it can stop a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from curation import nodes, standing, storage
from curation.errors import UserError
from curation.events import Begun, Ended, Entry, Event, EventLog, NodeJoined, NodeLost
from curation.observability import RunObservability, offered
from curation.standing import Spent, Stage, Standing, priced

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

logger = logging.getLogger(__name__)

_LOCAL_EVERY_S, _REMOTE_EVERY_S = 2.0, 10.0
_TICK_S = 2.0  # looking at nodes is a request to the head
_WINDOW_S = 60.0


class Observer(Protocol):
    """Hears of all that is recorded."""

    def event(self, event: Event) -> None: ...

    def standing(self, standing: Standing) -> None: ...


class Metrics(Observer, Protocol):
    """An observer that counts for Prometheus."""

    registry: CollectorRegistry


M = TypeVar("M", bound=Metrics)


class Recorder:
    """Records one attempt at a run. Any thread may call it.

    Args:
        folder: of the run.
        nodes: kinds of the nodes that are there, by id; None where there is no cluster.
        workers_kind: of nodes, where workers are that nobody says the node of.
        always_busy: the workers are at work for as long as there are any; else `worked` tells of it.
    """

    def __init__(
        self,
        folder: str,
        *,
        nodes: Callable[[], dict[str, str]] | None = None,
        prices: Mapping[str, float] | None = None,
        observers: tuple[Observer, ...] = (),
        workers_kind: str = "cpu_node",
        always_busy: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = EventLog(folder)
        self._ask_nodes = nodes
        self._prices = dict(prices or {})
        self._observers = observers
        self._workers_kind = workers_kind
        self._always_busy = always_busy
        self._clock = clock
        self._lock = threading.Lock()
        self._looking = threading.Lock()  # an answer that comes late must not bring back a node that was lost
        self._began = self._ticked = clock()
        self._cpu_began = time.process_time()
        self._nodes: dict[str, str] | None = None
        self._kinds: dict[str, str] = {}  # of all nodes that ever were there
        self._lost: dict[str, None] = {}
        self._node_s: dict[str, float] = defaultdict(float)
        self._worker_s: dict[str, float] = defaultdict(float)
        self._worker_cpu_s = 0.0
        self._stages: dict[str, Stage] = {}
        self._first: dict[str, int] = {}
        self._paces: dict[str, deque[tuple[float, int]]] = {}
        self._values: dict[str, float] = {}
        self._workers = 0
        self._note = ""
        self._written = 0.0
        self._warned = False

    @contextlib.contextmanager
    def running(self, begun: Begun) -> Iterator[Recorder]:
        """Records the attempt of a `with` block, to its end and how it came to it."""
        with self._lock:
            self._workers = begun.workers
        self.tell(begun)
        done = threading.Event()

        def watch() -> None:
            while not done.wait(_TICK_S):
                self._tick()

        thread = threading.Thread(target=watch, name="run-recorder", daemon=True)
        thread.start()
        how, why = "finished", ""
        try:
            yield self
        except BaseException as error:
            how, why = _told_of(error)
            raise
        finally:
            done.set()
            thread.join()
            self._end(how, why)

    # --- what is told ---

    def tell(self, event: Event) -> None:
        """Something happened."""
        self._log.write(event)
        self._inform(lambda observer: observer.event(event))

    def progress(self, stage: str, done: int, total: int, note: str = "") -> None:
        """A stage came so far."""
        with self._lock:
            pace = self._paces.setdefault(stage, deque())
            pace.append((self._clock(), done))
            while len(pace) > 2 and pace[-1][0] - pace[0][0] > _WINDOW_S:
                pace.popleft()
            (since, start), (now, _) = pace[0], pace[-1]
            rate = (done - start) / (now - since) if now > since and done > start else None
            self._first.setdefault(stage, done)
            self._stages[stage] = Stage(done, total, rate)
            self._note = note

    def at_pace(self, stage: str, done: int, total: int, per_second: float) -> None:
        """A stage came so far, at a pace that whoever does it has measured."""
        with self._lock:
            self._first.setdefault(stage, done)
            self._stages[stage] = Stage(done, total, per_second)

    def values(self, values: Mapping[str, float]) -> None:
        """What else there is to tell of how it stands; adds to what was told."""
        with self._lock:
            self._values.update(values)

    def workers(self, count: int) -> None:
        """So many workers are at work from now on."""
        self._tick()
        with self._lock:
            self._workers = count

    def worked(self, node: str, seconds: float, cpu_seconds: float) -> None:
        """A worker was at work for so long."""
        with self._lock:
            self._worker_s[self._kinds.get(node, self._workers_kind)] += seconds
            self._worker_cpu_s += cpu_seconds

    def reckon(self, cpu_seconds: float) -> None:
        """The workers have taken so much CPU time in all."""
        with self._lock:
            self._worker_cpu_s = cpu_seconds

    @property
    def lost(self) -> list[str]:
        """Ids of nodes that were there once and are not any more, the last one lost at the end."""
        with self._lock:
            return list(self._lost)

    def spent(self) -> Spent:
        """What it took so far."""
        with self._lock:
            return Spent(
                wall_s=round(self._clock() - self._began, 2),
                node_s=_rounded(self._node_s),
                worker_s=_rounded(self._worker_s),
                cpu_s=round(time.process_time() - self._cpu_began + self._worker_cpu_s, 2),
                price=priced(self._node_s, self._prices),
            )

    # --- what is done with it ---

    def look(self) -> None:
        """Looks which nodes are there, now."""
        self._tick(write=False)

    def _tick(self, *, write: bool = True) -> None:
        with self._looking:
            try:
                nodes = {} if self._ask_nodes is None else self._ask_nodes()
            except Exception:  # the cluster is gone, or does not answer: what is known stays
                nodes = None
            changes = self._reckon_nodes(nodes)
        for change in changes:
            self.tell(change)
        self._log.flush()
        if write:
            self._write()

    def _reckon_nodes(self, nodes: dict[str, str] | None) -> list[Event]:
        with self._lock:
            now = self._clock()
            passed, self._ticked = now - self._ticked, now
            here = (self._nodes if nodes is None else nodes) or {"": self._workers_kind}
            for kind in here.values():
                self._node_s[kind] += passed
            if self._always_busy:
                self._worker_s[self._workers_kind] += self._workers * passed
            if nodes is None:
                return []
            before, self._nodes = self._nodes, nodes
            self._kinds.update(nodes)
            gone = [node for node in before or {} if node not in nodes]
            self._lost = {node: None for node in [*self._lost, *gone] if node not in nodes}
            if before is None:
                return []
            joined = [NodeJoined(node[:12], kind) for node, kind in nodes.items() if node not in before]
            why = "the cluster does not count it among its living any more"
            return [*joined, *(NodeLost(node[:12], before[node], why) for node in gone)]

    def _standing(self) -> Standing:
        with self._lock:
            return Standing(
                at=round(time.time(), 3),
                attempt=self._log.attempt,
                stages={name: self._at_present_pace(name, stage) for name, stage in self._stages.items()},
                workers=self._workers,
                nodes=dict(Counter((self._nodes or {}).values())),
                values=dict(self._values),
                note=self._note,
            )

    def _at_present_pace(self, name: str, stage: Stage) -> Stage:
        """A stage of which nothing was heard for longer than its pace was measured over is the slower for it."""
        pace = self._paces.get(name)
        if pace is None or stage.per_second is None or stage.done >= stage.total:
            return stage
        measured, silent = pace[-1][0] - pace[0][0], self._clock() - pace[-1][0]
        return dataclasses.replace(stage, per_second=stage.per_second * measured / max(measured, silent))

    def _write(self, *, now: bool = False) -> None:
        every = _REMOTE_EVERY_S if storage.is_remote(self._log.folder) else _LOCAL_EVERY_S
        found = self._standing()
        self._inform(lambda observer: observer.standing(found))
        if not now and time.monotonic() - self._written < every:
            return
        self._written = time.monotonic()
        try:
            standing.write(self._log.folder, found)
        except Exception as error:
            if not self._warned:
                logger.warning("how the run stands cannot be written: %s", error)
            self._warned = True

    def _inform(self, tell: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            try:
                tell(observer)
            except Exception:
                logger.warning("a metric could not be counted", exc_info=True)

    def _end(self, how: str, why: str) -> None:
        self._tick(write=False)
        with self._lock:
            done = {name: stage.done - self._first[name] for name, stage in self._stages.items()}
        self._write(now=True)
        self.tell(Ended(how, why, done, self._log.left_out, dataclasses.asdict(self.spent())))


@contextlib.contextmanager
def recorded(
    folder: str, observability: RunObservability, metrics: Callable[[], M], begun: Begun, **how: Any
) -> Iterator[tuple[Recorder, M | None]]:
    """Records an attempt for the duration of a `with` block, and offers its metrics where the job wants them.

    Args:
        metrics: makes an observer with a `registry`; it is imported only then.
        how: more of `Recorder`.

    Raises:
        UserError: metrics cannot be offered where the job wants them.
    """
    with contextlib.ExitStack() as stack:
        observer = None
        if observability.port is not None:
            observer = metrics()
            stack.enter_context(offered(observability, observer.registry))
        observers = () if observer is None else (observer,)
        recorder = Recorder(folder, nodes=nodes.alive, prices=observability.prices, observers=observers, **how)
        yield stack.enter_context(recorder.running(begun)), observer


def begun(
    before: Sequence[Entry], verb: str, name: str, *, of: str, total: int, done: int, workers: int, **more: Any
) -> Begun:
    """What is told of an attempt when it begins.

    Args:
        before: the log of earlier ones.
        more: further fields of `Begun`.
    """
    return Begun(
        verb=verb,
        name=name,
        attempt=1 + sum(isinstance(entry.event, Begun) for entry in before),
        of=of,
        total=total,
        done=done,
        todo=more.pop("todo", {}),
        workers=workers,
        host=platform.node(),
        pid=os.getpid(),
        **more,
    )


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {kind: round(value, 2) for kind, value in seconds.items()}


def _told_of(error: BaseException) -> tuple[str, str]:
    """How an attempt ended by an exception, and why."""
    if isinstance(error, UserError):
        return "failed", str(error)
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted", "it was asked to end"
    first = next(iter(str(error).splitlines()), "")
    return "failed", f"{type(error).__name__}: {first}"
