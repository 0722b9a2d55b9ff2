"""Who lives: said by the supervisor before a successor begins and before what the dead held is given to others, and by each
actor of itself, before anything else that it does.

Promises: no successor does anything while an earlier life of it is not over on the bus; a life is over, wherever its process is
and whatever it does, from the moment that :meth:`Lives.replace` returns, unless Redis has no room: then nobody changes
anything; no life is ever begun again; what a Redis lost that came back without its last second is said again
(:meth:`Lives.keep`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import redis.exceptions

from bus.client import Bus
from bus.fence import EVERYBODY, LIVES, FencedScript, as_incarnation
from bus.patience import is_full

_SCRIPT = Path(__file__).parent / "scripts" / "lives.lua"


async def begin_life(bus: Bus) -> None:
    """The life of ``bus`` begins: earlier ones are over. Waits for room. Raises ReplacedError: it is over itself."""
    await FencedScript(bus, _SCRIPT.read_text())(keys=[bus.key(LIVES)], args=list(bus.life))


class Lives:
    """The lives of a run, as the supervisor of one launch gives them. All of it can be repeated, and raises ReplacedError
    where a later launch has begun."""

    def __init__(self, bus: Bus) -> None:
        self._bus, self._script = bus, FencedScript(bus, _SCRIPT.read_text())
        self._said: dict[str, int] = {}

    async def greatest(self) -> int:
        """The greatest incarnation on record: a launch whose file is behind begins after it."""
        return max([0, *map(as_incarnation, await self._bus.redis.hvals(self._bus.key(LIVES)))])

    async def begin(self, incarnation: int) -> None:
        """A launch begins, whose actors have incarnations from this one on: every earlier life is over."""
        self._said[EVERYBODY] = incarnation
        await self._script(keys=[self._bus.key(LIVES)], args=self._all())

    async def replace(self, successors: Mapping[str, int]) -> None:
        """By name, the incarnation in which each of them goes on: its earlier lives are over."""
        self._said |= successors
        await self.keep()

    async def retire(self, name: str, incarnation: int) -> None:
        """It has left the run; another of that name has a greater incarnation."""
        await self.replace({name: incarnation + 1})

    async def keep(self) -> None:
        """Say all of it again, where Redis has room."""
        try:
            await self._script.at_once(keys=[self._bus.key(LIVES)], args=self._all())
        except redis.exceptions.ResponseError as error:
            if not is_full(error):
                raise

    def _all(self) -> list[str | int]:
        return [part for life in self._said.items() for part in life]
