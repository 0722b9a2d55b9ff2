"""The server that every actor of this process is forked from, and that alone tells how one ended.

Promises: after :func:`go_on` a server that was stopped tells; after :func:`end` none is left, nor any process that it forked
(``die_with_parent``).
"""

from __future__ import annotations

import contextlib
import os
import signal
from multiprocessing import forkserver
from typing import Any

import psutil

LAUNCH_PID = "MILES_ASYNC_LAUNCH_PID"  # in its environment: whose end is its own


def begin() -> None:
    """Start it, if none lives."""
    if _lives():
        return
    os.environ[LAUNCH_PID] = str(os.getpid())
    # a closed terminal tells every process of its group; ours are stopped by the supervisor, in order
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        forkserver.ensure_running()  # it and all its children inherit that
    finally:
        signal.signal(signal.SIGHUP, before)


def _lives() -> bool:
    number = pid()
    try:
        return number is not None and psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pid() -> int | None:
    return _server()._forkserver_pid


def go_on() -> None:
    """Let it run where somebody has stopped it; else nothing."""
    if (number := pid()) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGCONT)


def end() -> None:
    """At once, whatever it does. Safe to call twice."""
    if (number := pid()) is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
        _server()._stop()  # it is reaped, and another one can begin


def _server() -> Any:
    return forkserver._forkserver  # pyright: ignore[reportAttributeAccessIssue]  (it has no public name)
