"""Looks at what ``diagnosis`` judges: the places where actors run, processes of this machine, and what Redis says of itself.

Promises: nothing here changes anything, waits for a process or needs rights over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psutil

from bus import Bus
from miles_async.monitor.diagnosis import Process
from miles_async.runs.placements import PLACEMENTS, load

FULL_SHARE = 0.99  # of the memory that Redis may use: there is no room for a group above it


def look(where: str) -> Process:
    """What is seen of the actor that runs at ``where``, as its placement has named it."""
    kind, _, rest = where.partition(" ")
    return load(PLACEMENTS[kind].look)(rest) if kind in PLACEMENTS else Process(where)


def as_json(where: str) -> dict[str, Any]:
    """``where`` as one key and its value: {"pid": 123}."""
    kind, _, rest = where.partition(" ")
    return {kind or "where": int(rest) if rest.isdecimal() else rest}


def shown(found: Mapping[str, Any]) -> str:
    """The same for people, of a mapping that has that key: "pid 123"."""
    kind = next((kind for kind in PLACEMENTS if kind in found), "")
    return f"{kind} {found[kind]}" if kind else ""


def process_of(pid: int) -> Process:
    """The process ``pid`` of this machine."""
    where = f"pid {pid}"
    try:
        return Process(where, str(psutil.Process(pid).status()))
    except psutil.NoSuchProcess:
        return Process(where, "gone")
    except (psutil.Error, OverflowError):
        return Process(where)


async def refusal(bus: Bus) -> str:
    """Why Redis takes nothing new, empty if it does."""
    used, limit = await bus.memory()
    if limit and used >= FULL_SHARE * limit:
        return f"its memory is full ({used >> 20} of {limit >> 20} MB)"
    persistence = await bus.redis.info("persistence")
    if persistence.get("aof_last_write_status", "ok") != "ok":
        return "its disk takes no more of the append-only file"
    return next((trouble.refusal for trouble in bus.redis.troubles.values()), "")
