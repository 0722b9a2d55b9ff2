"""The server that every actor of this process is forked from, and that alone tells how one ended.

Promises: what a terminal or ``timeout`` says to the whole process group does not end it, not even while it starts; after
:func:`go_on` a server that was stopped tells; after :func:`end` none is left, nor any process that it forked
(``die_with_parent``).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from typing import Any

import psutil

LAUNCH_PID = "MILES_ASYNC_LAUNCH_PID"  # in its environment: whose end is its own
# what Ctrl-C, `timeout` and a closed terminal send to every process of a group; ours are stopped by the supervisor, in order
OF_THE_GROUP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def begin() -> None:
    """Start it, if none lives."""
    if _lives():
        return
    os.environ[LAUNCH_PID] = str(os.getpid())
    # one after the other: a resource tracker that starts lets some of them through again
    with _blocked():
        resource_tracker.ensure_running()
    with _blocked():
        forkserver.ensure_running()  # it and all its children inherit that


def become_an_actor() -> None:
    """Be an actor, in a process that it forked: of the signals to the group, SIGTERM is for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_THE_GROUP)


@contextlib.contextmanager
def _blocked() -> Iterator[None]:
    """What is said to the group meanwhile is heard at the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_THE_GROUP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
