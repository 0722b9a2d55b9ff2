"""Faults of the campaign that are more than a signal: what comes late, what is forged or damaged, a disk that is full.

Promises: each does one thing to a living run and returns; what it stops it lets go on, what it fills it empties; one for which
the run is not ready at that moment (no engine is updated, no group is open) waits a few seconds and is then left out.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import psutil
import redis

from bus import EngineState
from bus.codec import LOGPROBS, decode, encode, pack
from bus.messages import Group, Snapshot
from miles_async.weights.place import ON_DISK, in_memory
from miles_async.weights.snapshot import WEIGHTS_FILE, snapshot_name

STOP_S = 3.0
READY_S = 5.0
AHEAD = 50  # versions that no learner has made


class Run(Protocol):
    """What a fault may touch."""

    run_dir: Path
    process: Any

    def pid(self, name: str) -> int: ...
    def supervisor(self) -> dict[str, Any]: ...
    def crash_and_resume(self, damage: Callable[[], None]) -> None: ...


def late_announcement(run: Run) -> bool:
    """The broadcaster stands still in the middle of an update, and the engine that is updated dies meanwhile."""
    with bus_of(run) as (client, prefix):
        for _ in _until_ready():
            lines = {name.decode(): _line(raw) for name, raw in client.hgetall(prefix + "engines").items()}
            updated = [name for name, line in lines.items() if line is not None and line.state == "updating"]
            if updated:
                with stopped(run.pid("broadcaster")):
                    os.kill(run.pid(updated[0]), signal.SIGKILL)
                return True
    return False


def forged_snapshot(run: Run) -> bool:
    """Whole weights lie in the run's own place, under a version far ahead, and are said to be a learner's."""
    newest = _newest_snapshot(run)
    if newest is None:
        return False
    version = int(newest.name.rpartition("v")[2]) + AHEAD
    incarnation = int(newest.name[1:].partition("-")[0])
    forged = newest.with_name(snapshot_name(incarnation, version))
    with contextlib.suppress(OSError):  # the learner may remove what is copied
        shutil.copytree(newest, forged, dirs_exist_ok=True)
    with bus_of(run) as (client, prefix):
        snapshot = Snapshot(version=version, incarnation=incarnation, path=str(forged), checksum="0" * 64)
        client.xadd(prefix + "weights", {"m": encode(snapshot)})
    return True


def damaged_snapshot(run: Run) -> bool:
    """A byte of the newest weights is another one."""
    newest = _newest_snapshot(run)
    if newest is None:
        return False
    with contextlib.suppress(OSError):
        damage_tail(newest / WEIGHTS_FILE)
    return True


def poisoned_group(run: Run) -> bool:
    """A group that is ready has a log-prob that is none, behind the back of every check before its publication.

    The one that was dealt last: one before it may be in the learner's hands by now, whole.
    """
    with bus_of(run) as (client, prefix):
        for _ in _until_ready():
            states = client.hgetall(prefix + "l:state")
            for name in reversed(client.zrange(prefix + "l:order", 0, -1)):
                key = client.hget(prefix + "l:payload", name) if states.get(name) == b"r" else None
                if key is None or (raw := client.get(key)) is None:
                    continue
                group = decode(raw, Group)
                sample = group.samples[0]
                nothing = pack(np.full(len(sample.tokens) // 4, np.nan), LOGPROBS)
                samples = (msgspec.structs.replace(sample, logprobs=nothing), *group.samples[1:])
                client.set(key, encode(msgspec.structs.replace(group, samples=samples)), xx=True, keepttl=True)
                return True
    return False


def full_disk(run: Run) -> bool:
    """The supervisor can write nothing, and one of its workers dies meanwhile."""
    before = resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with contextlib.suppress(StopIteration, ProcessLookupError):
            os.kill(run.pid("rollout-0"), signal.SIGKILL)
        time.sleep(STOP_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, before)
    return True


def stopped_fork_server(run: Run) -> bool:
    """Who starts the actors and tells how they end stands still, and a worker dies meanwhile."""
    for child in psutil.Process(run.process.pid).children():
        if " ".join(child.cmdline()).strip() == "miles-async fork server":
            with stopped(child.pid):
                os.kill(run.pid("rollout-1"), signal.SIGKILL)
            return True
    return False


def damaged_append_only_file(run: Run) -> bool:
    """The launch is killed, and the end of Redis' file is zeros, as a power cut leaves them; then it is resumed."""

    def damage() -> None:
        log = max((run.run_dir / "redis").rglob("*.aof"), key=lambda path: path.stat().st_size)
        with log.open("ab") as file:
            file.write(bytes(4096))

    run.crash_and_resume(damage)
    return True


KINDS: dict[str, Callable[[Run], bool]] = {
    "late announcement": late_announcement,
    "forged snapshot": forged_snapshot,
    "damaged snapshot": damaged_snapshot,
    "poisoned group": poisoned_group,
    "full disk": full_disk,
    "stopped fork server": stopped_fork_server,
    "damaged append-only file": damaged_append_only_file,
}


def damage_tail(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
        time.sleep(STOP_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def bus_of(run: Run) -> Iterator[tuple[Any, str]]:
    """A client of the run's Redis, and the prefix of its keys."""
    state = run.supervisor()
    client = redis.Redis.from_url(str(state.bus_url), protocol=2)
    try:
        yield client, f"miles:{{{state.run_id}}}:"
    finally:
        client.close()


def _until_ready() -> Iterator[None]:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        yield
        time.sleep(0.002)


def _line(raw: bytes) -> EngineState | None:
    try:
        return msgspec.msgpack.decode(raw, type=EngineState)
    except msgspec.DecodeError:
        return None


def _newest_snapshot(run: Run) -> Path | None:
    found = [path for root in (in_memory(run.run_dir), run.run_dir / ON_DISK) for path in root.glob("i????-v????????")]
    return max(found, key=lambda path: path.name, default=None)
