"""The supervisor: starts the bus and the actors of a run, watches them, replaces those that die, stops them in order.

Promises: a run ends by itself, finished or failed, with one clear line for its cause; an actor or a Redis server that dies
is seen at once and replaced, within a budget; what a restart cannot mend (a wrong key, file or path) ends the run; a
Ctrl-C makes the learner save a checkpoint and everybody stop, within ``run.stop_timeout_s``, then by force; no process is
left behind. It wires the actors and knows none of them: they are found by dotted path.
"""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import uvloop

from actors.runtime.context import ActorSpec
from actors.runtime.crew import Crew
from actors.runtime.home import RunHome, check_prompts, make_inputs
from actors.runtime.local import LocalRuntime
from actors.runtime.plan import specs
from actors.runtime.restarts import RestartBudget
from actors.runtime.tasks import end
from actors.runtime.watch import Watch
from bus import Bus, Ledger, NoRedisError, connect
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
        self.server = RedisServer(run_dir / "redis", config.bus.appendfsync, maxmemory_mb=config.bus.maxmemory_mb)
        self.interrupted = asyncio.Event()

    def run(self) -> int:
        """Run to the end; returns the exit code. Raises NoRedisError, RunInUseError, OSError before anything runs."""
        return uvloop.run(self._main())

    async def _main(self) -> int:
        resumed = self.home.enter()
        self.runtime.warm_up()
        try:
            url = self.config.bus.url or self.server.start()
            bus = await connect(url, self.home.state["run_id"])
            try:
                self.home.announce(url, self.server.pid)
                return await self._launch(bus, url, resumed)
            finally:
                await bus.close()
        finally:
            self.server.stop()
            self.home.leave()

    async def _launch(self, bus: Bus, url: str, resumed: bool) -> int:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, self._interrupt)
        ledger = Ledger(bus)
        await bus.forget_processes()
        await ledger.prepare()
        await ledger.release()  # no worker of an earlier launch lives; that is not the groups' fault
        self.monitor.start(self.config, self.home.path, resumed)
        watch = Watch(bus, ledger, self.monitor, self.config, self.runtime.running)
        crew = Crew(self.runtime, self.config, bus, ledger, self.home.next_incarnation)
        guard = asyncio.create_task(self._guard_redis(watch))
        status, reason = "failed", ""
        try:
            self._make_inputs()
            for spec in self._specs(url):
                crew.start(spec)
            status, reason = await self._until_the_end(crew, watch, guard)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            raise
        finally:
            await crew.stop(orderly=status != "failed")
            await end([guard])
            await watch.close()
            self.monitor.finish(status, await ledger.counts(), reason)
        return {"finished": OK, "stopped": INTERRUPTED}.get(status, FAILED)

    def _interrupt(self) -> None:
        if self.interrupted.is_set():  # the second Ctrl-C
            for name in self.runtime.running():
                self.runtime.terminate(name, signal.SIGKILL)
        self.interrupted.set()

    def _make_inputs(self) -> None:
        model_path = self.home.model_path(self.config)
        if is_builtin(self.config.model.hf_checkpoint):
            make_inputs(self.config.model.hf_checkpoint, model_path, self.config.run.seed)
        check_prompts(self.config, model_path)

    def _specs(self, url: str) -> list[ActorSpec]:
        model_path = str(self.home.model_path(self.config))
        state = self.home.state
        return specs(self.config, self.home.path, model_path, url, state["run_id"], state["incarnation"])

    async def _until_the_end(self, crew: Crew, watch: Watch, guard: asyncio.Task[str]) -> tuple[str, str]:
        """Wait for the learner to finish, an interruption, or a failure; returns the status and its cause."""
        interruption = asyncio.create_task(self.interrupted.wait())
        trouble = asyncio.create_task(watch.trouble())
        ended = asyncio.create_task(crew.next_end())
        try:
            while True:
                waited: set[asyncio.Task[Any]] = {interruption, trouble, guard, ended}
                done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if interruption in done:
                    return "stopped", "interrupted"
                for failure in (trouble, guard):
                    if failure in done:
                        return "failed", failure.result()
                spec, code = ended.result()
                if spec.role == "learner" and code == 0:
                    if not crew.running(("learner",)):
                        return "finished", ""
                elif (cause := await self._replace(spec, code, crew, watch)) is not None:
                    return "failed", cause
                ended = asyncio.create_task(crew.next_end())
        finally:
            await end([interruption, trouble, ended])

    async def _replace(self, spec: ActorSpec, code: int, crew: Crew, watch: Watch) -> str | None:
        """Replace who died; the cause of the run's failure if that is pointless or too often."""
        cause, fatal = await watch.cause_of_death(spec.name, code)
        if fatal:
            return cause
        if not await crew.replace(spec):
            times = self.config.run.max_restarts
            return f"{cause} (after {times} restarts)" if times else cause
        watch.tell("restarted", actor=spec.name, cause=cause)
        return None

    async def _guard_redis(self, watch: Watch) -> str:
        """Start our Redis server again when it dies; returns why it is given up. The clients reconnect by themselves."""
        if self.config.bus.url is not None:
            await asyncio.Event().wait()
        budget = RestartBudget(self.config.run)
        while True:
            code = await asyncio.to_thread(self.server.wait)
            delay = budget.ask("redis", time.monotonic())
            if delay is None:
                return f"redis: ended with {code}, too often; see {self.server.directory / 'redis.log'}"
            await asyncio.sleep(delay)
            try:
                self.home.announce(self.server.start(), self.server.pid)
            except NoRedisError as error:
                return f"redis: {error}"
            watch.tell("restarted", actor="redis", cause=f"it ended with {code}")
