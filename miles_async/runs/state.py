"""``supervisor.json``: which run a directory is of, how many numbers it has given away, who runs it and where its bus is.

Promises: the only module that writes or reads that file; what is written is whole and for its owner's eyes only (the URL of a
bus may hold a password); a file that a power cut emptied is none; one that is damaged is one line that says how to go on.
"""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec

from miles_async.disk.durable import write_whole
from miles_async.runs.lock import holder

STATE_FILE = "supervisor.json"
REDIS_DIR = "redis"  # the data of a Redis server of the run's own
FILE_BYTES = 1 << 20  # no such file is longer


class RunStateError(ValueError):
    """The run directory cannot be used, or the file that says whose it is cannot be read."""


class RunState(msgspec.Struct):
    """What the supervisor of a run remembers for the next launch, and what others find its bus by."""

    run_id: str
    incarnation: int  # the highest that a launch or a process of this run has had
    pid: int | None = None  # of the supervisor; None: its launch has ended
    started: float = 0.0  # seconds since the epoch
    process_started: float = 0.0
    bus_url: str | None = None  # None: the bus is not up yet, or not any more
    redis_pid: int | None = None  # None: the server is not ours
    host: str = ""  # the machine of both of these processes, by its name; "": this one

    @property
    def elsewhere(self) -> str:
        """The machine, if it is another one: what a process of it has for a number says nothing here."""
        return "" if self.host == platform.node() else self.host


def write(run_dir: Path, state: RunState) -> None:
    """Put ``state`` in the place of what was there. Raises OSError."""
    write_whole(run_dir / STATE_FILE, msgspec.json.encode(state))


def read(run_dir: Path) -> RunState | None:
    """What was written last; None: nothing, or a power cut emptied the file. Raises RunStateError."""
    path = run_dir / STATE_FILE
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES)
    except FileNotFoundError:
        return None
    if not content.strip(b"\0 \n"):
        return None
    try:
        return msgspec.json.decode(content, type=RunState)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        cause = f"{type(error).__name__}: {error}"
        raise RunStateError(f"{path} is damaged ({cause}): restore it, or start another run") from None


def living(run_dir: Path) -> RunState | None:
    """The state of the run whose supervisor lives, which its lock shows; None: none lives. Raises RunStateError."""
    if (pid := holder(run_dir)) is None:
        return None
    found = read(run_dir)
    if found is None or found.pid != pid:  # an earlier launch's: this one only begins, or has ended all but its process
        return RunState(found.run_id if found else "", found.incarnation if found else 0, pid)
    return found
