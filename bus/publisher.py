"""Publications of one lease, those that come at once in one script.

Promises: each caller hears of its own group; one that does not wait any more holds up nobody; what the bus raises is raised to
all whose groups were in that script.
"""

from __future__ import annotations

import asyncio

from bus.ledger_leases import Leases, Publication

AT_ONCE = 16  # in one script, which holds up everybody else


class Publisher:
    """Sends what has gathered while the script before was under way. :meth:`close` it."""

    def __init__(self, ledger: Leases, lease: str) -> None:
        self._ledger, self._lease = ledger, lease
        self._waiting: list[tuple[Publication, asyncio.Future[bool]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def publish(self, publication: Publication) -> bool:
        """As :meth:`bus.ledger_leases.Leases.publish`."""
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((publication, done))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send())
        return await done

    async def _send(self) -> None:
        try:
            while self._waiting:
                some, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
                try:
                    answers = await self._ledger.publish_all([publication for publication, _ in some], self._lease)
                except Exception as error:
                    for _, done in some:
                        if not done.done():
                            done.set_exception(error)
                else:
                    for (_, done), answer in zip(some, answers, strict=True):
                        if not done.done():
                            done.set_result(answer)
        finally:
            self._sending = None

    def close(self) -> None:
        """Send nothing more."""
        self._waiting.clear()
        if self._sending is not None:
            self._sending.cancel()
