"""What every HTTP server of ours is: uvicorn inside somebody else's event loop, with connections of ``http/protocol.py``."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from miles_async.http.deadlines import DEADLINES, Deadlines
from miles_async.http.protocol import protocol
from miles_async.http.refusals import Refusals


class HttpServer(uvicorn.Server):
    """Leaves the signals to whoever runs the process; ``ready`` is set once it has started.

    refusals: where what it refuses is counted. deadlines: of its clients. options: further ones of ``uvicorn.Config``.
    """

    def __init__(self, app: Any, refusals: Refusals, deadlines: Deadlines = DEADLINES, **options: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol(refusals, deadlines),
                ws="none",
                lifespan="off",
                loop="none",
                access_log=False,
                proxy_headers=False,  # nobody asks who the client is
                log_level="error",  # what is no HTTP is logged by the protocol
                **options,
            )
        )
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
