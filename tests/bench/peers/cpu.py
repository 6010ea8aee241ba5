"""CPU seconds of a command and of all that it starts, daemons and orphans among them.

Wall seconds are what a user waits for; CPU seconds hardly change when something else runs on the machine.
"""

from __future__ import annotations

import os
import threading
import uuid
from pathlib import Path

MARK = "CLEANPLATE_BENCH_RUN"  # an environment variable, which everything that a process starts inherits
_EVERY_S = 0.1
_TICKS = os.sysconf("SC_CLK_TCK")


class CpuWatch(threading.Thread):
    """Reads /proc ten times a second while it runs; the last tenth of a process's life may be missed."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.mark = uuid.uuid4().hex
        self._used: dict[str, float] = {}
        self._strangers: set[str] = set()
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._look()

    def seconds(self) -> float:
        """CPU seconds until now."""
        return sum(dict(self._used).values())

    def read(self) -> float:
        """CPU seconds until now, looked up now."""
        self._look()
        return self.seconds()

    def processes(self) -> list[int]:
        """Those of the run that are there now."""
        self._look()
        return [int(pid) for pid in self._used if Path("/proc", pid).exists()]

    def stop(self) -> float:
        """Ends the watch. Returns the CPU seconds."""
        self._look()
        self._ended.set()
        self.join()
        return self.seconds()

    def _look(self) -> None:
        there = {name for name in os.listdir("/proc") if name.isdigit()}
        self._strangers &= there
        for pid in there - self._strangers:
            try:
                if pid not in self._used and not self._is_ours(pid):
                    self._strangers.add(pid)
                    continue
                fields = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended since
                continue
            self._used[pid] = max(self._used.get(pid, 0.0), (int(fields[11]) + int(fields[12])) / _TICKS)

    def _is_ours(self, pid: str) -> bool:
        return f"{MARK}={self.mark}".encode() in Path("/proc", pid, "environ").read_bytes()
