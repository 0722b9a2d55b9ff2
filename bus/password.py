"""The password in a bus URL: tried at once, and never shown."""

from __future__ import annotations

import asyncio
import re

import redis.asyncio as aioredis
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from bus.errors import NoRedisError


def without_password(url: str) -> str:
    """``url`` for people to read."""
    url = re.sub(r"([?&]password=)[^&]*", r"\1***", url)
    head, at, rest = url.rpartition("@")
    if not at:
        return url
    scheme, slashes, credentials = head.partition("://")
    user, colon, _ = credentials.partition(":")
    return f"{scheme}{slashes}{user}{colon and ':***'}@{rest}"


async def refuse_wrong_password(url: str, deadline_s: float) -> str:
    """Raises NoRedisError, at once, where Redis does not take the password; our patient client would try for long.

    Whatever else is wrong is returned in words ("": nothing), for that client to try again. Raises ValueError for a URL that
    is none.
    """
    client = aioredis.Redis.from_url(url, protocol=2, retry=Retry(NoBackoff(), 0), socket_connect_timeout=deadline_s)
    try:
        async with asyncio.timeout(deadline_s):
            await client.echo("")  # PING is refused while the disk is full
        return ""
    except redis.exceptions.AuthenticationError:
        what = (
            "refuses the password" if "@" in url or "password=" in url else "asks for a password, redis://:PASSWORD@..."
        )
        raise NoRedisError(f"the Redis at {without_password(url)} {what}") from None
    except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
        return str(error) or type(error).__name__
    finally:
        await client.aclose()
