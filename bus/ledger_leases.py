"""What rollout workers ask of the ledger: tickets under a lease, and what becomes of them.

Promises: a group is published, failed or discarded only under its valid lease: a worker that was given up cannot publish late;
every transition can be repeated.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from bus.client import READ_BLOCK_MS
from bus.codec import CodecError, encode
from bus.ledger_scripts import LedgerScripts, words
from bus.messages import Group, Ticket, Transition
from bus.payloads import PAYLOAD
from bus.ready import describe

WORKERS = "rollout"  # the consumer group of the tickets
ATTEMPTS = 3  # of a group, where the caller names no other number
# A payload that was written and never published (its worker died in between) goes away by itself after so long.
_UNPUBLISHED_S = 3600
_CLAIMS_AT_ONCE = 256  # in one script, which holds up everybody else


class ClaimedTicket(msgspec.Struct, frozen=True):
    """A ticket and the stream entry it came in, whose idle time the lease renews."""

    ticket: Ticket
    entry_id: bytes
    attempt: int = 1


class Publication(NamedTuple):
    """A group that is to be ready; ``when``: seconds since the epoch. ``payload``: its bytes."""

    group: Group
    when: float
    payload: bytes


class Leases(LedgerScripts):
    """The part of the ledger that moves groups between waiting, in flight, ready and dropped."""

    async def next_tickets(
        self, worker: str, lease: str, count: int, lease_ms: int | None, attempts: int = ATTEMPTS
    ) -> list[ClaimedTicket]:
        """Up to ``count`` tickets, claimed under ``lease``: those of workers silent for ``lease_ms``, then new ones.
        None: only new ones.

        A group that had ``attempts`` attempts already is dropped instead (``worker_died``) and on ``dead``.
        """
        key = self.bus.key("tickets")
        entries: list[tuple[bytes, Any]] = []
        if lease_ms is not None:
            reclaimed = await self.bus.redis.xautoclaim(key, WORKERS, worker, lease_ms, start_id="0-0", count=count)
            # entries that 6.2 answers without fields are of tickets that are done with
            entries = [(i, fields) for i, fields in reclaimed[1] if fields]
        if len(entries) < count:
            answer = await self.bus.redis.xreadgroup(
                WORKERS, worker, {key: ">"}, count=count - len(entries), block=None if entries else READ_BLOCK_MS
            )
            entries += answer[0][1] if answer else []
        return await self._claim(entries, lease, attempts)

    async def own_tickets(self, worker: str, lease: str, attempts: int = ATTEMPTS) -> list[ClaimedTicket]:
        """What was delivered to a former life of ``worker`` and is not done, claimed under the new ``lease``.

        Among it tickets that Redis sent to a connection that was dead already: nobody claimed them, and only this or the
        end of the lease brings them back.
        """
        answer = await self.bus.redis.xreadgroup(WORKERS, worker, {self.bus.key("tickets"): "0"})
        entries = [(i, fields) for i, fields in answer[0][1] if fields] if answer else []
        return await self._claim(entries, lease, attempts)

    async def _claim(self, entries: Sequence[tuple[bytes, Any]], lease: str, attempts: int) -> list[ClaimedTicket]:
        tickets = [(i, self.bus.decode("tickets", i, fields, Ticket)) for i, fields in entries]
        over = [i for i, ticket in tickets if ticket is None]  # done with, or never a ticket
        known = [(i, ticket) for i, ticket in tickets if ticket is not None]
        claimed: list[ClaimedTicket] = []
        for start in range(0, len(known), _CLAIMS_AT_ONCE):
            some = known[start : start + _CLAIMS_AT_ONCE]
            pairs = [part for entry_id, ticket in some for part in (ticket.group_id, entry_id)]
            for (entry_id, ticket), attempt in zip(
                some, await self._run("claim", lease, attempts, *pairs), strict=True
            ):
                if attempt > 0:
                    claimed.append(ClaimedTicket(ticket, entry_id, attempt))
                    continue
                over.append(entry_id)
                if attempt < 0:
                    self.bus.refuse("tickets", entry_id, CodecError(f"it is not the ticket of {ticket.group_id}"))
        if over:
            await self.bus.redis.xack(self.bus.key("tickets"), WORKERS, *over)
            await self.bus.remove("tickets", over)
        return claimed

    async def begin_last(self, group_id: str, lease: str) -> bool:
        """The last of several attempts counts from now on, not from its claim. False: the lease is not valid any more."""
        return bool(await self._run("begin", group_id, lease))

    async def renew(self, worker: str, entries: Sequence[bytes]) -> None:
        """The lease goes on: reset the idle time of ``entries``."""
        if entries:
            await self.bus.redis.xclaim(self.bus.key("tickets"), WORKERS, worker, 0, list(entries), justid=True)

    async def publish(self, group: Group, lease: str, when: float, payload: bytes | None = None) -> bool:
        """Make ``group`` ready. False: the lease is not valid any more, and nothing was published.

        ``payload``: the bytes of the group, of who has encoded it already.
        """
        (done,) = await self.publish_all([Publication(group, when, payload or encode(group))], lease)
        return done

    async def publish_all(self, publications: Sequence[Publication], lease: str) -> list[bool]:
        """As :meth:`publish`, of several groups of one lease at once."""
        puts: list[tuple[Any, ...]] = []
        flat: list[list[Any]] = []
        for group, when, payload in publications:
            key = self.bus.key(f"{PAYLOAD}:{group.group_id}:{lease}")
            # payloads stay outside Lua, which would copy them several times; they are lasting once they are published
            puts.append(("SET", key, await self.store.put(key, payload), "EX", _UNPUBLISHED_S, "NX"))
            news = describe(group, key, when)
            record = Transition(kind="published", group_ids=(group.group_id,), by=lease, group=news)
            flat.append([group.group_id, key, encode(news), encode(record)])
        for put in puts:
            self.bus.redis.ahead(*put)
        done = [int(one) for one in await self._run("publish", lease, *itertools.chain(*flat))]
        for i, put in enumerate(puts):
            if done[i] < 0:  # it was lost, or there was no room for it
                await self.bus.redis.execute_command(*put)
                done[i] = int((await self._run("publish", lease, *flat[i]))[0])
        return [one > 0 for one in done]

    async def fail(
        self,
        group_id: str,
        lease: str,
        reason: str,
        detail: str = "",
        *,
        attempts: int = ATTEMPTS,
        lengths: Sequence[int] = (),
    ) -> Literal["again", "dropped", "void"]:
        """This attempt came to nothing: the group waits again, or is dropped if it has had its ``attempts``.

        ``lengths``: response tokens of its samples, where they were generated. "void": the lease is not valid any more.
        """
        sizes = msgspec.msgpack.encode(list(lengths))
        done = await self._run("fail", group_id, lease, reason, words(detail), attempts, sizes)
        return ("void", "again", "dropped")[int(done)]

    async def discard(
        self,
        group_id: str,
        lease: str,
        reason: str,
        detail: str = "",
        *,
        lengths: Sequence[int] = (),
        again: bool = False,
    ) -> bool:
        """What is generated is of no use (a filter refuses it, it is too old): the group is dropped for ``reason``, and another
        one may begin.

        ``lengths``: response tokens of its samples. ``again``: as of :meth:`drop`. False: the lease is not valid any more.
        """
        sizes = msgspec.msgpack.encode(list(lengths))
        said, next_id = _farewell(group_id, detail, again=again)
        return bool(await self._run("discard", group_id, lease, reason, said, sizes, next_id))

    async def held(self, group_ids: Sequence[str], lease: str) -> set[str]:
        """Which of ``group_ids`` are in flight under ``lease``."""
        if not group_ids:
            return set()
        holders = await self.bus.redis.hmget(self.bus.key("l:lease"), list(group_ids))
        return {group_id for group_id, holder in zip(group_ids, holders, strict=True) if holder == lease.encode()}

    async def release(self, lease: str = "", why: str = "") -> int:
        """In-flight groups of ``lease`` (all of them where it is empty) wait again. Returns how many.

        ``why``: what ended these attempts; empty where the worker hands them back, which is not counted as an attempt.
        """
        return int(await self._run("release", lease, why))

    async def drop(self, group_id: str, reason: str, detail: str = "", *, again: bool = False) -> bool:
        """The group will not be trained. ``again``: its prompt is to be dealt again, as the next attempt at it.

        False: the group is batched, trained or dropped already.
        """
        return bool(await self._run("drop", group_id, reason, *_farewell(group_id, detail, again=again)))


def next_attempt(group_id: str) -> str:
    """The id of the group that is made of the same prompt after it."""
    head, _, attempt = group_id.rpartition("-")
    return f"{head}-{int(attempt) + 1}"


def _farewell(group_id: str, detail: str, *, again: bool) -> tuple[str, str]:
    """In what words a group leaves undone, and as which one its prompt is dealt again; "": as none."""
    if not again:
        return words(detail), ""
    next_id = next_attempt(group_id)
    return words(f"{detail}; to be made again as {next_id}"), next_id
