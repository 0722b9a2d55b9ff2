"""The server of the pages: where it listens, and until when.

Promises: it listens on this machine only unless it is told otherwise, and then has a key; an address that cannot be had is one
line; Ctrl-C and SIGTERM end it within a second or two, whoever still looks.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from miles_async.config.loopback import is_loopback
from miles_async.config.schema import ConfigError
from miles_async.config.secrets import resolve
from miles_async.http.address import url_of
from miles_async.http.limits import answer_at_once
from miles_async.http.refusals import Refusals
from miles_async.http.server import HttpServer
from miles_async.web.app import application
from miles_async.web.places import Places

HOST, PORT = "127.0.0.1", 8686


def serve(root: Path, host: str, port: int, key: str | None, tell: Callable[[str], None]) -> None:
    """Serve the runs in ``root`` until a signal; ``tell`` gets the address. Raises ConfigError, PlaceError."""
    found = checked(host, key)
    over = threading.Event()
    app = application(Places(root), found, over)
    with _bind(host, port) as listener:
        tell(url_of(host, listener.getsockname()[1]))
        asyncio.run(_serve(app, listener, over))


def checked(host: str, key: str | None) -> str | None:
    """The key that ``key`` (it, or ``env:NAME``) means. Raises ConfigError: others could look in, or it is no key."""
    found = resolve("--key", key)
    if found is not None and not (found.isascii() and found.isprintable() and found.strip() == found != ""):
        raise ConfigError("--key: expected printable ASCII characters, without spaces at its ends")
    if found is None and not is_loopback(host):
        raise ConfigError(f'--host {host} lets other machines in: give --key env:NAME, or use "{HOST}"')
    return found


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        cause = "something listens there already; --port 0 takes a free one" if taken else str(error)
        raise ConfigError(f"cannot listen on {host} port {port}: {cause}") from None
    answer_at_once(listener)
    return listener


async def _serve(app: object, listener: socket.socket, over: threading.Event) -> None:
    server = HttpServer(app, Refusals(), timeout_graceful_shutdown=2, server_header=False)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        over.set()
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    await server.serve(sockets=[listener])
