"""Actors as processes of this machine, forked from servers that have imported the heavy libraries once.

Promises: an actor process has its actor's name in ``ps``, writes to its own log, does not hear the terminal's Ctrl-C or its
end, dies when the launch dies (also by kill -9), and its end is seen at once; none outlives
:meth:`LocalPlacement.end`, stopped or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import setproctitle

from actors.runtime.context import Actor, ActorContext, run_actor
from actors.runtime.logs import PRIVATE, log_path
from actors.runtime.placement import fork_server
from actors.runtime.placement.base import Ending, Room, exit_words
from actors.runtime.placement.process import place
from actors.runtime.spec import ActorId, ActorSpec
from bus.server import RedisServer, die_with_parent
from miles_async.config.schema import RunConfig
from miles_async.monitor.diagnosis import DEAD, Process
from miles_async.monitor.outlet import Outlet
from miles_async.monitor.sight import process_of
from miles_async.runs.state import REDIS_DIR

# what multiprocessing says of a process whose fork server is gone, and that has ended with it
WITH_THE_FORK_SERVER = 255
END_S = 3.0  # killed processes need none of it

# Where actors share cores with the learner, it goes first: it is one, and what it waits for is there already as long as the
# others find time at all. When it waits, they have every core.
YIELD_TO_LEARNER = 10
YIELD_TO_ALL = 19
LEARNER = "learner"
NICE = {LEARNER: 0, "eval_engine": YIELD_TO_ALL}  # by role


def ending(code: int) -> Ending:
    """What an exit code says (negative: the signal)."""
    if code == 0:
        return Ending(True, "it ended before the run did")
    if code == WITH_THE_FORK_SERVER:
        return Ending(False, "the fork server ended, and it with that")
    return Ending(False, exit_words(code))


def load_class(path: str) -> type:
    """The class behind a dotted path. Raises ImportError naming the path."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ValueError, AttributeError) as error:
        raise ImportError(f"no class at {path!r}: {error}") from None


def _become(spec: ActorSpec) -> None:
    """The body of an actor process."""
    fork_server.become_an_actor()
    die_with_parent(signal.SIGKILL)()
    os.umask(PRIVATE)  # the fork server may have begun before the launch had one
    if code := live(spec, place(os.getpid())):
        sys.exit(code)


def live(spec: ActorSpec, where: str, node: str | None = None) -> int:
    """Be the actor of ``spec`` in this process, to its end, with a log and a name of its own; returns the exit code.

    where: the place, as its heartbeats say it; node: the machine that this is on (None: the name of this one).
    """
    setproctitle.setproctitle(f"miles-async {spec.name} {spec.run_dir}")
    log: Any = Outlet(open(log_path(spec.run_dir, spec.name), "a", buffering=1))  # noqa: SIM115  (its disk may be full)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = sys.stderr = log
    form = "%(asctime)s %(name)s %(levelname)s %(message)s"
    logging.basicConfig(stream=log, level=logging.INFO, format=form, force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.nice(NICE.get(spec.role, YIELD_TO_LEARNER))
    import uvloop

    def make(ctx: ActorContext) -> Actor:
        return load_class(spec.path)(ctx)  # here, so that a wrong path is reported like any other cause of death

    try:
        uvloop.run(run_actor(spec, make, where, node))
    except Exception:
        logging.getLogger(spec.name).exception("died")
        return 1
    return 0


def placed(config: RunConfig, run_dir: Path) -> LocalPlacement:
    """The placement of a run's actors on this machine, whatever the run."""
    return LocalPlacement()


class LocalPlacement:
    """Starts actor processes, and tells when and how they end."""

    one_machine = True

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._processes: dict[ActorId, BaseProcess] = {}  # whose ends were not told yet

    def own_bus(self, config: RunConfig, run_dir: Path) -> RedisServer:
        """One on a unix socket."""
        section = config.bus
        return RedisServer(run_dir / REDIS_DIR, section.appendfsync, maxmemory_mb=section.maxmemory_mb)

    def warm_up(self) -> None:
        """Begin to import, unless the launch has begun already."""
        fork_server.begin()

    async def make_room(self, tell: Callable[[str], None]) -> None:
        """A machine takes as many processes as it is asked for."""

    def start(self, spec: ActorSpec) -> None:
        """Start the process of ``spec``."""
        log_path(spec.run_dir, spec.name).parent.mkdir(parents=True, exist_ok=True)
        process = self._context.Process(target=_become, args=(spec,), name=spec.name, daemon=False)
        server = fork_server.LEARNERS if spec.role == LEARNER else fork_server.OTHERS
        server.fork(process)
        self._processes[spec.id] = process

    def running(self) -> list[ActorId]:
        """The actors whose processes have not ended."""
        return [actor for actor, process in self._processes.items() if process.exitcode is None]

    def look(self) -> dict[str, Process]:
        """The processes that run; and the fork servers, where one has not told of an end that is to be seen."""
        numbers = {actor.name: process.pid for actor, process in self._processes.items() if process.exitcode is None}
        seen = {name: process_of(number) for name, number in numbers.items() if number}
        if any(process.state in DEAD for process in seen.values()):
            seen |= {name: process_of(number) for name, server in fork_server.BOTH.items() if (number := server.pid())}
        return seen

    async def ended(self, actor: ActorId) -> Ending:
        """Wait for the end of the process of ``actor``."""
        process = self._processes[actor]
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        loop.add_reader(process.sentinel, done.set)
        try:
            while process.exitcode is None:
                await done.wait()
        finally:
            loop.remove_reader(process.sentinel)
        del self._processes[actor]
        return ending(process.exitcode)

    def terminate(self, actor: ActorId, *, by_force: bool = False) -> None:
        """SIGTERM or SIGKILL, if it runs."""
        process = self._processes.get(actor)
        if process is not None and process.exitcode is None and process.pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and the fork server is about to tell
                os.kill(process.pid, signal.SIGKILL if by_force else signal.SIGTERM)

    async def room(self, role: str) -> Room:
        """On one machine nobody comes or goes by itself."""
        return Room()

    async def rearrange(self, role: str) -> None:
        """Nobody's place is lost."""

    def go_on(self) -> None:
        """Have the fork servers run."""
        for server in fork_server.BOTH.values():
            server.go_on()

    def end(self) -> None:
        """Kill whoever runs, and wait for the ends: for a moment only, since a fork server may be in the way of the news."""
        self.go_on()
        for actor in self.running():
            self.terminate(actor, by_force=True)
        until = time.monotonic() + END_S
        for process in self._processes.values():
            process.join(max(0.0, until - time.monotonic()))

    def close(self) -> None:
        """The launch is over: no process is left, the fork servers included."""
        for server in fork_server.BOTH.values():
            server.end()
