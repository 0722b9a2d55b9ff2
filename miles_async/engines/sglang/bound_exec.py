"""Becomes another program, whose whole process group ends when it or the process that started it dies.

Run as the leader of a new session: ``python -I -S bound_exec.py PARENT_PID PROGRAM ARG...``.

    PARENT ──starts──► PROGRAM ──forked before the exec──► reaper
       dies ──SIGKILL─────┘ dies ──────SIGUSR1───────────────┘ SIGKILL to the whole group

Promises: PROGRAM runs bound to its parent or, if that is gone already, not at all; and whatever it has started dies with
it, at whatever stage (SGLang's own processes ask for the same only once they are through their imports, seconds later).
A program of its own, since ``preexec_fn`` would run Python between fork and exec of a process that has threads. Only the
standard library is imported. Off Linux it is a plain exec.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>; kept across exec, cleared by fork
TRACKER_S = 2.0


def signal_when_parent_dies(number: signal.Signals, parent: int) -> None:
    """Have the kernel send us ``number`` when process ``parent`` dies; at once if it is dead already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it died before the request reached the kernel
        os.kill(os.getpid(), number)


def reap_group(leader: int) -> None:
    """Wait until ``leader``, our parent, dies; then kill its process group, which is ours too.

    Python's resource trackers come last: when their clients are gone they remove what those left in shared memory.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # nobody else ends this wait
    signal_when_parent_dies(signal.SIGUSR1, leader)
    signal.sigwait({signal.SIGUSR1})
    deadline = time.monotonic() + TRACKER_S
    while (others := other_members()) and time.monotonic() < deadline:
        for pid, command in others.items():
            if b"resource_tracker" not in command:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    os.killpg(0, signal.SIGKILL)


def other_members() -> dict[int, bytes]:
    """Process id and command line of the others in our process group; a zombie has none and is left out."""
    group, found = os.getpgrp(), {}
    for name in os.listdir("/proc"):
        if not name.isdecimal() or int(name) == os.getpid():
            continue
        try:
            if os.getpgid(int(name)) == group:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    found[int(name)] = file.read()
        except (ProcessLookupError, FileNotFoundError):
            continue
    return {pid: command for pid, command in found.items() if command}


def main() -> None:
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        leader = os.getpid()
        signal_when_parent_dies(signal.SIGKILL, parent)
        if os.fork() == 0:
            reap_group(leader)
    os.execv(program[0], program)


if __name__ == "__main__":
    main()
