"""What an HTTP server has refused: counted by status, and logged. Every actor has the count, also one that serves nothing;
so nothing heavy is imported here.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import MutableMapping
from typing import Any

from miles_async.http.asgi import Scope, Send

_log = logging.getLogger("http")


class Refusals(Counter[str]):
    """Requests that a server refused, by HTTP status."""

    def note(self, status: int, why: str) -> None:
        """Count and log one."""
        self[str(status)] += 1
        _log.warning("refused with %d: %s", status, ascii(why)[:200])

    def watching(self, scope: Scope, send: Send) -> Send:
        """``send`` for one request; an answer with a status of 400 to 499 is noted."""

        async def watched(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and 400 <= message["status"] < 500:
                self.note(message["status"], f"{scope['method']} {scope['path']}")
            await send(message)

        return watched
