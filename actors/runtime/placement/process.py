"""A process of this machine as the place of an actor: how a heartbeat names it, and what is seen of it from any other process.

Promises: looking changes nothing, and needs no rights over the process.
"""

from __future__ import annotations

from miles_async.monitor.diagnosis import Process
from miles_async.monitor.sight import process_of

KIND = "pid"  # the first word of such a place; ``monitor/sight.py`` finds :func:`look` by it
DIGITS = 10  # no number of a process has more


def place(pid: int) -> str:
    """What an actor says of where it runs."""
    return f"{KIND} {pid}"


def look(number: str) -> Process:
    """The process of that number, as it was read from a heartbeat."""
    if not (number.isascii() and number.isdigit() and len(number) <= DIGITS):
        return Process(f"{KIND} {number}", "gone")
    return process_of(int(number))
