"""Interruptions of a run on Ray: a node that is about to be taken away, and SIGTERM to the driver.

Only the loop knows how to save its state, between two steps. A worker's threads ask Ray about nodes and the driver, by
its mailbox, whether the run is to end, and give the loop its notice.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any

from curation.errors import wrapped
from curation.events import WorkerLost
from training.notice import Notice, Terminated, on_sigterm

logger = logging.getLogger(__name__)

_ASK_SECONDS = 1.0  # between two questions
_LOOK_SECONDS = 0.2
SAVE_SECONDS = 60.0
"""How long the driver waits for the workers to save."""


def run_or_end(fit: Callable[[], object], mailbox: Any) -> None:
    """Runs `fit` to its end; after SIGTERM to this process only until the workers have saved.

    `fit` has a thread of its own, as an exception of a signal's handler does not come through Ray's calls. After the
    end it is left there: the workers go with the process, or when it disconnects from the cluster.

    Args:
        mailbox: the actor of a `follow.Mailbox`.

    Raises:
        Terminated: after SIGTERM.
        Exception: what `fit` raises.
    """
    import ray

    running: Future[None] = Future()

    def run() -> None:
        try:
            fit()
        except BaseException as error:
            running.set_exception(error)
        else:
            running.set_result(None)

    with on_sigterm() as notice:
        threading.Thread(target=run, name="ray-train", daemon=True).start()
        while not wait([running], timeout=_LOOK_SECONDS).done:
            if notice.take():
                ray.get(mailbox.end.remote())
                _await_saved(running, mailbox)
                break
    if running.done():
        running.result()
        return
    raise Terminated


def _await_saved(running: Future[None], mailbox: Any) -> None:
    import ray

    deadline = time.monotonic() + SAVE_SECONDS
    while not wait([running], timeout=_LOOK_SECONDS).done:
        saved = ray.get(mailbox.saved.remote())
        if saved is not None:
            logger.warning("interrupted: the state after %d images is saved", saved)
            return
        if time.monotonic() > deadline:
            logger.warning("interrupted: no worker saved its state in %.0f s", SAVE_SECONDS)
            return


@contextlib.contextmanager
def on_notices(mailbox: Any, rank: int) -> Iterator[Notice]:
    """A worker's notice of either kind. After one of a node the run goes on until the node is lost.

    Asking about nodes is a collective: a thread of each worker asks, and waits there for those of the others. The
    driver is asked by the first worker alone: it saves for all, or tells the others.
    """
    import ray
    import ray.train

    notice, done = Notice(ends=False), threading.Event()

    def ask_about_nodes() -> None:
        known = None
        while not done.wait(_ASK_SECONDS):
            try:
                told = ray.train.get_preemption_info()
            except Exception:  # the group is being taken down
                return
            if told is not None and told != known:
                notice.give()
            known = told

    def ask_the_driver() -> None:
        while not done.wait(_ASK_SECONDS):
            try:
                if ray.get(mailbox.ending.remote()):
                    notice.give(ends=True)
                    return
            except Exception:  # the driver is gone
                return

    threading.Thread(target=ask_about_nodes, name="preemption", daemon=True).start()
    if rank == 0:
        threading.Thread(target=ask_the_driver, name="driver", daemon=True).start()
    try:
        yield notice
    finally:
        done.set()


def losses(mailbox: Any) -> Any:
    """A callback of Ray Train that puts into the mailbox which workers failed and why."""
    from ray.train import UserCallback

    class Losses(UserCallback):  # in here, as Ray is not imported before it is wanted
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            for rank, error in worker_exceptions.items():
                mailbox.put.remote(WorkerLost(rank, _why(error)))

    return Losses()


def _why(error: Exception) -> str:
    """An exception in a line: what a worker raised, of what Ray made of it."""
    cause: BaseException = error
    while (inner := wrapped(cause)) is not None:
        cause = inner
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else ''}"


def wait_for_the_end(rank: int, images: int, mailbox: Any) -> None:
    """What a worker does once it has saved in time: it says so, and waits to be taken down.

    Raising would have Ray Train begin anew; and the others may wait for this worker's part of a step.
    """
    import ray

    if rank == 0:
        ray.get(mailbox.keep.remote(images))
    threading.Event().wait()
