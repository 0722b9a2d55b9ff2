"""Where the bytes of published groups lie: in Redis, or beside it.

Under each payload's key Redis holds a value either way, and the ledger's scripts treat it as one: it goes by itself unless its
group is published, lasts while the group is on record, and goes with it. ``InRedis`` makes that value of the payload; another
store makes it of what the store finds the payload by. So a store has no transitions: it keeps what Redis names, and takes away
what Redis does not.

Promises of every store: a payload is safe before anybody knows its value, so that a group that is published can be fetched; it
is there while its value is on record, and gone after the first commit that finds it neither on record nor on its way there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import quote, unquote

PAYLOAD = "payload"  # what their keys are: PAYLOAD:GROUP:LEASE
_AT_ONCE = 1000  # keys that Redis is asked for in one command
_UNWRITTEN = ".partial"
_NAME_BYTES = 255  # of a file


class OnRecord(NamedTuple):
    """Of a payload's key: whether a publication under it may be under way, and, looked at after that, the value."""

    on_its_way: bool
    value: bytes | None


Look = Callable[[Sequence[str]], Awaitable[Sequence[OnRecord]]]


class PayloadStore(Protocol):
    """The same for all who publish and fetch in a run."""

    async def put(self, key: str, payload: bytes) -> bytes:
        """Keep ``payload``; returns the value that Redis is to hold under ``key``. Raises OSError."""
        ...

    async def get(self, values: Sequence[bytes | None]) -> Sequence[bytes | None]:
        """The payloads behind the values that Redis holds; None: there is none (any more). Raises OSError."""
        ...

    async def sweep(self, look: Look) -> int:
        """Take away what is not on record any more; returns how many payloads. Raises OSError, and what ``look`` raises."""
        ...


class InRedis:
    """The payload is the value."""

    async def put(self, key: str, payload: bytes) -> bytes:
        return payload

    async def get(self, values: Sequence[bytes | None]) -> Sequence[bytes | None]:
        return values

    async def sweep(self, look: Look) -> int:
        return 0


class InDirectory:
    """A file for each payload, in a directory of the run that all who publish and fetch see; the value is the file's name.

    A name is the payload's key and what no other publication has: one that is made again takes another file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    async def put(self, key: str, payload: bytes) -> bytes:
        name = f"{quote(key, safe='')}.{os.urandom(8).hex()}"
        await asyncio.to_thread(self._write, name, payload)
        return name.encode()

    def _write(self, name: str, payload: bytes) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = self.directory / (name + _UNWRITTEN)
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.write(payload)
                out.flush()
                os.fsync(out.fileno())
            partial.replace(self.directory / name)
        finally:
            partial.unlink(missing_ok=True)
        directory = os.open(self.directory, os.O_RDONLY)
        try:
            os.fsync(directory)  # else a power cut may take the name
        finally:
            os.close(directory)

    async def get(self, values: Sequence[bytes | None]) -> Sequence[bytes | None]:
        return await asyncio.to_thread(lambda: [None if value is None else self._read(value) for value in values])

    def _read(self, value: bytes) -> bytes | None:
        name = value.decode(errors="replace")
        if len(value) > _NAME_BYTES or "/" in name or "\0" in name:
            return None  # no name of ours
        try:
            return (self.directory / name).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            return None

    async def sweep(self, look: Look) -> int:
        # listed before anybody looks: what is put meanwhile is not in the list
        names, swept = await asyncio.to_thread(self._names), 0
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            records = await look([_key(name) for name in some])
            gone = [
                n
                for n, (on_its_way, value) in zip(some, records, strict=True)
                if not on_its_way and value != n.encode()
            ]
            await asyncio.to_thread(self._remove, gone)
            swept += len(gone)
        return swept

    def _names(self) -> list[str]:
        return os.listdir(self.directory) if self.directory.is_dir() else []

    def _remove(self, names: Sequence[str]) -> None:
        for name in names:
            (self.directory / name).unlink(missing_ok=True)


def _key(name: str) -> str:
    return unquote(name.removesuffix(_UNWRITTEN).rpartition(".")[0])
