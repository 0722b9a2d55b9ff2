"""Requests that go to every engine: whoever aborts, flushes, pauses or goes on means all of them, or does not know which one.

Promises: engines that were given up are not asked; the client gets the first error, if there is one, else the first answer.
"""

from __future__ import annotations

import asyncio
import json

from miles_async.http.asgi import Send
from miles_async.http.client_connection import UpstreamError
from miles_async.http.limits import say, send_whole
from miles_async.router.engine import RoutedEngine
from miles_async.router.fleet import RouterFleet
from miles_async.router.head import Head

PAUSES = {"/pause_generation": True, "/continue_generation": False}


async def ask_every_engine(fleet: RouterFleet, path: str, head: Head, body: bytes, send: Send) -> None:
    """Have all engines answer, and the client hear of it. Notes on the fleet whether it is paused. ``path``: as the router
    reads it; the client may have written it another way."""
    if head.method == b"POST":
        fleet.paused = PAUSES.get(path, fleet.paused)
    answers = await asyncio.gather(*(_ask(engine, head, body) for engine in fleet.engines.values() if not engine.dead))
    if not answers:
        return await say(send, 503, fleet.nobody())
    status, content = max(answers, key=lambda answer: answer[0])
    await send_whole(send, status, [(b"content-type", b"application/json")], content)


async def _ask(engine: RoutedEngine, head: Head, body: bytes) -> tuple[int, bytes]:
    try:
        return await engine.upstream.ask(head.method, head.target, head.headers, body)
    except UpstreamError as error:
        return 502, json.dumps({"error": {"message": f"{engine.name}: {error}"}}).encode()
