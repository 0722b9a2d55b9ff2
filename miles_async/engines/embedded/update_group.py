"""A process group that brings weights, with the loads of its buckets that are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

Answer = tuple[int, dict[str, Any]]  # an HTTP status and its JSON body


class UpdateGroup:
    """One group. A bucket is loaded while the next one comes."""

    def __init__(self, group: Any) -> None:
        self.group = group
        self._loads: list[asyncio.Task[Answer]] = []  # oldest first

    def begin(self, load: Coroutine[Any, Any, Answer]) -> None:
        """Load what has come, and go on."""
        self._loads.append(asyncio.create_task(load))

    async def settle(self, keep: int = 0) -> Answer | None:
        """Until at most ``keep`` loads are under way; the answer of the first that failed."""
        failed = None
        while len(self._loads) > keep:
            status, answer = await self._loads.pop(0)
            if status != 200 and failed is None:
                failed = status, answer
        return failed
