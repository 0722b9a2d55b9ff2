"""A Redis client for a server that may be away, full or out of disk for a while.

Promises: a command whose server is being restarted is sent again for about 20 s (every command of ours may be repeated);
one that the server refuses because its memory or its disk is full is sent again until there is room, for
``FULL_TIMEOUT_S`` at most, and ``troubles`` says meanwhile which refusal that is and since when. So a full bus slows a
run down and loses nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any, NamedTuple

import redis.asyncio as aioredis
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from bus.errors import BusFullError

FULL_TIMEOUT_S = 600.0
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
        self._numbers = itertools.count()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Raises BusFullError after ``FULL_TIMEOUT_S``, and what the base class raises."""
        try:
            return await super().execute_command(*args, **options)
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
                    return await super().execute_command(*args, **options)
                except redis.exceptions.ResponseError as error:
                    if not is_full(error):
                        raise
        finally:
            del self.troubles[number]
        raise BusFullError(f"waited {FULL_TIMEOUT_S:.0f} s for room in Redis: {trouble.refusal}")


def is_full(error: redis.exceptions.ResponseError) -> bool:
    """Whether Redis refused the command because it has no room."""
    return any(sign in str(error) for sign in FULL)


def patient(url: str, *, connect_timeout_s: float, retries: int = 45) -> PatientRedis:
    """A client of ``url``; nothing is connected yet. Raises ValueError for a URL that is none."""
    client: Any = PatientRedis.from_url(
        url,
        protocol=2,
        socket_connect_timeout=connect_timeout_s,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.01), retries),
        retry_on_error=[
            redis.exceptions.ConnectionError,
            redis.exceptions.TimeoutError,
            redis.exceptions.BusyLoadingError,
        ],
    )
    return client
