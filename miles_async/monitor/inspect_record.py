"""What ``miles-async inspect`` reads: a run's transitions and events, from its files and, while it lives, from its bus.

Promises: nothing is changed, neither on disk nor on the bus; every entry is given once, in order; the files are streamed;
a bus that does not answer leaves its reason in ``note``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis.exceptions

from bus.errors import BusError
from bus.messages import Event, Message, Transition
from miles_async.monitor.record_lines import (
    TRANSITIONS_FILE,
    EventLine,
    TransitionLine,
    last_entry,
    read_events,
    read_metrics,
    read_transitions,
    transition_line,
)
from miles_async.runs.state import read

BUS_DEADLINE_S = 5.0


class InspectError(ValueError):
    """There is nothing of that name to look at; the message names the nearest that there is."""


class Record:
    """The transitions and events of the run in ``run_dir``, to be read as often as needed."""

    def __init__(self, run_dir: Path) -> None:
        """Raises InspectError if no run has left a record there, RunStateError."""
        self.run_dir = run_dir
        self.note = ""  # what is not in here
        self._pending: list[TransitionLine | EventLine] = []
        state = read(run_dir)
        url = state.bus_url if state else None
        if not (run_dir / TRANSITIONS_FILE).exists() and url is None:
            raise InspectError(f"{run_dir}: no run here that has a record (expected {TRANSITIONS_FILE})")
        if state is not None and state.pid is not None and url is not None:
            # the bus before the file: what the supervisor writes and trims meanwhile is then in one of them at least
            try:
                self._pending = asyncio.run(_pending(url, state.run_id, last_entry(run_dir)))
            except (BusError, redis.exceptions.RedisError, OSError) as error:
                self.note = f"without what is not on disk yet: {error}"
        first = next(read_metrics(run_dir), None) or next(self.transitions(), None)
        self.start = first.time if first else 0.0

    def transitions(self) -> Iterator[TransitionLine]:
        """Every transition once, in the ledger's order."""
        pending = {line.id: line for line in self._pending if isinstance(line, TransitionLine)}
        for line in read_transitions(self.run_dir):
            pending.pop(line.id, None)
            yield line
        yield from pending.values()

    def events(self) -> Iterator[EventLine]:
        """Every event once."""
        pending = {line.id: line for line in self._pending if isinstance(line, EventLine)}
        for line in read_events(self.run_dir):
            pending.pop(line.id, None)
            yield line
        yield from pending.values()


async def _pending(url: str, run_id: str, after: str) -> list[TransitionLine | EventLine]:
    """What ``events`` holds behind ``after``. Not by the bus' own reading, which takes what is malformed off the bus."""
    from bus import connect
    from bus.codec import CodecError, decode
    from bus.loading import wait_not
    from bus.password import without_password

    found: list[TransitionLine | EventLine] = []
    try:
        async with asyncio.timeout(BUS_DEADLINE_S):
            bus = await connect(url, run_id, deadline_s=BUS_DEADLINE_S, tell=wait_not)
            try:
                end = await bus.last_id("events")
                while answer := await bus.redis.xrange(bus.key("events"), f"({after}", end, count=1000):
                    after = answer[-1][0].decode()
                    for entry_id, fields in answer:
                        try:
                            message: Any = decode(fields.get(b"m", b""), Message)
                        except CodecError:
                            continue
                        if isinstance(message, Transition):
                            found.append(transition_line(entry_id.decode(), message))
                        elif isinstance(message, Event):
                            found.append(
                                EventLine(message.actor, message.kind, message.time, message.data, entry_id.decode())
                            )
            finally:
                await bus.close()
    except TimeoutError:
        raise TimeoutError(f"the bus at {without_password(url)} did not answer in {BUS_DEADLINE_S:g} s") from None
    return found
