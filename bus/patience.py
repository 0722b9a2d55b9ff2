"""A Redis client for a server that may be away, loading, full or out of disk for a while.

Promises: a command whose server is being restarted is sent again for about 20 s (every command of ours may be repeated);
one whose server reads its append-only file back waits as long as that makes progress, and ``loading`` says how far it is;
one that the server refuses because its memory or its disk is full is sent again until there is room, for
``FULL_TIMEOUT_S`` at most, and ``troubles`` says meanwhile which refusal that is and since when. So a full bus slows a
run down and loses nothing. What does not block shares one connection (``bus/wire.py``).
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import redis.asyncio as aioredis
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from bus.deadline import within
from bus.errors import BusFullError
from bus.loading import STILL_S, Loading, LoadWatch, loading_of
from bus.wire import Wires

FULL_TIMEOUT_S = 600.0
# A machine that is gone says no goodbye: what it owes is waited for by TCP for a quarter of an hour, or for ever. Linux' names.
_TCP = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 25_000}
LOST = {getattr(socket, name): value for name, value in _TCP.items() if hasattr(socket, name)}
LOOK_AGAIN_S = 0.25
# a full memory; a disk that takes no more of the append-only file
FULL = ("OOM", "MISCONF", "command not allowed when used memory", "Errors writing to the AOF")


class Trouble(NamedTuple):
    """A command that waits for room: what Redis refused it with, and since when (seconds since the epoch)."""

    refusal: str
    since: float


class PatientRedis(aioredis.Redis):
    """``redis.asyncio.Redis`` with the patience above. Make it with :func:`patient`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.troubles: dict[int, Trouble] = {}  # of the commands that wait for room
        self.loading: Loading | None = None  # while a command waits for it
        self.tell: Callable[[str], None] = lambda text: None  # hears how far a load is
        self._numbers = itertools.count()
        self._wires = Wires(self.connection_pool)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Raises BusFullError after ``FULL_TIMEOUT_S``, NoRedisError for a load that stands still, and what the base class
        raises."""
        while True:
            try:
                return await self._when_there_is_room(*args, **options)
            except redis.exceptions.BusyLoadingError:
                await self._until_loaded()

    async def at_once(self, *args: Any) -> Any:
        """A command that can be left out: it waits for no room."""
        return await self._send(*args)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await self._wires.close()
        await super().aclose(close_connection_pool)

    def ahead(self, *args: Any) -> None:
        """Send a command in one write with the next one. It may be lost, or refused: what follows has to tell."""
        self._wires.ahead(args)

    async def _send(self, *args: Any, **options: Any) -> Any:
        """What the base class does, over fewer connections."""
        try:
            answer = await self._wires.ask(args)
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
            if isinstance(error, redis.exceptions.BusyLoadingError):
                raise
            retry: Any = self.get_retry()
            answer = await retry.call_with_retry(lambda: self._wires.ask(args), _go_on)
        options.pop("keys", None)  # as the base class does: they are for a cache
        parse = self.response_callbacks.get(args[0])
        return answer if parse is None else parse(answer, **options)

    async def _until_loaded(self) -> None:
        load = LoadWatch(self.tell)
        try:
            while loading := loading_of(await within(STILL_S, self._persistence(), "a redis that loads")):
                self.loading = loading
                load.saw(loading)
                await asyncio.sleep(LOOK_AGAIN_S)
        finally:
            self.loading = None

    async def _persistence(self) -> dict[str, Any]:
        return await self._send("INFO", "persistence") or {}

    async def _when_there_is_room(self, *args: Any, **options: Any) -> Any:
        try:
            return await self._send(*args, **options)
        except redis.exceptions.ResponseError as error:
            if not is_full(error):
                raise
            trouble = Trouble(str(error), time.time())
        number, deadline = next(self._numbers), time.monotonic() + FULL_TIMEOUT_S
        self.troubles[number] = trouble
        try:
            while time.monotonic() < deadline:
                await asyncio.sleep(LOOK_AGAIN_S)
                try:
                    return await self._send(*args, **options)
                except redis.exceptions.ResponseError as error:
                    if not is_full(error):
                        raise
        finally:
            del self.troubles[number]
        raise BusFullError(f"waited {FULL_TIMEOUT_S:.0f} s for room in Redis: {trouble.refusal}")


async def _go_on(error: Exception) -> None:
    """Nothing is to be done before a command is sent again."""


class _UnlessLoading(Retry):
    """Nothing is gained by asking a server again that answers that it loads: how far it is is looked at instead."""

    async def call_with_retry(  # pyright: ignore[reportIncompatibleMethodOverride]  (what else there is depends on the version)
        self, do: Any, fail: Any, is_retryable: Any = None, **more: Any
    ) -> Any:
        def away(error: Exception) -> bool:
            return not isinstance(error, redis.exceptions.BusyLoadingError) and (
                not is_retryable or is_retryable(error)
            )

        return await super().call_with_retry(do, fail, away, **more)


def is_full(error: redis.exceptions.ResponseError) -> bool:
    """Whether Redis refused the command because it has no room."""
    return any(sign in str(error) for sign in FULL)


def patient(url: str, *, connect_timeout_s: float, retries: int = 45) -> PatientRedis:
    """A client of ``url``; nothing is connected yet. Raises ValueError for a URL that is none."""
    client: Any = PatientRedis.from_url(
        url,
        protocol=2,
        **({} if url.startswith("unix://") else {"socket_keepalive": True, "socket_keepalive_options": LOST}),
        socket_connect_timeout=connect_timeout_s,
        retry=_UnlessLoading(ExponentialBackoff(cap=0.5, base=0.01), retries),
        retry_on_error=[redis.exceptions.ConnectionError, redis.exceptions.TimeoutError],
    )
    return client
