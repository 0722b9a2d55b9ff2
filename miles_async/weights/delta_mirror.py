"""The engine's side of ``disk_delta``: a full copy of the weights on its machine, which follows a shared directory.

    broadcaster ──► SHARED/i0001-v00000007.delta (or .full) ──► mirror ──► LOCAL/i0001-v00000007 ──load──► engine
         ▲                                                        │
         └──────────────── SHARED/ENGINE.json ◄───────────────────┘   what it has, or why it asks for a full copy

Promises: a copy that is reported was compared with the checksums of its version as a whole; what cannot be made from the files
that are there (no base, a damaged file, another sum) is asked for as a full copy, with the reason; killed at any point, it
starts again from the copies that are whole; one whose engine lives on in a later incarnation is silent. Mirrors that share
LOCAL take turns, and the later ones find the work done.

All that the two sides share is the directory, so each looks at it again and again (``POLL_S``): a network file system tells
nobody of changes. ``python -m miles_async.weights.delta_mirror ENGINE SHARED LOCAL`` runs one for an engine of somebody else.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import torch

from miles_async.config.schema import RunConfig
from miles_async.disk.fence import incarnation
from miles_async.engines.checksum import checksums
from miles_async.hooks.daemon_thread import in_thread
from miles_async.weights.delta import DeltaError, Header, read_header, read_tensors
from miles_async.weights.place import shared_root
from miles_async.weights.snapshot import SnapshotError, choose_root, load_snapshot, snapshot_name, write_tensors
from miles_async.weights.update import Key

POLL_S = 0.1
ALIVE_S = 1.0  # how often it shows that it lives
CONFIG_DIR = "model"  # of the shared directory: what an engine reads besides the weights
_log = logging.getLogger(__name__)


class State(msgspec.Struct, frozen=True):
    """What a mirror says of itself: the version it has, and where."""

    key: Key | None = None
    path: str = ""
    wants: Key | None = None  # a full copy of this version
    why: str = ""  # it wants one
    tried: bool = False  # the full copy that lies there, in vain
    asks: int = 0  # full copies that it has asked for, ever
    life: int = 0  # the incarnation of its engine


def shared_dir(config: RunConfig, run_dir: Path) -> Path:
    """``weights.delta_dir``, or in ``placement.shared_dir``, or the run directory's own."""
    if config.weights.delta_dir is not None:
        return Path(config.weights.delta_dir)
    return (run_dir if config.placement.shared_dir is None else shared_root(config, run_dir)) / "deltas"


def state_file(shared: Path, engine: str) -> Path:
    return shared / f"{engine}.json"


def key_of(file: Path) -> Key:
    """(incarnation, version) in a name as :func:`snapshot_name` makes them. Raises ValueError."""
    incarnation, version = file.stem.removeprefix("i").split("-v")
    return int(incarnation), int(version)


