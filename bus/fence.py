"""The fence: who has been replaced changes nothing on the bus any more, and hears of it.

    lives, a hash     NAME ─► the incarnation in which that actor lives; a greater one is its successor's
                      *    ─► the least incarnation of the present launch

Promises: a script behind the fence does nothing for a life that is over, whenever its process gets to it: both are one atomic
script; who asks is told who has replaced it; whoever has no life of its own (the command line, a test) is never refused. A life
can be looked up without an event loop, and an answer that Redis gives while it loads its data, or has no room, is one: nobody
is replaced meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import redis
import redis.exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from bus.errors import BusError

LIVES = "lives"
EVERYBODY = "*"
_FENCE = (Path(__file__).parent / "scripts" / "fence.lua").read_text()
_REFUSED = "REPLACED "
_AWAY = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError)


class Life(NamedTuple):
    """One life of an actor, or of a supervisor."""

    name: str
    incarnation: int


NOBODYS = Life("", 2**53)  # is never over


class ReplacedError(BusError):
    """Who asks has a successor."""

    def __init__(self, life: Life, successor: int) -> None:
        super().__init__(
            f"{life.name}, incarnation {life.incarnation}, has been replaced: incarnation {successor} lives"
        )


class Asker(Protocol):
    """The bus of one life, as the fence needs it."""

    redis: Any
    life: Life
    replaced: Callable[[str], object]

    def key(self, name: str) -> str: ...


class FencedScript:
    """A Lua script of ``bus`` behind the fence: called as one of redis-py is."""

    def __init__(self, bus: Asker, text: str) -> None:
        self._bus, self.script = bus, _FENCE + text
        self._script = bus.redis.register_script(self.script)
        self.sha: str = self._script.sha

    async def __call__(self, keys: Sequence[Any], args: Sequence[Any] = ()) -> Any:
        """Raises ReplacedError, once ``bus.replaced`` has heard of it; and what the script answers."""
        life = self._bus.life
        with self._refusals(life):
            return await self._script(keys=[*keys, self._bus.key(LIVES)], args=[*args, *life])

    async def at_once(self, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        """The same, of what can be left out: it waits for no room."""
        life = self._bus.life
        with self._refusals(life):
            every = [*keys, self._bus.key(LIVES)]
            return await self._bus.redis.at_once("EVAL", self.script, len(every), *every, *args, *life)

    @contextmanager
    def _refusals(self, life: Life) -> Iterator[None]:
        try:
            yield
        except redis.exceptions.ResponseError as error:
            if not str(error).startswith(_REFUSED):
                raise
            replaced = ReplacedError(life, int(str(error).removeprefix(_REFUSED)))
            self._bus.replaced(str(replaced))
            raise replaced from None


class BusAway(BusError):
    """The bus gave no answer."""


class Lookout:
    """Asks the bus, from any thread, whether ``life`` is over. ``key``: of the lives; ``timeout_s``: for one answer."""

    def __init__(self, url: str, key: str, life: Life, timeout_s: float) -> None:
        self.life, self._key = life, key
        self._redis: Any = redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),  # its connection may be of a Redis that has been started again since
        )

    def successor(self) -> int:
        """The incarnation that lives in its place; 0: it is not over. Raises BusAway."""
        try:
            found = [as_incarnation(value) for value in self._redis.hmget(self._key, EVERYBODY, self.life.name)]
        except (redis.exceptions.BusyLoadingError, redis.exceptions.ResponseError):
            return 0
        except _AWAY as error:
            raise BusAway(str(error)) from None
        return max(found) if max(found) > self.life.incarnation else 0

    def close(self) -> None:
        self._redis.close()


def as_incarnation(value: bytes | None) -> int:
    """A field of the lives, as the fence reads it: 0 for what is no number."""
    return int(value) if value is not None and value.isdigit() else 0
