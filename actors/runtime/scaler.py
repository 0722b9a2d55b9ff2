"""Adds and removes engines and rollout workers while a run goes on: the supervisor's answer to ``miles-async scale``, and, with
``placement.elastic``, to the room that the cluster has.

    CLI ──Scale──► Scaler ──roster──► router: nothing new for who leaves; nothing left there: EngineDown
         ◄─Scaled──┘   ▲             broadcaster: no update under way there: its line of the ledger of versions goes
                       └─────────────────────────────────────────────────┘ then its process is asked to stop

Promises: an engine is on the roster before its process starts, so that nobody refuses what it says; one that leaves, or a
worker, finishes what it has in flight for ``run.drain_timeout_s`` and is stopped then, so that others get it: no request
and no group is lost, and no attempt counts as failed. Who leaves is not replaced; its end is no failure. The roster says
how things are, not what happens: a router or a broadcaster that starts in the middle reads it and goes on.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import replace

from actors.runtime.crew import Crew, surely
from actors.runtime.elastic import Elastic
from actors.runtime.plan import engine_names
from actors.runtime.spec import ActorSpec
from actors.runtime.tasks import end
from actors.runtime.watch import BUS_ERRORS, LOOK_S, Watch
from bus import Bus, Roster, VersionLedger
from bus.messages import Scale, Scaled
from miles_async.config.schema import RunConfig
from miles_async.engines.kinds.table import kind_of
from miles_async.runs.places import elastic_bounds

READ_BLOCK_MS = 500
DRAIN_LOOK_S = 0.1

ELASTIC = "placement.elastic: engines come and leave by the room that the cluster has, from {} to {} of them"
NOBODY_SAMPLES = 'rollout.rollout_function = "sft": what is trained on comes with the prompts, and no engine is asked'


class Scaler:
    """``next_incarnation`` gives a number that no process of this run has had."""

    def __init__(
        self, bus: Bus, crew: Crew, watch: Watch, config: RunConfig, next_incarnation: Callable[[], int]
    ) -> None:
        self.bus, self.crew, self.watch, self.config = bus, crew, watch, config
        self.roster = Roster(engine_names(config))
        self.elastic = Elastic(config, bus)
        self._next_incarnation = next_incarnation
        self._departures: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Obey until cancelled."""
        cursor = "0"
        while True:
            try:
                if await self.bus.roster() != self.roster:  # something else was written there
                    await self.bus.set_roster(self.roster)
                requests, cursor = await self.bus.read("control", Scale, cursor, block_ms=READ_BLOCK_MS)
                for request in requests:
                    await self.bus.publish("control", await self._answer(request))
                await self._fit()
            except BUS_ERRORS:
                await asyncio.sleep(LOOK_S)
            for task in [task for task in self._departures if task.done()]:
                self._departures.discard(task)
                task.result()

    async def close(self) -> None:
        """Who is about to leave is stopped with the others."""
        await end(self._departures)

    async def _answer(self, request: Scale) -> Scaled:
        if request.engines is not None and not self.config.rollout.generates:
            return Scaled(request=request.request, refusal=NOBODY_SAMPLES)
        if request.engines is not None and (fixed := kind_of(self.config.engine).FIXED) is not None:
            return Scaled(request=request.request, refusal=fixed)
        if request.engines is not None and (bounds := elastic_bounds(self.config)):
            return Scaled(request=request.request, refusal=ELASTIC.format(*bounds))
        try:
            return await self._scale(request)
        except OSError as error:  # the machine gives no more processes
            return Scaled(request=request.request, refusal=f"not all of it could be done: {error}")

    async def _scale(self, request: Scale) -> Scaled:
        engines, workers = len(self.crew.members("engine")), len(self.crew.members("rollout"))
        starts: list[str] = []
        leaves: list[str] = []
        for role, count in (("engine", request.engines), ("rollout", request.workers)):
            members = self.crew.members(role)
            if count is not None and count > len(members):
                starts += await self._add(members[0], count - len(members))
            elif count is not None:
                leaves += await self._remove(members[: count - 1 : -1])
        answer = Scaled(
            request=request.request,
            engines=(engines, len(self.crew.members("engine"))),
            workers=(workers, len(self.crew.members("rollout"))),
            starts=tuple(starts),
            leaves=tuple(leaves),
        )
        self.watch.tell("scaled", engines=answer.engines[1], workers=answer.workers[1], starts=starts, leaves=leaves)
        return answer

    async def _fit(self) -> None:
        """Have as many engines as the cluster has room for."""
        engines = self.crew.members("engine")
        change = await self.elastic.look(engines, self.crew.placement)
        if not change.come and not change.leave:
            return
        starts = await self._add(engines[0], change.come) if change.come else []
        leaves = await self._remove([spec for spec in engines if spec.name in change.leave])
        counts = {"engines": len(self.crew.members("engine")), "workers": len(self.crew.members("rollout"))}
        self.watch.tell("scaled", **counts, starts=starts, leaves=leaves)

    async def _add(self, like: ActorSpec, count: int) -> list[str]:
        free = (index for index in itertools.count() if not self.crew.knows(f"{like.role}-{index}"))
        specs = [
            replace(like, name=f"{like.role}-{index}", index=index, incarnation=self._next_incarnation())
            for index in itertools.islice(free, count)
        ]
        names = [spec.name for spec in specs]
        if like.role == "engine":
            await self._set_roster(Roster(self.roster.engines | set(names), self.roster.leaving - set(names)))
        await self.crew.lives.replace({spec.name: spec.incarnation for spec in specs})
        for spec in specs:
            self.watch.admit(spec)
            self.crew.start(spec)
        return names

    async def _remove(self, specs: list[ActorSpec]) -> list[str]:
        names = [spec.name for spec in specs]
        if specs and specs[0].role == "engine":
            await self._set_roster(Roster(self.roster.engines, self.roster.leaving | set(names)))
        for spec in specs:
            departure = self._depart(spec, self.crew.leave(spec.name))
            self._departures.add(asyncio.create_task(departure, name=f"{spec.name} leaves"))
        return names

    async def _set_roster(self, roster: Roster) -> None:
        await self.bus.set_roster(roster)
        self.roster = roster

    async def _depart(self, spec: ActorSpec, gone: asyncio.Event) -> None:
        """Wait until it has nothing left to do, stop it, and clear up after it."""
        began = time.monotonic()
        limit = self.config.run.drain_timeout_s
        asked = spec.role == "engine" or await self.crew.ask_one("finish", spec, "it leaves the run")
        ended = asyncio.create_task(gone.wait())
        idle = asyncio.create_task(self._unused(spec.name)) if spec.role == "engine" else ended
        try:
            timeout = limit if asked else 0.0
            done, _ = await asyncio.wait({ended, idle}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not done and spec.role == "engine":
                why = f"it leaves, and was not done within run.drain_timeout_s = {limit:g}"
                # in whichever life it is by now; the router gives its requests to others
                await surely(lambda: VersionLedger(self.bus).down(spec.name, why))
            for by_force in (False, True):
                if not ended.done():
                    self.crew.terminate(spec, by_force=by_force)
                    await asyncio.wait({ended}, timeout=self.config.run.stop_timeout_s)
            await surely(lambda: self.bus.forget(spec.name))
            await surely(lambda: self.crew.forget(spec))
        finally:
            await end({ended, idle})
        self.watch.dismiss(spec.name)
        self.watch.tell("left", actor=spec.name, seconds=round(time.monotonic() - began, 2), finished=bool(done))

    async def _unused(self, engine: str) -> None:
        """Until router and broadcaster have let go of it, or if they have never heard of it."""
        while engine in await surely(lambda: self.bus.engines(self.roster.engines)):  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_LOOK_S)
