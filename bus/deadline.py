"""A deadline that holds whatever the call does.

Promises: after ``seconds`` the caller goes on, also where the call swallows its cancellation (the Redis client can, on
Python 3.11) or its end waits for a server that is stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def within(seconds: float, call: Coroutine[Any, Any, T], what: str) -> T:
    """What ``call`` returns or raises; TimeoutError naming ``what`` after ``seconds``, and the call is cancelled then."""
    task = asyncio.create_task(call)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise TimeoutError(f"{what} did not answer within {seconds:g} s")
        return task.result()
    finally:
        if not task.done():
            task.add_done_callback(_see)
            task.cancel()  # and not awaited: that could take for ever


def _see(task: asyncio.Task[Any]) -> None:
    """What comes too late is not logged as forgotten."""
    if not task.cancelled():
        task.exception()
