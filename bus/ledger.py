"""The ledger: which group is where, at every moment, and the only way to move it.

    admit        claim          publish       batch(step)       commit(step)
   ───────► waiting ──► in flight ──► ready ──────► batched ──────────► trained
               ▲         │     │        │ drop(reason); the surplus of a batch
               └─ fail, ─┘     │        ▼
                  release      └────► dropped ◄─── quarantine(reason) of what is batched and cannot be trained
                      discard(reason)        (so is a group whose last attempt fails, with its causes on "dead")

   A prompt is dealt again where drop or discard is told so: it waits for that under the id of its next attempt, and admit_again
   deals it. Of all attempts at a prompt at most one is open, waits to be dealt, is batched or trained.

Promises (design invariants 1, 2 and 7):

- dealt = waiting + in_flight + ready + batched + trained + dropped, always: a transition is one atomic Redis script.
- Every transition can be repeated: a retry after a lost answer changes nothing.
- A group is published only under its valid lease: a worker that was given up cannot publish late.
- ``batch`` records a step's groups before the step trains on them; a step has one record, for ever.
- Payloads leave only when ``commit`` says that the checkpoints contain their step which a learner may have to go back
  to, or with a recorded drop.
- Admission bounds what is open; no stream is ever trimmed to make room.
- Every transition is an entry of ``events``, written by the script that made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import redis.exceptions

from bus.codec import CodecError, encode
from bus.ledger_batches import Batches
from bus.ledger_leases import WORKERS, Leases
from bus.messages import DeadLetter, Ticket


class OpenGroups(msgspec.Struct, frozen=True):
    """One consistent view of what is open (waiting, in flight or ready)."""

    last_step: int  # batches recorded so far
    next_position: int  # prompts dealt so far
    order: tuple[str, ...]  # ids in the order they were dealt
    states: tuple[str, ...]  # "w", "f" or "r", aligned with ``order``


class Room(NamedTuple):
    """What admission looks at, in one consistent view."""

    last_step: int  # batches recorded so far
    next_position: int  # prompts dealt so far
    open_groups: int  # waiting, in flight or ready
    again: int  # prompts that wait to be dealt again


class Ledger(Leases, Batches):
    """The ledger of one run; any process may hold one. Parts of it are in ledger_leases.py and ledger_batches.py."""

    async def prepare(self) -> None:
        """Create the consumer group of the rollout workers. Can be repeated."""
        try:
            await self.bus.redis.xgroup_create(self.bus.key("tickets"), WORKERS, id="0", mkstream=True)
        except redis.exceptions.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    # the dealer

    async def admit(
        self, tickets: Sequence[Ticket], *, limit: int, position: int, step: int | None = None
    ) -> tuple[int, int]:
        """Deal ``tickets``, the prompts from ``position`` on, while fewer than ``limit`` groups are open.

        Returns how many were dealt and the next position. A ``position``, or a last ``step``, that is not the ledger's
        deals nothing.
        """
        flat: list[Any] = []
        for ticket in tickets:
            flat += (ticket.group_id, encode(ticket))
        admitted, next_position = await self._run("admit", limit, position, -1 if step is None else step, *flat)
        return int(admitted), int(next_position)

    async def waiting_again(self, count: int) -> list[str]:
        """The ids under which the ``count`` prompts are dealt that have waited longest to be dealt again."""
        found = await self.bus.redis.lrange(self.bus.key("l:again"), 0, count - 1) if count > 0 else []
        return [group_id.decode() for group_id in found]

    async def admit_again(self, tickets: Sequence[Ticket], *, limit: int, step: int) -> int:
        """Deal ``tickets``, of prompts that wait to be dealt again, as they wait, while fewer than ``limit`` groups are open.

        Returns how many were dealt: none where ``step`` is not the ledger's last one.
        """
        flat = [part for ticket in tickets for part in (ticket.group_id, encode(ticket))]
        return int(await self._run("again", limit, step, *flat))

    async def room(self) -> Room:
        """What admission looks at."""
        return Room(*map(int, await self._run("room")))

    async def open_groups(self) -> OpenGroups:
        last_step, next_position, order, states = await self._run("open")
        return OpenGroups(
            int(last_step),
            int(next_position),
            tuple(gid.decode() for gid in order),
            tuple(state.decode() for state in states),
        )

    async def closed(self) -> int:
        """How many groups are open no more: until that changes, the order of the open groups only grows at its end."""
        fields = await self.bus.redis.hmget(self.bus.key("l:count"), "batched", "trained", "dropped")
        return sum(int(field or 0) for field in fields)

    # everybody

    async def dead_letters(
        self, last_id: str, *, block_ms: int = 0
    ) -> tuple[list[tuple[DeadLetter, Ticket | None]], str]:
        """Groups given up after ``last_id`` ("0" for all) with their tickets, and the id to go on from."""
        answer = await self.bus.redis.xread({self.bus.key("dead"): last_id}, count=256, block=block_ms or None)
        letters: list[tuple[DeadLetter, Ticket | None]] = []
        junk: list[bytes] = []
        for entry_id, fields in answer[0][1] if answer else []:
            last_id = entry_id.decode()
            letter = self.bus.decode("dead", entry_id, fields, DeadLetter)
            ticket = (
                None if letter is None else self.bus.decode("dead", entry_id, {b"m": fields.get(b"t", b"")}, Ticket)
            )
            if letter is None or ticket is None or ticket.group_id != letter.group_id:
                junk.append(entry_id)
                if letter is not None and ticket is not None:
                    self.bus.refuse("dead", entry_id, CodecError(f"its ticket is of {ticket.group_id}"))
            else:
                letters.append((letter, ticket))
        await self.bus.remove("dead", junk)
        return letters, last_id

    async def bind(self, name: str, value: str) -> str:
        """Remember ``value`` under ``name`` for ever, unless there is one: returns what is remembered."""
        await self.bus.redis.hsetnx(self.bus.key("l:meta"), name, value)
        return (await self.bus.redis.hget(self.bus.key("l:meta"), name)).decode()

    async def counts(self) -> dict[str, int]:
        """dealt, waiting, in_flight, ready, batched, trained, dropped, and ``dropped:REASON`` for each reason."""
        table = await self.bus.redis.hgetall(self.bus.key("l:count"))
        counts = {name.decode(): int(value) for name, value in table.items()}
        names = ("dealt", "waiting", "in_flight", "ready", "batched", "trained", "dropped")
        return {**dict.fromkeys(names, 0), **counts}

    async def forgotten(self) -> int:
        """The last step that cannot be trained again: a learner needs a checkpoint that contains it."""
        fields = await self.bus.redis.hmget(self.bus.key("l:meta"), "forgotten_step", "committed_step")
        return int(next((value for value in fields if value is not None), 0))


def balanced(counts: dict[str, int]) -> bool:
    """Whether invariant 1 holds in ``counts``."""
    places = ("waiting", "in_flight", "ready", "batched", "trained", "dropped")
    return counts["dealt"] == sum(counts[place] for place in places)
