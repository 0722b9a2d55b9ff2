"""The learner's world: with how many ranks it starts again, and when it is ended to be another size.

Promises: nothing is done but what ``miles_async/config/elastic_ranks.py`` decides; room for as many ranks as before is waited
for during ``placement.elastic_learner.wait_s``, and then a smaller world goes on; it grows at a restart, and behind a
checkpoint, where nearly nothing has to be trained again; every change is told, with the machine and the step. Without
``placement.elastic_learner`` it has as many ranks as ever, at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from actors.runtime.placement.base import Placement
from actors.runtime.spec import ActorSpec
from miles_async.config.elastic_ranks import decide, rank_counts
from miles_async.config.layout import layout_of
from miles_async.config.schema import RunConfig
from miles_async.resume.begin import newest_state

ROLE = "learner"
LOOK_S = 1.0


class Ranks(Protocol):
    """Those who run: the supervisor's crew."""

    def members(self, role: str) -> list[ActorSpec]: ...

    def running(self, roles: Iterable[str] = ()) -> list[str]: ...

    def terminate(self, spec: ActorSpec, *, by_force: bool) -> None: ...


class World:
    """Of one launch. ``tell`` is given an event's kind and its data; ``clock``: in seconds."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        placement: Placement,
        tell: Callable[..., None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = rank_counts(config)
        self._config, self._run_dir, self._placement, self._tell, self._clock = config, run_dir, placement, tell, clock
        self._wait_s = config.placement.elastic_learner.wait_s
        self._why = ""  # it was ended by us
        self._cause = ""  # of its last end
        self._has_waited = False  # ranks of it have, for their places
        self._step = 0  # of the newest checkpoint, when it was looked at last

    @property
    def is_elastic(self) -> bool:
        return len(self.counts) > 1

    async def size(self, now: int) -> int:
        """With how many ranks the learner starts that had ``now``, once there is a place for each; who is to be on the machine
        of the first is sent there."""
        if not self.is_elastic:
            return now
        began, told = self._clock(), False
        while True:
            room = await self._placement.room(ROLE)
            waited = self._has_waited or self._clock() - began >= self._wait_s
            ranks = decide(self.counts, now, room.kept, waited=waited)
            if ranks is not None:
                break
            if not told:
                told = True
                self._tell("learner_waits_for_room", ranks=now, room_for=room.kept, lost=room.lost, wait_s=self._wait_s)
            await asyncio.sleep(min(LOOK_S, self._wait_s))
        self._has_waited = False
        await self._placement.rearrange(ROLE)
        self._step = await asyncio.to_thread(self._newest_step)
        if ranks != now:
            self._tell_change(now, ranks, room.lost)
        return ranks

    def _tell_change(self, was: int, ranks: int, lost: tuple[str, ...]) -> None:
        replicas = layout_of(self._config.learner).replicas
        changed: dict[str, Any] = {"was": was, "ranks": ranks, "dp_size": replicas(ranks), "from_step": self._step}
        self._tell("learner_resized", **changed, lost=lost, cause=self._cause)

    async def watch(self, ranks: Ranks) -> None:
        """Until cancelled: end the world where it should have another size."""
        while self.is_elastic:
            await asyncio.sleep(LOOK_S)
            members = ranks.members(ROLE)
            runs = not self._why and ranks.running((ROLE,))  # else it is started again in any case
            if runs and (why := await self._should_change(len(members))):
                self._why = why
                for spec in members:
                    ranks.terminate(spec, by_force=True)

    def fallen(self, cause: str) -> str:
        """The world has ended, of ``cause``. Returns why that was done here; empty: it was not."""
        why, self._why = self._why, ""
        self._cause = why or cause
        return why

    async def _should_change(self, now: int) -> str:
        """Why; empty: it stays."""
        room = await self._placement.room(ROLE)
        homeless = sorted(name for name, seconds in room.waiting.items() if seconds >= self._wait_s)
        if homeless:
            if decide(self.counts, now, room.kept, waited=True) == now:
                return ""
            self._has_waited = True
            return f"{', '.join(homeless)} had no place for {self._wait_s:g} s"
        if now == self.counts[0]:
            return ""
        step = await asyncio.to_thread(self._newest_step)
        is_new, self._step = step > self._step, step
        more = decide(self.counts, now, room.kept, waited=False) or now
        behind_a_checkpoint = is_new and step < self._config.run.num_steps and not room.waiting
        return f"there is room for {more} ranks" if behind_a_checkpoint and more > now else ""

    def _newest_step(self) -> int:
        state = newest_state(self._run_dir)
        return state.version if state is not None else 0
