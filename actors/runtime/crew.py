"""The processes of a run: started, replaced when they die, stopped in order.

Promises: who dies is replaced after a back-off, with a new incarnation, until its budget is spent; the ranks of the learner
are replaced together, since they are in collectives with each other, by as many as ``world.py`` says; what a dead actor held is
free at once (a worker's tickets wait again, an engine gets no more requests), once its life is over on the bus
(``bus/lives.py``), so that a process of it that lives on somewhere changes nothing any more; who was asked to leave is not
replaced; no process outlives :meth:`Crew.stop`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

from redis.exceptions import RedisError

from actors.runtime.placement.base import Ending, Placement
from actors.runtime.plan import STOP_STAGES
from actors.runtime.restarts import RestartBudget
from actors.runtime.spec import ActorSpec
from actors.runtime.tasks import end
from actors.runtime.watch import BUS_ERRORS, LOOK_S
from actors.runtime.world import World
from bus import Bus, Ledger, VersionLedger
from bus.deadline import within
from bus.fence import ReplacedError
from bus.lives import Lives
from bus.messages import Control
from miles_async.config.elastic_ranks import with_ranks
from miles_async.config.schema import RunConfig

ASK_S = 2.0  # a bus that does not take the word by then is no reason to go on
KILL_WAIT_S = 3.0  # what a failed run's actors get for saying goodbye


class Crew:
    """The actors of one launch. ``next_incarnation`` gives a number that no process of this run has had."""

    def __init__(
        self,
        placement: Placement,
        config: RunConfig,
        bus: Bus,
        ledger: Ledger,
        lives: Lives,
        next_incarnation: Callable[[], int],
        world: World,
    ) -> None:
        self.placement, self.config, self.bus, self.ledger = placement, config, bus, ledger
        self.lives, self._next_incarnation = lives, next_incarnation
        self.world = world
        self._budget = RestartBudget(config.run)
        self._specs: dict[str, ActorSpec] = {}
        self._ends: dict[asyncio.Task[Ending], str] = {}
        self._leaving: dict[str, asyncio.Event] = {}  # set when its process has ended
        self._replacements: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    def start(self, spec: ActorSpec) -> None:
        self.placement.start(spec)
        self._specs[spec.name] = spec
        self._ends[asyncio.create_task(self.placement.ended(spec.id))] = spec.name
        self._changed.set()

    def running(self, roles: Iterable[str] = ()) -> list[str]:
        names = [actor.name for actor in self.placement.running() if actor.name in self._specs]
        return [name for name in names if not roles or self._specs[name].role in roles]

    def members(self, role: str) -> list[ActorSpec]:
        """Who has this role and stays, oldest first; also who is about to be replaced."""
        return [spec for spec in self._specs.values() if spec.role == role and spec.name not in self._leaving]

    def knows(self, name: str) -> bool:
        return name in self._specs

    def leave(self, name: str) -> asyncio.Event:
        """From now on ``name`` is not replaced. The event is set once its process has ended."""
        gone = self._leaving[name] = asyncio.Event()
        if name not in self._ends.values():
            gone.set()
        return gone

    async def forget(self, spec: ActorSpec) -> None:
        """It has left: what it held is free, and so is its name."""
        await self.lives.retire(spec.name, spec.incarnation)
        await self._free(spec)
        del self._specs[spec.name], self._leaving[spec.name]

    def terminate(self, spec: ActorSpec, *, by_force: bool) -> None:
        """Tell its process to stop, or end it."""
        self.placement.terminate(spec.id, by_force=by_force)

    async def next_end(self) -> tuple[ActorSpec, Ending]:
        """Wait for the end of a process that was to stay; returns who, and how."""
        while True:
            for task in [task for task in self._ends if task.done()]:
                name = self._ends.pop(task)
                if name not in self._leaving:
                    return self._specs[name], task.result()
                self._leaving[name].set()
            for task in [task for task in self._replacements if task.done()]:
                self._replacements.discard(task)
                task.result()
            self._changed.clear()
            changed = asyncio.create_task(self._changed.wait())
            await asyncio.wait({changed, *self._ends, *self._replacements}, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()

    async def replace(self, spec: ActorSpec, after_s: float | None = None) -> bool:
        """Start ``spec`` anew (a learner rank: all ranks) after its back-off. False: its budget is spent.

        ``after_s``: after that time in any case, and at no cost to the budget.
        """
        delay = after_s
        if delay is None:
            delay = self._budget.ask(spec.role if spec.role == "learner" else spec.name, time.monotonic())
        if delay is None:
            return False
        fallen = [one for one in self._specs.values() if one.role == "learner"] if spec.role == "learner" else [spec]
        incarnation = self._next_incarnation()
        await surely(lambda: self.lives.replace({one.name: incarnation for one in fallen}))
        if spec.role == "learner":
            await self._fell_the_world(fallen)
        await surely(lambda: self._free(spec))
        self._replacements.add(asyncio.create_task(self._start_later(fallen, incarnation, delay)))
        return True

    async def _fell_the_world(self, specs: list[ActorSpec]) -> None:
        """Kill all ranks: a collective with a dead one never ends."""
        tasks = [task for task, name in self._ends.items() if self._specs[name].role == "learner"]
        for spec in specs:
            self.placement.terminate(spec.id, by_force=True)
        for task in tasks:
            await task
            self._ends.pop(task, None)

    async def _free(self, spec: ActorSpec) -> None:
        """What the dead held, and where they were: on a machine that is lost nothing there refuses a connection."""
        await self.bus.leave_address(spec.name)
        if spec.role == "rollout":
            await self.ledger.release(str(spec.id), "the worker died")
        elif spec.role == "engine":
            await VersionLedger(self.bus).down(spec.name, "its process ended", spec.incarnation)

    async def _start_later(self, specs: list[ActorSpec], incarnation: int, delay: float) -> None:
        await asyncio.sleep(delay)
        if specs[0].role == "learner":
            specs = await self._sized(specs, incarnation)
        for spec in specs:
            if self._specs.get(spec.name) is spec and spec.name not in self._leaving:  # else it left meanwhile
                self.start(replace(spec, incarnation=incarnation))

    async def _sized(self, specs: list[ActorSpec], incarnation: int) -> list[ActorSpec]:
        """The ranks of the learner's next life. Those that are none any more are forgotten."""
        size = await self.world.size(len(specs))
        if size == len(specs):
            return specs
        config = with_ranks(specs[0].config, size)
        ranks = [replace(specs[0], name=f"learner-{index}", index=index, config=config) for index in range(size)]
        await surely(lambda: self.lives.replace({rank.name: incarnation for rank in ranks}))
        names = {rank.name for rank in ranks}
        for gone in [spec.name for spec in specs if spec.name not in names]:
            await surely(lambda gone=gone: self.bus.forget(gone))
            del self._specs[gone]
        self._specs |= {rank.name: rank for rank in ranks}
        return ranks

    async def ask(self, command: str, roles: tuple[str, ...]) -> bool:
        """Over the bus. False: it did not take the word, and there is nothing to wait for."""
        return await self._say(Control(command=command, roles=roles, reason="the run ends"))

    async def ask_one(self, command: str, spec: ActorSpec, reason: str) -> bool:
        """The same, of one process only."""
        return await self._say(Control(command=command, process=(spec.name, spec.incarnation), reason=reason))

    async def _say(self, control: Control) -> bool:
        try:
            await within(ASK_S, self.bus.publish("control", control), "redis")
        except (RedisError, OSError):
            return False
        return True

    async def stop(self, *, orderly: bool) -> None:
        """Stage by stage, so that nothing that somebody still needs is gone; who does not stop in time is killed."""
        self.placement.go_on()  # else nobody's end is seen
        await end(self._replacements)
        deadline = asyncio.get_running_loop().time() + self.config.run.stop_timeout_s
        everybody = tuple({spec.role for spec in self._specs.values()})
        for stage in STOP_STAGES if orderly else (everybody,):
            asked = await self.ask("stop", stage)
            waiting = [task for task, name in self._ends.items() if self._specs[name].role in stage and not task.done()]
            if waiting and asked:
                left = max(0.1, deadline - asyncio.get_running_loop().time())
                await asyncio.wait(waiting, timeout=left if orderly else min(left, KILL_WAIT_S))
        for name in self.running() if orderly else ():
            print(f"{name} did not stop in time: killed", file=sys.stderr)
        self.placement.end()
        await end(self._ends)


async def surely(call: Callable[[], Awaitable[Any]]) -> Any:
    """The call's answer, however long Redis is away; the run's end cancels it. Raises ReplacedError."""
    while True:
        try:
            return await call()
        except ReplacedError:
            raise
        except BUS_ERRORS:
            await asyncio.sleep(LOOK_S)
