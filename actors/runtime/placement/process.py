"""A process of this machine as the place of an actor: how a heartbeat names it, and what is seen of it from any other process.

Promises: looking changes nothing, and needs no rights over the process.
"""

from __future__ import annotations

from miles_async.monitor.diagnosis import Process
from miles_async.monitor.sight import process_of
from miles_async.runs.placements import LOCAL

DIGITS = 10  # no number of a process has more


def place(pid: int) -> str:
    """What an actor says of where it runs."""
    return f"{LOCAL} {pid}"


def look(number: str) -> Process:
    """The process of that number, as it was read from a heartbeat."""
    if not (number.isascii() and number.isdigit() and len(number) <= DIGITS):
        return Process(f"{LOCAL} {number}", "gone")
    return process_of(int(number))
