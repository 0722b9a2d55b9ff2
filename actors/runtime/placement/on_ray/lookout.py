"""One small Ray actor for each machine: what only a process of that machine can see and do for the launch.

Promises: a number that is another process's by now is never signalled, and is seen as gone.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from actors.runtime.placement.on_ray.host import At
from miles_async.monitor.diagnosis import DEAD

GONE = "gone"


class Lookout:
    """Of the machine that it runs on."""

    def states(self, processes: Sequence[At]) -> list[str]:
        """Of each, as psutil has it, or "gone"."""
        return [_state(one) for one in processes]

    def signal(self, one: At, signum: int) -> None:
        """To a process that is there."""
        if _state(one) != GONE:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signum)

    def ended(self, processes: Sequence[At], timeout_s: float) -> bool:
        """Wait until all of them are; whether they are."""
        until = time.monotonic() + timeout_s
        while any(_state(one) not in DEAD for one in processes):
            if time.monotonic() >= until:
                return False
            time.sleep(0.02)
        return True

    def reads(self, path: str) -> str:
        """What is in the file; empty: it is not there."""
        try:
            return Path(path).read_text()
        except OSError:
            return ""


def _state(one: At) -> str:
    try:
        process = psutil.Process(one.pid)
        return str(process.status()) if process.create_time() == one.born else GONE
    except psutil.NoSuchProcess:
        return GONE
