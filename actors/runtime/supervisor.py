"""The supervisor: starts the bus and the actors of a run, watches them, stops them in order.

Promises: a run ends by itself, finished or failed, with one clear line for its cause; an actor that dies is seen at once; a
Ctrl-C makes the learner save a checkpoint and everybody stop, within ``run.stop_timeout_s``, then by force; no process is
left behind. It wires the actors and knows none of them: they are found by dotted path.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import uvloop

from actors.runtime.context import ActorSpec
from actors.runtime.home import RunHome, check_prompts, make_inputs
from actors.runtime.local import LocalRuntime
from actors.runtime.plan import STOP_STAGES, specs
from actors.runtime.watch import Watch
from bus import Bus, Ledger, connect
from bus.messages import Control
from bus.server import RedisServer
from miles_async.builtin import is_builtin
from miles_async.config import RunConfig
from miles_async.monitor.monitor import Monitor

OK, FAILED, INTERRUPTED = 0, 1, 130


class Supervisor:
    """One launch of the run in ``run_dir``."""

    def __init__(self, config: RunConfig, run_dir: Path, monitor: Monitor) -> None:
        self.config, self.home, self.monitor = config, RunHome(run_dir), monitor
        self.runtime = LocalRuntime()
        self.interrupted = asyncio.Event()
        self.roles: dict[str, str] = {}
        self.ends: dict[asyncio.Task[int], str] = {}

    def run(self) -> int:
        """Run to the end; returns the exit code. Raises NoRedisError, RunInUseError, OSError before anything runs."""
        return uvloop.run(self._main())

    async def _main(self) -> int:
        resumed = self.home.enter()
        self.runtime.warm_up()
        server = RedisServer(self.home.path / "redis", self.config.bus.appendfsync)
        try:
            url = self.config.bus.url or server.start()
            bus = await connect(url, self.home.state["run_id"])
            try:
                self.home.announce(url)
                return await self._launch(bus, url, resumed)
            finally:
                await bus.close()
        finally:
            server.stop()
            self.home.leave()

    async def _launch(self, bus: Bus, url: str, resumed: bool) -> int:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, self._interrupt)
        ledger = Ledger(bus)
        await bus.forget_processes()
        await ledger.prepare()
        await ledger.release()  # no worker of an earlier launch lives
        self.monitor.start(self.config, self.home.path, resumed)
        watch = Watch(bus, ledger, self.monitor, self.config, self.runtime.running)
        status, reason = "failed", ""
        try:
            await self._make_inputs()
            self._start(url)
            status, reason = await self._until_the_end(watch)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            raise
        finally:
            await self._stop(bus, orderly=status != "failed")
            await watch.close()
            self.monitor.finish(status, await ledger.counts(), reason)
        return {"finished": OK, "stopped": INTERRUPTED}.get(status, FAILED)

    def _interrupt(self) -> None:
        if self.interrupted.is_set():  # the second Ctrl-C
            for name in self.runtime.running():
                self.runtime.terminate(name, signal.SIGKILL)
        self.interrupted.set()

    async def _make_inputs(self) -> None:
        name = self.config.model.hf_checkpoint
        if is_builtin(name):
            # in a forked process: it needs torch, which this process never imports
            directory = self.home.model_path(self.config)
            await self.runtime.call(make_inputs, name, directory, self.config.run.seed)
        check_prompts(self.config, self.home.model_path(self.config))

    def _start(self, url: str) -> None:
        model_path = str(self.home.model_path(self.config))
        state = self.home.state
        for spec in specs(self.config, self.home.path, model_path, url, state["run_id"], state["incarnation"]):
            self._start_one(spec)

    def _start_one(self, spec: ActorSpec) -> None:
        self.runtime.start(spec)
        self.roles[spec.name] = spec.role
        self.ends[asyncio.create_task(self.runtime.ended(spec.name))] = spec.name

    async def _until_the_end(self, watch: Watch) -> tuple[str, str]:
        """Wait for the learner to finish, an interruption, or a failure; returns the status and its cause."""
        interruption = asyncio.create_task(self.interrupted.wait())
        trouble = asyncio.create_task(watch.trouble())
        try:
            while True:
                waited: set[asyncio.Task[Any]] = {interruption, trouble, *self.ends}
                done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if interruption in done:
                    return "stopped", "interrupted"
                if trouble in done:
                    return "failed", trouble.result()
                for task in done:
                    name = self.ends.pop(task)
                    if task.result() != 0:
                        return "failed", await watch.cause_of_death(name, task.result())
                    if self.roles[name] != "learner":
                        return "failed", f"{name} ended before the run did"
                    if not self._running(("learner",)):
                        return "finished", ""
        finally:
            interruption.cancel()
            trouble.cancel()

    def _running(self, roles: Iterable[str]) -> list[str]:
        return [name for name in self.runtime.running() if self.roles[name] in roles]

    async def _stop(self, bus: Bus, *, orderly: bool) -> None:
        """Producers first, so that nothing that they still need is gone; who does not stop in time is killed."""
        deadline = asyncio.get_running_loop().time() + self.config.run.stop_timeout_s
        for stage in STOP_STAGES if orderly else (tuple(self.roles.values()),):
            await bus.publish("control", Control(command="stop", roles=stage, reason="the run ends"))
            waiting = [task for task, name in self.ends.items() if self.roles[name] in stage and not task.done()]
            if waiting:
                left = max(0.1, deadline - asyncio.get_running_loop().time())
                await asyncio.wait(waiting, timeout=left if orderly else min(left, 3.0))
        for name in self.runtime.running():
            if orderly:
                print(f"{name} did not stop in time: killed", file=sys.stderr)
            self.runtime.terminate(name, signal.SIGKILL)
        self.runtime.join()
        for task in self.ends:
            task.cancel()
