"""Whoever is given up is over on the bus before anything that it held is given to others, and before its successor starts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from actors.runtime.crew import Crew
from actors.runtime.placement.base import Ending
from actors.runtime.plan import specs
from actors.runtime.spec import ActorId, ActorSpec
from actors.runtime.tasks import end
from bus import Bus, Ledger
from bus.fence import LIVES
from bus.lives import Lives
from miles_async.config.schema import Data, Learner, Model, Rollout, RunConfig


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
    crew = Crew(placement, config, bus, ledger, Lives(bus), lambda: next(numbers))
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
