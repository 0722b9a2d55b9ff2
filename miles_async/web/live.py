"""The state of a run as server-sent events: once at first, and again whenever it is another one.

Promises: what the monitor has written is sent within ``LOOK_S`` and ``STATUS_S``; nothing is sent twice; a client that is gone
costs nothing any more; a run that cannot be read now is an event, and looked at again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import msgspec

from miles_async.web.opened import OpenRun

LOOK_S = 0.5
ALIVE_S = 10.0  # a comment that says so, where nothing changes: proxies close what is silent


async def stream(run: OpenRun, over: threading.Event) -> AsyncIterator[bytes]:
    """Events "state" with the document of ``state.py``, and "trouble" with ``{"message"}``, until the server is ``over``."""
    last, said = b"", time.monotonic()
    yield b"retry: 1000\n\n"
    while not over.is_set():
        try:
            event = b"event: state\ndata: " + msgspec.json.encode(await asyncio.to_thread(run.state))
        except OSError as error:
            event = b"event: trouble\ndata: " + msgspec.json.encode({"message": str(error)})
        if event != last:
            last, said = event, time.monotonic()
            yield event + b"\n\n"
        elif time.monotonic() - said >= ALIVE_S:
            said = time.monotonic()
            yield b": nothing new\n\n"
        await asyncio.sleep(LOOK_S)
