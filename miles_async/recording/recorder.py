"""The groups of one rollout worker, written to its segments before they are published; what a learner adds to them, likewise.

Promises: what :meth:`Recorder.keep` has returned for is in a file, and survives the death of the process; the event loop waits
for no disk: groups that come while others are written go into the next block together; a disk that takes nothing costs the
groups their place in the record and nothing else, and the caller hears of it; all segments of a run together stay below
``record.max_gb``, the oldest leave first.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from pathlib import Path
from typing import BinaryIO

from miles_async.config.schema import RunConfig
from miles_async.hooks.daemon_thread import in_thread
from miles_async.recording.segments import SUFFIX, Entry, block

DIRECTORY = "record"  # of the run directory
PUBLISHED = "published"
SEGMENT_BYTES = 64 << 20
BLOCK_BYTES = 4 << 20  # of payloads: what a reader of one group has to unpack with it

Item = tuple[Entry, bytes]


def recorder(config: RunConfig, run_dir: Path, name: str, incarnation: int) -> Recorder | None:
    """The recorder of one life of a worker, or of a learner's process; None: the run keeps nothing."""
    if config.record.level == "off":
        return None
    most = int(config.record.max_gb * 1e9)
    return Recorder(run_dir / DIRECTORY, f"{name}-{incarnation}", most, min(SEGMENT_BYTES, most // 8))


class Recorder:
    """``owner``: no two recorders of a run have the same. ``max_bytes``: of all segments in ``root``."""

    def __init__(self, root: Path, owner: str, max_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._root, self._owner, self._max_bytes, self._segment_bytes = root, owner, max_bytes, segment_bytes
        self._waiting: list[tuple[Item, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._file: BinaryIO | None = None
        self._number = 0

    async def keep(self, entry: Entry, payload: bytes) -> None:
        """Write a group. Raises OSError: the disk did not take it."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(((entry, payload), done))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all())
        await done

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                some = self._take()
                items = [item for item, _ in some]
                error: OSError | None = None
                try:
                    await in_thread(partial(self._write, items))
                except OSError as caught:
                    error = caught
                for _, done in some:
                    if not done.done():
                        done.set_result(None) if error is None else done.set_exception(error)
        finally:
            self._writing = None

    def _take(self) -> list[tuple[Item, asyncio.Future[None]]]:
        """What goes into one block: at least one group."""
        size = count = 0
        for (_, payload), _ in self._waiting:
            size += len(payload)
            if count and size > BLOCK_BYTES:
                break
            count += 1
        some, self._waiting = self._waiting[:count], self._waiting[count:]
        return some

    def _write(self, items: list[Item]) -> None:
        """One block, in the thread."""
        if self._file is None or self._file.tell() >= self._segment_bytes:
            self._next_segment()
        assert self._file is not None
        at = self._file.tell()
        unwritten = memoryview(block(items))
        try:
            while unwritten:
                unwritten = unwritten[self._file.write(unwritten) :]
        except OSError:
            with contextlib.suppress(OSError):  # what is half there would hide what comes behind it
                self._file.truncate(at)
                self._file.seek(at)
            raise

    def _next_segment(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._root.mkdir(mode=0o700, exist_ok=True)
        prune(self._root, self._max_bytes - self._segment_bytes)
        self._number += 1
        # unbuffered: what was refused is not tried again behind our back
        self._file = (self._root / f"{self._owner}-{self._number:05d}{SUFFIX}").open("xb", buffering=0)

    async def close(self) -> None:
        """Write what waits, and close the file."""
        if self._writing is not None:
            with contextlib.suppress(Exception):
                await self._writing
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


def prune(root: Path, max_bytes: int) -> None:
    """Remove the oldest segments until those that are left have at most ``max_bytes``."""
    found = []
    for file in root.glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # another worker's rotation
            about = file.stat()
            found.append((about.st_mtime_ns, about.st_size, file))
    total = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if total <= max_bytes:
            return
        file.unlink(missing_ok=True)
        total -= size
