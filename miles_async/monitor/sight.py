"""Looks at what ``diagnosis`` judges: the places where actors run, processes of this machine, and what Redis says of itself.

Promises: nothing here changes anything, waits for a process or needs rights over it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import psutil

from bus import Bus
from miles_async.monitor.diagnosis import Process

FULL_SHARE = 0.99  # of the memory that Redis may use: there is no room for a group above it


# Who looks at a place that a heartbeat names, by the kind that it begins with: a line for each placement. Of somebody who is
# asked from outside of the run; by path, since nothing of miles_async imports an actor.
LOOKS = {"pid": "actors.runtime.placement.process.look"}


def look(where: str) -> Process:
    """What is seen of the actor that runs at ``where``, as its placement has named it."""
    kind, _, rest = where.partition(" ")
    if kind not in LOOKS:
        return Process(where)
    module, _, name = LOOKS[kind].rpartition(".")
    return getattr(importlib.import_module(module), name)(rest)


def as_json(where: str) -> dict[str, Any]:
    """``where`` as one key and its value: {"pid": 123}."""
    kind, _, rest = where.partition(" ")
    return {kind or "where": int(rest) if rest.isdecimal() else rest}


def shown(found: Mapping[str, Any]) -> str:
    """The same for people, of a mapping that has that key: "pid 123"."""
    kind = next((kind for kind in LOOKS if kind in found), "")
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
