"""The process between a worker and a grading process: it sees to it that nothing of a grader outlives it.

    worker ──starts──► guard ──starts──► grading process ──starts──► whatever a reward function starts
       └──────────────── pipes ────────────────┘

Promises: when the worker asks for it (SIGTERM) or dies, also by kill -9, and when the grading process ends by itself, every
process that came from it is killed, in whatever session or group it is, and waited for; then the guard ends as the grading
process did. (Linux, where orphans fall to the guard; elsewhere: the grading process's own session.)

Run by path, ``python -I -S grading_guard.py WORKER_PID COMMAND...``: it imports the standard library and nothing else, since
there is one beside each grading process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LINUX = sys.platform == "linux"
_KILL_S = 5.0  # a process that cannot be killed (in the middle of a disk access) is not waited for longer


class _AskedToEnd(Exception):
    """The worker has asked, or is dead."""


def main(worker: int, command: list[str]) -> int:
    """Run ``command`` until it ends or the worker wants it to; returns its exit status, negative: the signal."""
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    grader = None
    try:
        if _LINUX:
            libc = ctypes.CDLL(None)
            libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != worker:  # it died before the call above
                return 1
        grader = subprocess.Popen([*command, str(os.getpid())], start_new_session=True)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)  # the pipes are the grading process's alone: its end is theirs
        os.dup2(0, 1)
        return _until_it_ends(grader.pid)
    except _AskedToEnd:
        return 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _kill_all(None if grader is None else grader.pid)


def _end(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise _AskedToEnd


def _until_it_ends(grader: int) -> int:
    """Orphans end here, too."""
    while True:
        pid, status = os.wait()
        if pid == grader:
            return os.waitstatus_to_exitcode(status)


def _kill_all(grader: int | None) -> None:
    """Kill the children until there are none: those of a killed one become ours."""
    deadline = time.monotonic() + _KILL_S
    if grader is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(grader, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # there are none
        while time.monotonic() < deadline:
            for pid in _children():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.002)


def _children() -> list[int]:
    if not _LINUX:
        return []
    mine, found = str(os.getpid()), list[int]()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
                # behind the program's name, which may hold anything: the state and the parent
                if file.read().rpartition(")")[2].split()[1] == mine:
                    found.append(int(name))
    return found


if __name__ == "__main__":
    code = main(int(sys.argv[1]), sys.argv[2:])
    if code < 0:  # as the grading process did
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
