"""The servers that the actors of this process are forked from, and that alone tell how one ended: one for learners, which
import more than all others together, and one for the others, which are not to wait for that.

Promises: what a terminal or ``timeout`` says to the whole process group does not end one, not even while it starts; one that
ends while it is to start an actor is replaced; after :meth:`ForkServer.go_on` a server that was stopped tells; after
:meth:`ForkServer.end` it is gone, and with it every process that it forked (``die_with_parent``).
Importing this file costs next to nothing, so that a launch can begin them first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

import psutil

from miles_async.hooks.environment import environment

LAUNCH_PID = "MILES_ASYNC_LAUNCH_PID"  # in its environment: whose end is its own
# what Ctrl-C, `timeout` and a closed terminal send to every process of a group; ours are stopped by the supervisor, in order
OF_THE_GROUP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

ENDS_S = 1.0  # how long one that answers no more is given to be seen as ended
GONE = (EOFError, ConnectionError)  # what multiprocessing raises of a server that ends while it is asked


class ForkServer:
    """One of them. preload: the module that it imports before it forks anybody."""

    def __init__(self, preload: str) -> None:
        # multiprocessing has one for a program; these are further objects of its class
        self._server: Any = forkserver.ForkServer()  # pyright: ignore[reportAttributeAccessIssue]  (it is not in the stubs)
        self._server.set_forkserver_preload([preload])
        self._preload = preload

    def begin(self) -> None:
        """Start it, unless it lives."""
        if self._lives():
            return
        threads = os.environ.get("OMP_NUM_THREADS", "1")  # torch asks when it is imported
        # one after the other: a resource tracker that starts lets some of them through again
        with blocked():
            resource_tracker.ensure_running()
        # it and all its children inherit that
        with blocked(), environment({LAUNCH_PID: str(os.getpid()), "OMP_NUM_THREADS": threads}):
            self._server.ensure_running()

    def fork(self, process: BaseProcess) -> None:
        """Start ``process`` from it, which begins if need be, and goes on if somebody has stopped it. Waits for its imports.

        One that ends meanwhile is followed by another, once; one that lives, and whose newborn has ended, is asked again.
        Raises RuntimeError: the second attempt failed as well.
        """
        try:
            self._fork(process)
        except GONE:
            if self._ends():
                self.end()
            try:
                self._fork(process)
            except GONE as error:
                found = f"the fork server that is to import {self._preload} failed twice to start {process.name}"
                raise RuntimeError(f"{found}: what it wrote to stderr says why") from error

    def _fork(self, process: BaseProcess) -> None:
        self.begin()
        self.go_on()  # one that is stopped would be waited for
        usual = forkserver.connect_to_new_process
        forkserver.connect_to_new_process = self._server.connect_to_new_process
        try:
            process.start()
        finally:
            forkserver.connect_to_new_process = usual

    def pid(self) -> int | None:
        return self._server._forkserver_pid

    def go_on(self) -> None:
        """Let it run where somebody has stopped it; else nothing."""
        if (number := self.pid()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGCONT)

    def end(self) -> None:
        """At once, whatever it does. Safe to call twice."""
        if (number := self.pid()) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
            self._server._stop()  # it is reaped, and another one can begin

    def _ends(self) -> bool:
        """Whether it has ended, or does within ENDS_S."""
        until = time.monotonic() + ENDS_S
        while self._lives():
            if time.monotonic() >= until:
                return False
            time.sleep(0.01)
        return True

    def _lives(self) -> bool:
        number = self.pid()
        try:
            return number is not None and psutil.Process(number).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


LEARNERS = ForkServer("actors.runtime.placement.preload_learner")
OTHERS = ForkServer("actors.runtime.placement.preload")
BOTH = {"the fork server of learners": LEARNERS, "the fork server": OTHERS}


def begin() -> None:
    """Start both. They import at the same time, while the launch does other things."""
    for server in BOTH.values():
        server.begin()


def become_an_actor() -> None:
    """Be an actor, in a process that one of them forked: of the signals to the group, SIGTERM is for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_THE_GROUP)


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """What is said to the group meanwhile is heard at the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_THE_GROUP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
