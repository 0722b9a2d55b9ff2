"""Making the connection to a run's bus.

Promises: one that cannot be made is one clear line within its deadline, without the password; a Redis that loads its data is
waited for as long as it makes progress; one whose disk is full answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

import redis.exceptions

from bus.client import Bus
from bus.errors import NoRedisError
from bus.password import refuse_wrong_password, without_password
from bus.patience import LOOK_AGAIN_S, PatientRedis, patient


async def connect(
    url: str, run_id: str, *, deadline_s: float = 10.0, tell: Callable[[str], None] = lambda text: None
) -> Bus:
    """Connect to the bus at ``url`` (redis://, rediss:// or unix://, with ``:PASSWORD@`` where Redis asks for one).

    A Redis that loads its data is waited for as long as it makes progress, which ``tell`` hears of. Raises NoRedisError naming
    the URL (without its password) and the cause, and what ``tell`` raises.
    """
    shown, end = without_password(url), time.monotonic() + deadline_s
    try:
        cause = await refuse_wrong_password(url, deadline_s)
        client = patient(url, connect_timeout_s=deadline_s)
    except ValueError as error:
        why = error if "@" not in url else "special characters of a password are written as %XX"
        raise NoRedisError(f"bus.url = {shown!r}: {why}") from None
    client.tell = tell
    loads = "loading the dataset" in cause
    try:
        info = await _ask(client, deadline_s if loads else max(end - time.monotonic(), 0.1))
    except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
        await client.aclose()
        raise NoRedisError(f"no Redis answers at {shown}: {str(error) or cause or type(error).__name__}") from None
    except NoRedisError:
        await client.aclose()
        raise
    version = str(info["redis_version"])
    if tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
        await client.aclose()
        raise NoRedisError(f"Redis {version} at {shown} is too old: 6.2 or newer is needed")
    if info.get("role") == "slave":
        await client.aclose()
        primary = f"{info['master_host']}:{info['master_port']}"
        raise NoRedisError(f"the Redis at {shown} is a replica, which takes no writes; its primary is {primary}")
    client.tell = lambda text: None
    return Bus(client, run_id)


async def _ask(client: PatientRedis, deadline_s: float) -> Mapping[str, Any]:
    """What the server says of itself, once it answers. Raises TimeoutError, not while it loads; and what the client raises."""

    async def ask() -> Any:
        await client.echo("")  # INFO is answered in the middle of a load; PING is refused while the disk is full
        return await client.info("server") | await client.info("replication")

    answer, end = asyncio.create_task(ask()), time.monotonic() + deadline_s
    try:
        while not answer.done():
            await asyncio.wait({answer}, timeout=min(LOOK_AGAIN_S, deadline_s))
            if client.loading is not None:
                end = time.monotonic() + deadline_s
            elif not answer.done() and time.monotonic() >= end:
                raise TimeoutError(f"no answer within {deadline_s:.3g} s")
        return answer.result()
    finally:
        answer.cancel()
