"""Whether a launch lives in a run directory: a lock that it holds for as long as its process does.

Promises: of any number of launches that begin at the same instant one gets the lock; the kernel gives it back however the
process ends, also while nobody has waited for it; processes that it starts do not have it. Asking changes nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

LOCK_FILE = "launch.lock"
PATIENCE_S = 1.0  # who asks whether it is held, holds it for a moment


class RunInUseError(ValueError):
    """A launch is alive in the run directory."""


class RunLock:
    """The lock of ``run_dir``, which has to exist."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._file: int | None = None

    def take(self, patience_s: float = PATIENCE_S) -> None:
        """Hold it until :meth:`release`, or the end of this process. Raises RunInUseError naming the holder, OSError."""
        file = os.open(self.run_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        until = time.monotonic() + patience_s
        try:
            while not _lock(file, fcntl.LOCK_EX):
                if time.monotonic() > until:
                    raise RunInUseError(_in_use(self.run_dir, file))
                time.sleep(0.02)
            os.truncate(file, 0)
            os.pwrite(file, f"{os.getpid()} {platform.node()}".encode(), 0)
        except BaseException:
            os.close(file)
            raise
        self._file = file

    def release(self) -> None:
        """Safe to call twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def holder(run_dir: Path) -> int | None:
    """The pid of the launch that lives in ``run_dir``; None: none does. Raises OSError."""
    with _held(run_dir) as file:
        return None if file is None else _holder(file)[0]


def in_use(run_dir: Path) -> str:
    """Which launch lives in ``run_dir``, in words; "": none does. Raises OSError."""
    with _held(run_dir) as file:
        return "" if file is None else _in_use(run_dir, file)


@contextlib.contextmanager
def _held(run_dir: Path) -> Iterator[int | None]:
    """The lock's file; None: nobody holds it."""
    try:
        file = os.open(run_dir / LOCK_FILE, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        yield None
        return
    try:
        yield None if _lock(file, fcntl.LOCK_SH) else file
    finally:
        os.close(file)


def _in_use(run_dir: Path, file: int) -> str:
    pid, host = _holder(file)
    where = f"pid {pid}" if host in ("", platform.node()) else f"pid {pid} on {host}"
    return f"{run_dir} is in use by a launch that is alive ({where})"


def _lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(file: int) -> tuple[int, str]:
    """Its pid and its machine. 0, "": it has not written them yet."""
    pid, _, host = os.pread(file, 300, 0).decode(errors="replace").partition(" ")
    return (int(pid), host) if pid.isascii() and pid.isdigit() else (0, "")