class Mirror:
    """The copy of one engine's machine. ``local(n_bytes)`` gives the directory in which copies of so many bytes may lie."""

    def __init__(self, engine: str, shared: Path, local: Callable[[int], Path]) -> None:
        self.engine, self.shared = engine, shared
        self.state = State()
        self._choose = local
        self._local: Path | None = None
        self._seen: set[tuple[str, int, int]] = set()

    async def follow(self) -> None:
        """Until cancelled."""
        shown = 0.0
        while True:
            known, step = self.state, asyncio.ensure_future(in_thread(self.step))
            while not step.done():
                await asyncio.wait([step], timeout=ALIVE_S)
                if self.state is not known or time.monotonic() >= shown + ALIVE_S:
                    known, shown = self.state, time.monotonic()
                    self._say()
            step.result()
            await asyncio.sleep(POLL_S)

    def step(self) -> None:
        """Make the newest version that lies there, if there are files that were not seen yet."""
        try:
            entries = [entry for entry in os.scandir(self.shared) if entry.name.endswith((".delta", ".full"))]
            seen = {(entry.name, entry.stat().st_mtime_ns, entry.stat().st_size) for entry in entries}
        except OSError:
            return
        if not seen or seen == self._seen:
            return
        self._seen = seen
        target, known = max(key_of(Path(entry.name)) for entry in entries), self.state
        full = self._file(target, "full")
        tried = full.exists()
        try:
            path = self._make(target, full if tried else None)
            self.state = State(target, str(path), asks=known.asks)
        except (DeltaError, SnapshotError, OSError) as error:
            _log.warning("mirror of %s: asks for a full copy of version %d: %s", self.engine, target[1], error)
            self.state = State(known.key, known.path, target, str(error), tried, known.asks + 1)

    def _make(self, target: Key, full: Path | None) -> Path:
        """The local copy of ``target``. Raises DeltaError, SnapshotError, OSError."""
        file = full or self._file(target, "delta")
        header = read_header(file)
        if header.key != target:
            raise DeltaError(f"{file} is damaged: it holds version {header.key[1]}")
        local = self._root(header)
        copy = local / snapshot_name(*target)
        with _turn(local):
            if not _is_whole(copy, header):
                for step in [full] if full else self._chain(local, header):
                    self._apply(local, step)
        return copy

    def _chain(self, local: Path, header: Header) -> list[Path]:
        """The deltas that lead from a copy that is here to the version of ``header``. Raises DeltaError."""
        target, chain = header.key, [self._file(header.key, "delta")]
        while header.base is not None and not (local / snapshot_name(*header.base)).is_dir():
            file = self._file(header.base, "delta")
            if not file.exists():
                raise DeltaError(f"no copy of version {header.base[1]} is here, which version {target[1]} builds on")
            chain.append(file)
            header = read_header(file)
        return chain[::-1]

    def _apply(self, local: Path, file: Path) -> None:
        header = read_header(file)
        base: dict[str, torch.Tensor] = {}
        if header.base is not None:
            base = load_snapshot(local / snapshot_name(*header.base))
        number, version = header.key
        names = (name for name, _, _ in header.specs())
        tensors = zip(names, read_tensors(file, base), strict=True)
        write_tensors(local, version, number, header.specs(), tensors, str(self.shared / CONFIG_DIR))

    def _root(self, header: Header) -> Path:
        if self._local is None:
            sizes = (torch.Size(shape).numel() * dtype.itemsize for _, dtype, shape in header.specs())
            self._local = self._choose(sum(sizes))
            self._local.mkdir(parents=True, exist_ok=True)
        return self._local

    def _file(self, key: Key, kind: str) -> Path:
        return self.shared / f"{snapshot_name(*key)}.{kind}"

    def _say(self) -> None:
        file = state_file(self.shared, self.engine)
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            if _life_in(file) > incarnation():
                return
            draft.write_bytes(msgspec.json.encode(msgspec.structs.replace(self.state, life=incarnation())))
            draft.replace(file)
        except OSError as error:  # the directory is not there yet, or not reachable now
            _log.debug("mirror of %s: %s", self.engine, error)


def _life_in(file: Path) -> int:
    """Of which life of the engine a mirror has said what is in ``file``."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=State).life
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return 0


def _is_whole(path: Path, header: Header) -> bool:
    """Whether the copy in ``path`` is the version of ``header``, by its checksums; one that is not is removed."""
    if not path.is_dir():
        return False
    try:
        if checksums(load_snapshot(path)) == {entry.name: entry.checksum for entry in header.entries}:
            return True
    except SnapshotError as error:
        _log.warning("%s", error)
    shutil.rmtree(path, ignore_errors=True)
    return False


@contextmanager
def _turn(local: Path) -> Iterator[None]:
    """Alone among the mirrors that keep their copies in ``local``; the lock of a process that is killed is gone with it."""
    with (local / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@asynccontextmanager
async def mirrored(config: RunConfig, run_dir: Path, engine: str) -> AsyncIterator[None]:
    """Keep the mirror of ``engine`` meanwhile. One that fails falls silent: the broadcaster then gives the engine up."""
    plain = msgspec.structs.replace(config, weights=msgspec.structs.replace(config.weights, snapshot_dir=None))
    chosen = config.weights.mirror_dir

    def local(n_bytes: int) -> Path:
        return Path(chosen) if chosen is not None else choose_root(plain, run_dir, n_bytes) / "mirror"

    following = asyncio.create_task(Mirror(engine, shared_dir(config, run_dir), local).follow())
    following.add_done_callback(_tell_end)
    try:
        yield
    finally:
        following.cancel()


def _tell_end(following: asyncio.Task[None]) -> None:
    if not following.cancelled() and (error := following.exception()) is not None:
        _log.critical("the mirror has failed", exc_info=error)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: python -m miles_async.weights.delta_mirror ENGINE SHARED LOCAL")
    logging.basicConfig(level=logging.INFO)
    asyncio.run(Mirror(sys.argv[1], Path(sys.argv[2]), lambda _: Path(sys.argv[3])).follow())
