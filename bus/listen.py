"""Where a Redis server of our own listens: a private unix socket, or an address of this machine that others reach.

Promises: what listens on an address asks for a password that was drawn for it, which is on no command line, in no log and in
no file of the server's; a server that is started again keeps its address and its password.
"""

from __future__ import annotations

import random
import secrets
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Protocol

from bus.errors import NoRedisError

_SOCKET_DIR = "miles-bus-"  # and what makes the name unique
# below those that the kernel gives to outgoing connections: one of those could be taken before the server has it
_PORTS = range(20000, 32000)
_TRIES = 64
PASSWORD_BYTES = 24


def remove_socket(url: str | None) -> None:
    """Remove what a server of ours at ``url`` left there when it was killed; nothing of a server that is somebody else's."""
    directory = Path((url or "").removeprefix("unix://")).parent
    if directory.name.startswith(_SOCKET_DIR) and directory.parent == Path(tempfile.gettempdir()):
        shutil.rmtree(directory, ignore_errors=True)


class Listen(Protocol):
    """One server's."""

    @property
    def url(self) -> str:
        """Under which it is reached, with what it asks for."""
        ...

    def flags(self) -> dict[str, str]:
        """Of the command line, as of now: a place is found when it is asked for first. Raises NoRedisError: there is none."""
        ...

    def secret(self) -> str:
        """Lines of a configuration that nobody else is to see."""
        ...

    def close(self) -> None:
        """The server has ended, and is not started again. Safe to call twice."""
        ...


class UnixSocket:
    """In a directory of its own, which only this user may enter."""

    def __init__(self) -> None:
        self._directory = ""

    @property
    def url(self) -> str:
        return f"unix://{self._directory}/redis.sock"

    def flags(self) -> dict[str, str]:
        # a unix socket's path may have about 100 characters, a run directory more
        self._directory = self._directory or tempfile.mkdtemp(prefix=_SOCKET_DIR)
        return {"port": "0", "unixsocket": f"{self._directory}/redis.sock", "unixsocketperm": "700"}

    def secret(self) -> str:
        return ""

    def close(self) -> None:
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)


class Address:
    """On ``host``, an address of this machine, and a port that was free; with a password."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._port = 0
        self._password = secrets.token_urlsafe(
            PASSWORD_BYTES
        )  # without a character that a URL or a configuration quotes

    @property
    def url(self) -> str:
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"redis://:{self._password}@{shown}:{self._port}"

    def flags(self) -> dict[str, str]:
        self._port = self._port or free_port(self.host)
        return {"bind": self.host, "port": str(self._port)}

    def secret(self) -> str:
        return f"requirepass {self._password}\n"

    def close(self) -> None:
        """Nothing lies anywhere."""


def free_port(host: str) -> int:
    """A port of ``host`` on which nobody listens. Raises NoRedisError: ``host`` is no address of this machine, or has none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    cause = ""
    for port in random.sample(_PORTS, _TRIES):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                cause = error.strerror or str(error)
                continue
            return port
    raise NoRedisError(f"redis cannot listen on {host}: {cause}")
