"""Watching and ending a process group: the server's processes are its leader and whatever that started.

Promises: ``end`` returns only when no process of the group runs (a zombie does not), or raises naming those that do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

POLL_S = 0.05  # a group has no completion event, only its leader has
REAPER_S = 3.0


def running_members(group: int) -> list[int]:
    """Process ids in process group ``group`` that have not exited, zombies left out."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(process.pid) == group and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                members.append(process.pid)
    return members


def mapped_files(members: Iterable[int], prefix: str) -> set[Path]:
    """Files whose path starts with ``prefix`` that the processes ``members`` have mapped into memory."""
    files: set[Path] = set()
    for pid in members:
        with contextlib.suppress(psutil.Error):
            files |= {Path(entry.path) for entry in psutil.Process(pid).memory_maps() if entry.path.startswith(prefix)}
    return files


async def end(group: int, grace_s: float, deadline_s: float) -> None:
    """SIGTERM to the group's leader, SIGKILL after ``grace_s`` seconds, and wait until the whole group is gone.

    With ``grace_s = 0`` there is no SIGTERM. What a killed leader leaves is its reaper's (``bound_exec.py``), then ours.
    Raises TimeoutError naming the processes that still run ``deadline_s`` seconds after SIGKILL to the whole group.
    """
    if grace_s > 0:
        _signal_leader(group, signal.SIGTERM)
        if await _gone(group, grace_s):
            return
    _signal_leader(group, signal.SIGKILL)
    if await _gone(group, REAPER_S):
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    if not await _gone(group, deadline_s):
        raise TimeoutError(
            f"processes {running_members(group)} of group {group} still run {deadline_s:g} s after SIGKILL"
        )


def _signal_leader(group: int, number: signal.Signals) -> None:
    if group in running_members(group):  # else the number may be somebody else's by now
        os.kill(group, number)


async def _gone(group: int, within_s: float) -> bool:
    """Whether no process of the group runs, as soon as that is so or ``within_s`` seconds have passed."""
    until = time.monotonic() + within_s
    while running_members(group):
        if time.monotonic() > until:
            return False
        await asyncio.sleep(POLL_S)
    return True
