"""The supervisor: starts the bus and the actors of a run, watches them, replaces those that die, stops them in order.

Promises: a run ends by itself, finished or failed, with one clear line for its cause; an actor or a Redis server that dies
is seen at once and replaced, within a budget; what a restart cannot mend (a wrong key, file or path) ends the run; a
Ctrl-C makes the learner save a checkpoint and everybody stop, within ``run.stop_timeout_s``, then by force; no process is
left behind; one whose run has begun a later launch ends at once, and changes nothing. It wires the actors and knows none of
them: they are found by dotted path.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from actors.runtime.crew import Crew
from actors.runtime.full_disk import RESTART_S, died_of_it, keep_written
from actors.runtime.home import RunHome, check_prompts, make_inputs
from actors.runtime.logs import PRIVATE, log_beside_the_actors, log_path
from actors.runtime.memory import SnapshotRoom
from actors.runtime.placement.base import Ending, Placement, exit_words
from actors.runtime.plan import specs
from actors.runtime.restarts import RestartBudget
from actors.runtime.scaler import Scaler
from actors.runtime.spec import ActorSpec
from actors.runtime.tasks import end
from actors.runtime.watch import Watch
from actors.runtime.world import World
from bus import Bus, Ledger, NoRedisError, connect
from bus.deadline import within
from bus.fence import Life
from bus.lives import Lives
from bus.messages import Event
from miles_async.config.schema import RunConfig
from miles_async.config.secrets import resolve
from miles_async.engines.absent import refuse_absent
from miles_async.evaluation import settings as evaluation
from miles_async.models.builtin import is_builtin
from miles_async.monitor.monitor import Monitor
from miles_async.resume.begin import Beginning, begin

OK, FAILED, INTERRUPTED = 0, 1, 130
SUPERVISOR = "supervisor"
BUS_CLOSE_S = 3.0


class Supervisor:
    """One launch of the run in ``run_dir``, whose actors run where ``placement`` puts them."""

    def __init__(self, config: RunConfig, run_dir: Path, monitor: Monitor, placement: Placement) -> None:
        self.config, self.home, self.monitor = config, RunHome(run_dir), monitor
        self.placement = placement
        self.server = placement.own_bus(config, run_dir)
        self.beginning = Beginning()
        self.room = SnapshotRoom(config, run_dir, one_machine=placement.one_machine)
        self.interrupted = asyncio.Event()
        self.trained = asyncio.Event()  # the learner is done: only the evaluation is waited for
        self.evaluates = config.eval.eval_interval is not None

    def run(self) -> int:
        """Run to the end; returns the exit code.

        Raises NoRedisError, RunInUseError, RunStateError, ConfigError (the run cannot go on like this), OSError before
        anything runs.
        """
        os.umask(PRIVATE)  # of this process, and of Redis
        return uvloop.run(self._main())

    async def _main(self) -> int:
        resumed = self.home.enter()
        try:
            state = self.home.state
            self.beginning = begin(self.config, self.home.path, state.run_id, state.incarnation, resumed=resumed)
            if self.beginning.over:
                self.monitor.recall(self.home.path, self.beginning.over)
                return OK
            if self.config.replay.run is None:
                await refuse_absent(self.config)
            log_beside_the_actors(log_path(self.home.path, "supervisor"))
            self.placement.warm_up()
            url = resolve("bus.url", self.config.bus.url) or await self._start_redis()
            self.home.announce(url, self.server.pid)
            await self.placement.make_room(self.monitor.say)
            bus = await connect(url, self.home.state.run_id, tell=self.monitor.say)
            try:
                return await self._launch(bus, url, resumed)
            finally:
                with contextlib.suppress(TimeoutError):
                    await within(BUS_CLOSE_S, bus.close(), "the bus")
        finally:
            self.placement.close()
            self.server.stop()
            self.home.leave()

    async def _launch(self, bus: Bus, url: str, resumed: bool) -> int:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, self._interrupt)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # else it was started to outlive its terminal
            loop.add_signal_handler(signal.SIGHUP, self.interrupted.set)  # which may come twice
        ledger, lives = Ledger(bus), Lives(bus)
        self.home.go_past(await lives.greatest())
        bus.life, bus.replaced = Life(SUPERVISOR, self.home.state.incarnation), self._replaced
        await lives.begin(self.home.state.incarnation)
        await bus.forget_processes()
        await ledger.prepare()
        await ledger.release()  # no worker of an earlier launch lives; that is not the groups' fault
        self.monitor.start(self.config, self.home.path, resumed)
        for kind, data in self.beginning.events:
            self.monitor.on_event(Event(actor="supervisor", kind=kind, time=time.time(), data=data))
        watch = Watch(bus, ledger, lives, self.monitor, self.config, self.placement, self.server)
        world = World(self.config, self.home.path, self.placement, watch.tell)
        crew = Crew(self.placement, self.config, bus, ledger, lives, self.home.next_incarnation, world)
        scaler = Scaler(bus, crew, watch, self.config, self.home.next_incarnation)
        guard = asyncio.create_task(self._guard_redis(watch))
        keepers = [asyncio.create_task(one) for one in (keep_written(self.home, watch), world.watch(crew))]
        status, reason = "failed", ""
        try:
            await self.room.begin(keep_pins=self.evaluates, tell=watch.tell)
            self._make_inputs()
            for spec in self._specs(url):
                crew.start(spec)
            status, reason = await self._until_the_end(crew, watch, guard, scaler)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            raise
        finally:
            await scaler.close()
            await crew.stop(orderly=status != "failed")
            await end([guard, *keepers])
            answers = await watch.bus_answers()
            if not answers:
                self.server.kill()  # nothing else would end a server that is stopped, nor the calls that wait for it
            await watch.close(bus_answers=answers)
            self.monitor.finish(status, watch.counts, reason)
            # one that was interrupted goes on with what waits for an evaluation
            self.monitor.note = self.room.end(keep_pins=status == "stopped" and self.evaluates)
        return {"finished": OK, "stopped": INTERRUPTED}.get(status, FAILED)

    def _interrupt(self) -> None:
        if self.interrupted.is_set():  # the second Ctrl-C
            for actor in self.placement.running():
                self.placement.terminate(actor, by_force=True)
        self.interrupted.set()

    def _replaced(self, why: str) -> None:
        """The run is another launch's by now, and so is what lies in its directory."""
        print(f"miles-async: {why}: this launch ends", file=sys.stderr, flush=True)
        self.placement.end()
        self.placement.close()
        self.server.kill()
        os._exit(FAILED)

    def _make_inputs(self) -> None:
        model_path = self.home.model_path(self.config)
        if is_builtin(self.config.model.hf_checkpoint):
            make_inputs(self.config.model.hf_checkpoint, model_path, self.config.run.seed)
        if self.config.replay.run is None:
            check_prompts(self.config, model_path)

    def _specs(self, url: str) -> list[ActorSpec]:
        model_path = str(self.home.model_path(self.config))
        state = self.home.state
        return specs(self.config, self.home.path, model_path, url, state.run_id, state.incarnation)

    async def _until_the_end(
        self, crew: Crew, watch: Watch, guard: asyncio.Task[str], scaler: Scaler
    ) -> tuple[str, str]:
        """Wait for the learner to finish, an interruption, or a failure; returns the status and its cause."""
        interruption = asyncio.create_task(self.interrupted.wait())
        trouble = asyncio.create_task(watch.trouble())
        ended = asyncio.create_task(self._next_end(crew, watch))
        too_late = asyncio.create_task(self._final_deadline(watch))
        scaling = asyncio.create_task(scaler.run())
        try:
            while True:
                waited: set[asyncio.Task[Any]] = {interruption, trouble, guard, ended, too_late, scaling}
                done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if scaling in done:
                    scaling.result()  # it ends only by an error
                if interruption in done:
                    return ("finished", "") if self.trained.is_set() else ("stopped", "interrupted")
                if too_late in done:
                    return "finished", ""
                for failure in (trouble, guard):
                    if failure in done:
                        return "failed", failure.result()
                if (outcome := ended.result()) is not None:
                    return outcome
                ended = asyncio.create_task(self._next_end(crew, watch))
        finally:
            await end([interruption, trouble, ended, too_late, scaling])

    async def _next_end(self, crew: Crew, watch: Watch) -> tuple[str, str] | None:
        """Wait for a process to end, and replace it; the run's status and its cause if that is its end.

        It takes as long as Redis is away: the rest goes on to be watched meanwhile.
        """
        spec, ending = await crew.next_end()
        if spec.role == "learner" and ending.in_order:
            return None if crew.running(("learner",)) else await self._finish_evaluation(crew, watch)
        if spec.role == "evaluator" and ending.in_order and self.trained.is_set():
            return "finished", ""
        cause = await self._replace(spec, ending, crew, watch)
        if cause is None or spec.role not in evaluation.ROLES:
            return None if cause is None else ("failed", cause)
        watch.tell("evaluation_given_up", actor=spec.name, cause=cause)  # no reason to end a training
        self.evaluates = False
        return ("finished", "") if self.trained.is_set() else None

    async def _finish_evaluation(self, crew: Crew, watch: Watch) -> tuple[str, str] | None:
        """The learner is done. The end of the run, unless points are due still: then the evaluator is asked for them."""
        if not self.evaluates or not await crew.ask("finish", ("evaluator",)):
            return "finished", ""
        watch.rest()
        self.trained.set()
        return None

    async def _final_deadline(self, watch: Watch) -> None:
        """Until ``eval.final_timeout_s`` after the last step."""
        await self.trained.wait()
        limit = self.config.eval.final_timeout_s
        await asyncio.sleep(limit)
        watch.tell("evaluation_too_late", cause=f"not done eval.final_timeout_s = {limit:g} after the last step")

    async def _replace(self, spec: ActorSpec, ending: Ending, crew: Crew, watch: Watch) -> str | None:
        """Replace who died; the cause of the run's failure if that is pointless or too often."""
        cause, fatal = await watch.cause_of_death(spec.name, ending)
        if fatal:
            return cause
        after_s = RESTART_S if died_of_it(cause, self.home.path) else None
        if spec.role == "learner" and (why := crew.world.fallen(cause)):
            cause, after_s = f"learner: {why}", 0.0
        if not await crew.replace(spec, after_s):
            times = self.config.run.max_restarts
            return f"{cause} (after {times} restarts)" if times else cause
        watch.tell("restarted", actor=spec.name, cause=cause)
        return None

    async def _start_redis(self) -> str:
        """Returns its URL once it answers; until then it can be asked for by `status`, which says how far it is."""
        self.server.spawn()
        self.home.announce(self.server.url, self.server.pid)
        await asyncio.to_thread(self.server.wait_until_it_answers, tell=self.monitor.say)
        self.home.announce(self.server.url, self.server.pid)
        return self.server.url

    async def _guard_redis(self, watch: Watch) -> str:
        """Start our Redis server again when it dies; returns why it is given up. The clients reconnect by themselves."""
        if self.config.bus.url is not None:
            await asyncio.Event().wait()
        budget = RestartBudget(self.config.run)
        while True:
            code = await asyncio.to_thread(self.server.wait)
            delay = budget.ask("redis", time.monotonic())
            if delay is None:
                return f"redis: {exit_words(code)}, too often; see {self.server.directory / 'redis.log'}"
            await asyncio.sleep(delay)
            try:
                await self._start_redis()
            except NoRedisError as error:
                return f"redis: {error}"
            watch.tell("restarted", actor="redis", cause=f"redis: {exit_words(code)}")
