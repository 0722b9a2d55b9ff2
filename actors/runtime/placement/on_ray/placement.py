"""Actors as named actors of a Ray cluster, on as many machines as that has.

Promises: those of every placement (``base.py``); besides: too little is said before anything waits, with the sums; who has to
be together is (``layout.py``); an actor is called NAME/INCARNATION in a namespace of its run's, and is started again by the
launch and never by Ray; an end is told once the process is gone, or its machine is; a launch that is gone leaves no actor and
no group, however it ended. The supervisor runs in the launching process: with its machine a run ends, and another launch
goes on with it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import hashlib
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from actors.runtime.many_machines import many_machines, open_redis
from actors.runtime.placement.base import Ending, NoPlaceError, Room
from actors.runtime.placement.on_ray import layout, sums
from actors.runtime.placement.on_ray.cluster import Cluster
from actors.runtime.placement.on_ray.groups import Groups
from actors.runtime.placement.on_ray.host import Host
from actors.runtime.placement.on_ray.lives import Life
from actors.runtime.placement.on_ray.lookouts import Lookouts
from actors.runtime.spec import ActorId, ActorSpec
from bus.server import RedisServer
from miles_async.config.schema import RunConfig
from miles_async.monitor.diagnosis import NO_PLACE, Process, role_of
from miles_async.runs.places import elastic_bounds

END_S = 3.0
ALWAYS = {"OMP_NUM_THREADS": "1"}  # torch asks when it is imported; Ray would set it to what num_cpus says
_HOST: Any = ray.remote(max_restarts=0, max_task_retries=0)(Host)


class RayPlacement:
    """One launch's."""

    one_machine = False

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        self.config, self.run_dir = config, run_dir
        self._namespace = config.placement.namespace or namespace_of(run_dir)
        self._cluster = Cluster(config.placement, self._namespace)
        self._groups = Groups(config, self._namespace, self._cluster)
        self._lookouts = Lookouts(self._namespace)
        self._lives: dict[ActorId, Life] = {}  # whose ends were not told yet
        self._had: set[str] = set()  # names of actors that had a place once
        self._looking: asyncio.Task[None] | None = None
        self._env = environment_of(config)

    def own_bus(self, config: RunConfig, run_dir: Path) -> RedisServer:
        """One on the launch's machine, which others reach."""
        return open_redis(config, run_dir)

    def warm_up(self) -> None:
        """Find the cluster, do the sums, and have Ray begin to look for places. Raises ConfigError, NoPlaceError."""
        self._cluster.attach(self._groups.bundles)
        if why := sums.missing(self._groups.bundles, self._cluster.machines()):
            raise NoPlaceError(f"the Ray cluster at {self._cluster.address} is too small: {why}")
        self._groups.ask()

    async def make_room(self, tell: Callable[[str], None]) -> None:
        """Wait for the places of all groups."""
        self._looking = asyncio.create_task(self._lookouts.keep_looking(self._lives.values), name="lookouts")
        await self._groups.wait(self.config.placement.ready_timeout_s, tell)
        if self._cluster.gpus() and not any("GPU" in bundle.resources for bundle in self._groups.bundles):
            tell(
                "the Ray cluster has GPUs, and no actor of this run asks for one: it computes on CPUs (placement.ROLE.num_gpus)"
            )

    def start(self, spec: ActorSpec) -> None:
        """Have Ray start the actor of ``spec``, which waits for its place. Raises NoPlaceError: there is none for it."""
        seat = self._seat(spec.role, spec.index)
        if seat.added and spec.name not in self._had and elastic_bounds(self.config) is None:
            self._cluster.check_free(spec.name, seat.bill)
        handle = _HOST.options(
            name=str(spec.id),
            namespace=self._namespace,
            num_cpus=seat.num_cpus,
            num_gpus=seat.num_gpus,
            resources=dict(seat.resources),
            scheduling_strategy=self._strategy(seat),
        ).remote()
        placed = replace(spec, site=many_machines(self.config, spec.bus_url))
        at = handle.at.remote()  # asked first, and answered first
        self._lives[spec.id] = Life(seat, handle, at, handle.live.remote(placed, self._env))
        self._had.add(spec.name)

    def _seat(self, role: str, index: int) -> layout.Seat:
        """As things are now."""
        seat = layout.seat(self.config, role, index)
        return replace(seat, bundle=self._groups.bundle(seat.group, seat.bundle)) if seat.group else seat

    def _strategy(self, seat: layout.Seat) -> Any:
        if seat.group:
            return PlacementGroupSchedulingStrategy(self._groups.of(seat.group), seat.bundle)
        if seat.beside_launch:
            return NodeAffinitySchedulingStrategy(self._cluster.here, soft=False)
        return "SPREAD" if seat.apart else "DEFAULT"

    def running(self) -> list[ActorId]:
        """The actors whose ends are not known, also those that wait for a place."""
        return [actor for actor, life in self._lives.items() if life.runs]

    def look(self) -> Mapping[str, Process]:
        """The processes as their machines saw them last; of one without a place, what it waits for."""
        return {
            actor.name: Process(at.where, life.state) if (at := life.at) else Process(_waits(life), NO_PLACE)
            for actor, life in self._lives.items()
            if life.runs
        }

    async def ended(self, actor: ActorId) -> Ending:
        """Wait for the end of ``actor``, and for that of its process."""
        life = self._lives[actor]
        ending = await life.ending(self.config.placement.ready_timeout_s, lambda: _waits(life, self._cluster.free()))
        life.kill()  # the process that was its host
        if (at := life.at) is not None:
            await self._lookouts.see_gone(at)
        del self._lives[actor]
        return ending

    def terminate(self, actor: ActorId, *, by_force: bool = False) -> None:
        """SIGTERM, or the end at once, if it runs; of one that has no place yet the latter."""
        life = self._lives.get(actor)
        if life is None or not life.runs:
            return
        at = life.at
        if at is not None:  # by force, too: Ray would give one that is stopped five seconds
            self._lookouts.signal(at, signal.SIGKILL if by_force else signal.SIGTERM)
        if by_force or at is None:
            life.kill()

    async def room(self, role: str) -> Room:
        """What no placement group keeps, on machines that are not taken back."""
        seat = layout.seat(self.config, role, 0)
        try:
            free, taken_back = await asyncio.to_thread(self._cluster.room)
            there, lost = await asyncio.to_thread(self._groups.there, seat.group) if seat.group else ((), ())
        except RayError:  # its control store is away: nothing is known
            return Room()
        lives = {actor.name: life for actor, life in self._lives.items() if role_of(actor.name) == role and life.runs}
        return Room(
            sum(sums.copies(seat.bill, of_one) for of_one in free),
            {name: seconds for name, life in lives.items() if (seconds := life.waits_s) is not None},
            frozenset(name for name, life in lives.items() if (at := life.at) and at.node in taken_back),
            layout.in_bundles(self.config, role, len(there)),
            lost,
        )

    async def rearrange(self, role: str) -> None:
        """Bundles that are on a machine come first."""
        group = layout.seat(self.config, role, 0).group
        with contextlib.suppress(RayError):  # its control store is away: they wait for what they had
            await asyncio.to_thread(self._groups.rearrange, group)
        for actor, life in self._lives.items():
            misplaced = life.seat.group == group and life.seat.bundle != self._groups.bundle(group, 0)
            if actor.name == layout.BESIDE_RANK_0 and misplaced and life.waits_s is not None:
                life.kill()

    def go_on(self) -> None:
        """Nothing of ours is needed to see an end: Ray tells."""

    def end(self) -> None:
        """Kill whoever runs, and wait for the ends."""
        for actor in self.running():
            self.terminate(actor, by_force=True)
        concurrent.futures.wait([life.outcome for life in self._lives.values()], END_S)

    def close(self) -> None:
        """No actor, no lookout and no group is left, and no Ray that was started here."""
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if not ray.is_initialized():
            return
        for life in self._lives.values():
            with contextlib.suppress(RayError):
                life.kill()
        self._lookouts.wait_for_ends([at for life in self._lives.values() if (at := life.at) is not None])
        self._lives.clear()
        self._lookouts.close()
        self._groups.close()
        self._cluster.close()


def environment_of(config: RunConfig) -> dict[str, str]:
    """What processes elsewhere get of this one's environment."""
    always = {name: os.environ.get(name, default) for name, default in ALWAYS.items()}
    return always | {name: os.environ[name] for name in config.placement.env_vars if name in os.environ}


def namespace_of(run_dir: Path) -> str:
    """Of one run directory: readable, and no other one's."""
    return f"{run_dir.name}-{hashlib.sha1(str(run_dir).encode()).hexdigest()[:6]}"


def _waits(life: Life, free: Mapping[str, float] | None = None) -> str:
    there_is = "" if free is None else f"; free in the cluster: {sums.shown(free)}"
    return f"no place yet: it asks for {sums.shown(life.seat.bill)}{there_is}"
