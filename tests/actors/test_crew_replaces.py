"""Whoever is given up is over on the bus before anything that it held is given to others, and before its successor starts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from actors.runtime.crew import Crew
from actors.runtime.placement.base import Ending, Room
from actors.runtime.plan import specs
from actors.runtime.spec import ActorId, ActorSpec
from actors.runtime.tasks import end
from actors.runtime.world import World
from bus import Bus, Ledger
from bus.fence import LIVES
from bus.lives import Lives
from miles_async.config.schema import Data, ElasticLearner, Learner, Model, Placement, Rollout, RunConfig


class Nowhere:
    """A placement whose actors are only said to run."""

    def __init__(self) -> None:
        self.started: list[ActorId] = []

    def start(self, spec: ActorSpec) -> None:
        self.started.append(spec.id)

    def running(self) -> list[ActorId]:
        return self.started

    async def ended(self, actor: ActorId) -> Ending:
        return Ending(False, "it is gone")

    def terminate(self, actor: ActorId, *, by_force: bool = False) -> None:
        pass


class WatchedLedger(Ledger):
    """Remembers who lived when it was asked to free what a worker held."""

    lives_then: dict[bytes, bytes] | None = None

    async def release(self, lease: str = "", why: str = "") -> int:
        self.lives_then = await self.bus.redis.hgetall(self.bus.key(LIVES))
        return await super().release(lease, why)


async def test_whoever_is_given_up_is_over_before_anything_of_it_is_freed_and_learner_ranks_together(bus: Bus) -> None:
    config = RunConfig(
        model=Model(hf_checkpoint="none"),
        data=Data(prompt_data="none"),
        rollout=Rollout(num_workers=2),
        learner=Learner(num_ranks=2),
    )
    placement: Any = Nowhere()
    ledger, numbers = WatchedLedger(bus), iter(range(2, 100))
    world = World(config, Path(), placement, lambda *_, **__: None)
    crew = Crew(placement, config, bus, ledger, Lives(bus), lambda: next(numbers), world)
    for spec in specs(config, Path(), "", "", bus.run_id, 1):
        crew.start(spec)
    worker, rank = (next(one for one in crew.members(role)) for role in ("rollout", "learner"))
    assert await crew.replace(worker, after_s=1000.0)
    assert ledger.lives_then == {b"rollout-0": b"2"}
    assert await crew.replace(rank, after_s=1000.0)
    assert await bus.redis.hgetall(bus.key(LIVES)) == {b"rollout-0": b"2", b"learner-0": b"3", b"learner-1": b"3"}
    assert {actor.incarnation for actor in placement.started} == {1}  # their successors are to start later
    await bus.set_address("router", "http://127.0.0.1:1")
    assert await crew.replace(crew.members("router")[0], after_s=1000.0)
    assert await bus.redis.hgetall(bus.key("addresses")) == {}
    crew.leave("rollout-1")
    await crew.forget(crew._specs["rollout-1"])
    assert await bus.redis.hget(bus.key(LIVES), "rollout-1") == b"2"  # nobody's
    await end([*crew._replacements, *crew._ends])
    await asyncio.sleep(0)


class Shrunken(Nowhere):
    """Two ranks had a place there, and one has."""

    def __init__(self) -> None:
        super().__init__()
        self.configs: dict[ActorId, RunConfig] = {}

    def start(self, spec: ActorSpec) -> None:
        super().start(spec)
        self.configs[spec.id] = spec.config

    async def room(self, role: str) -> Room:
        return Room(kept=1)

    async def rearrange(self, role: str) -> None:
        pass


async def test_a_smaller_world_is_told_its_size_and_ranks_that_are_none_any_more_are_over_and_forgotten(
    bus: Bus,
) -> None:
    config = RunConfig(
        model=Model(hf_checkpoint="none"),
        data=Data(prompt_data="none"),
        learner=Learner(num_ranks=2),
        placement=Placement(elastic_learner=ElasticLearner(min_ranks=1, wait_s=1e-3)),
    )
    placement: Any = Shrunken()
    told: list[str] = []
    world = World(config, Path("nothing there"), placement, lambda kind, **_: told.append(kind))
    crew = Crew(placement, config, bus, Ledger(bus), Lives(bus), lambda: 7, world)
    for spec in specs(config, Path(), "", "", bus.run_id, 1):
        if spec.role == "learner":
            crew.start(spec)
            await bus.set_address(spec.name, "http://127.0.0.1:1")
    assert await crew.replace(crew.members("learner")[0], after_s=0.0)
    async with asyncio.timeout(30):
        await asyncio.gather(*crew._replacements)
    assert [(rank.name, rank.incarnation) for rank in crew.members("learner")] == [("learner-0", 7)]
    assert placement.configs[ActorId("learner-0", 7)].learner.num_ranks == 1
    assert ActorId("learner-1", 7) not in placement.started
    assert await bus.redis.hgetall(bus.key(LIVES)) == {b"learner-0": b"7", b"learner-1": b"7"}
    assert await bus.redis.hgetall(bus.key("addresses")) == {}
    assert told == ["learner_waits_for_room", "learner_resized"]
    await end([*crew._replacements, *crew._ends])
