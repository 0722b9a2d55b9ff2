"""Ending asyncio tasks for certain.

A cancellation can be lost on its way (Python 3.11's ``asyncio.timeout`` and ``wait_for``, inside the Redis client, swallow
one that arrives together with the answer they wait for), and a task that then goes on would be waited for without end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

ASK_AGAIN_S = 0.5


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel ``tasks`` until every one of them has ended. What they raise is not raised here."""
    left = {task for task in tasks if task is not asyncio.current_task()}
    while left:
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=ASK_AGAIN_S)
        for task in done:
            if not task.cancelled():
                task.exception()  # seen: not logged as forgotten
