"""One client that waits for its answer: whether it has left, and whether any of the answer has reached it.

Promises: the task of a client that leaves is cancelled, once, and knows why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from miles_async.http.asgi import Scope, Send
from miles_async.http.client import UpstreamAnswer
from miles_async.http.limits import say, send_whole
from miles_async.router.head import passed_on


class Passage:
    """The client's side of a request on its way through the router. It is made in the task that carries the request."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send = send
        self._task = asyncio.current_task()
        self.begun = False  # some of an answer was sent
        self.left = False
        scope["on_disconnect"](self._leave)

    def _leave(self) -> None:
        self.left = True
        if self._task is not None:
            self._task.cancel()

    async def say(self, status: int, message: str) -> None:
        """The router's own word in the place of an answer."""
        self.begun = True
        await say(self._send, status, message)

    async def whole(self, answer: UpstreamAnswer, content: bytes) -> None:
        self.begun = True
        await send_whole(self._send, answer.status, passed_on(answer.headers), content)

    async def pieces(self, answer: UpstreamAnswer, moved: Callable[[], None]) -> None:
        """Pass the pieces on as they come. ``moved`` is called for each. Raises UpstreamError."""
        part = await answer.chunk()
        self.begun = True
        await self._send({"type": "http.response.start", "status": answer.status, "headers": passed_on(answer.headers)})
        while part:
            moved()
            await self._send({"type": "http.response.body", "body": part, "more_body": True})
            part = await answer.chunk()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
