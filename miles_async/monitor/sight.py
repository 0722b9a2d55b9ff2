"""Looks at what ``diagnosis`` judges: processes by pid, and what Redis says of itself.

Promises: nothing here changes anything, waits for a process or needs rights over it.
"""

from __future__ import annotations

import psutil

from bus import Bus
from miles_async.monitor.diagnosis import Process

FULL_SHARE = 0.99  # of the memory that Redis may use: there is no room for a group above it


def process_of(pid: int) -> Process:
    """The state of process ``pid``."""
    try:
        return Process(pid, str(psutil.Process(pid).status()))
    except psutil.NoSuchProcess:
        return Process(pid, "gone")
    except psutil.Error:
        return Process(pid)


def age(pid: int, now: float) -> float:
    """Seconds that process ``pid`` has lived; 0 if it does not."""
    try:
        return max(0.0, now - psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0


async def refusal(bus: Bus) -> str:
    """Why Redis takes nothing new, empty if it does."""
    used, limit = await bus.memory()
    if limit and used >= FULL_SHARE * limit:
        return f"its memory is full ({used >> 20} of {limit >> 20} MB)"
    persistence = await bus.redis.info("persistence")
    if persistence.get("aof_last_write_status", "ok") != "ok":
        return "its disk takes no more of the append-only file"
    return next((trouble.refusal for trouble in bus.redis.troubles.values()), "")
