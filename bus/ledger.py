"""The ledger: which group is where, at every moment, and the only way to move it.

    admit        claim          publish       batch(step)       commit(step)
   ───────► waiting ──► in flight ──► ready ──────► batched ──────────► trained
               ▲         │     │        │ drop(reason); the surplus of a batch
               └─ fail, ─┘     │        ▼
                  release      └────► dropped ◄─── quarantine(reason) of what is batched and cannot be trained
                      discard(reason)        (so is a group whose last attempt fails, with its causes on "dead")

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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import redis.exceptions

from bus import positions
from bus.client import READ_BLOCK_MS, Bus
from bus.codec import CodecError, decode, encode
from bus.errors import LedgerError
from bus.messages import Batch, DeadLetter, Group, ReadyGroup, Ticket
from bus.ready import describe

_SCRIPTS = Path(__file__).parent / "scripts"
_GROUP = "rollout"
_NAMES = (
    "admit",
    "claim",
    "begin",
    "fail",
    "publish",
    "discard",
    "release",
    "drop",
    "batch",
    "commit",
    "open",
    "reconcile",
    "foreign",
    "quarantine",
)

ATTEMPTS = 3  # of a group, where the caller names no other number
# A payload that was written and never published (its worker died in between) goes away by itself after so long.
_UNPUBLISHED_S = 3600
_DETAIL_CHARS = 400


class OpenGroups(msgspec.Struct, frozen=True):
    """One consistent view of what is open (waiting, in flight or ready)."""

    last_step: int  # batches recorded so far
    next_position: int  # prompts dealt so far
    order: tuple[str, ...]  # ids in the order they were dealt
    states: tuple[str, ...]  # "w", "f" or "r", aligned with ``order``


class ClaimedTicket(msgspec.Struct, frozen=True):
    """A ticket and the stream entry it came in, whose idle time the lease renews."""

    ticket: Ticket
    entry_id: bytes
    attempt: int = 1


def _load(bus: Bus) -> dict[str, Any]:
    prelude = positions.lua() + (_SCRIPTS / "prelude.lua").read_text()
    return {n: bus.redis.register_script(prelude + (_SCRIPTS / f"{n}.lua").read_text()) for n in _NAMES}


class Ledger:
    """The ledger of one run; any process may hold one."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self._scripts = _load(bus)

    async def _run(self, script: str, *args: Any) -> Any:
        """The answer of one of the ledger's scripts. Raises LedgerError."""
        try:
            return await self._scripts[script](keys=[self.bus.prefix], args=args)
        except redis.exceptions.ResponseError as error:
            raise LedgerError(f"{script}: {error}") from None

    async def prepare(self) -> None:
        """Create the consumer group of the rollout workers. Can be repeated."""
        try:
            await self.bus.redis.xgroup_create(self.bus.key("tickets"), _GROUP, id="0", mkstream=True)
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

    async def open_groups(self) -> OpenGroups:
        last_step, next_position, order, states = await self._run("open")
        return OpenGroups(
            int(last_step),
            int(next_position),
            tuple(gid.decode() for gid in order),
            tuple(state.decode() for state in states),
        )

    # rollout workers

    async def next_tickets(
        self, worker: str, lease: str, count: int, lease_ms: int, attempts: int = ATTEMPTS
    ) -> list[ClaimedTicket]:
        """Up to ``count`` tickets, claimed under ``lease``: those of workers silent for ``lease_ms``, then new ones.

        A group that had ``attempts`` attempts already is dropped instead (``worker_died``) and on ``dead``.
        """
        key = self.bus.key("tickets")
        # entries that 6.2 answers without fields are of tickets that are done with
        reclaimed = await self.bus.redis.xautoclaim(key, _GROUP, worker, lease_ms, start_id="0-0", count=count)
        entries = [(i, fields) for i, fields in reclaimed[1] if fields]
        if len(entries) < count:
            answer = await self.bus.redis.xreadgroup(
                _GROUP, worker, {key: ">"}, count=count - len(entries), block=None if entries else READ_BLOCK_MS
            )
            entries += answer[0][1] if answer else []
        return await self._claim(entries, lease, attempts)

    async def own_tickets(self, worker: str, lease: str, attempts: int = ATTEMPTS) -> list[ClaimedTicket]:
        """What was delivered to a former life of ``worker`` and is not done, claimed under the new ``lease``.

        Among it tickets that Redis sent to a connection that was dead already: nobody claimed them, and only this or the
        end of the lease brings them back.
        """
        answer = await self.bus.redis.xreadgroup(_GROUP, worker, {self.bus.key("tickets"): "0"})
        entries = [(i, fields) for i, fields in answer[0][1] if fields] if answer else []
        return await self._claim(entries, lease, attempts)

    async def _claim(self, entries: Sequence[tuple[bytes, Any]], lease: str, attempts: int) -> list[ClaimedTicket]:
        claimed: list[ClaimedTicket] = []
        over: list[bytes] = []  # done with, or never a ticket
        for entry_id, fields in entries:
            ticket = self.bus.decode("tickets", entry_id, fields, Ticket)
            attempt = 0
            if ticket is not None:
                attempt = int(await self._run("claim", ticket.group_id, lease, attempts, entry_id))
                if attempt < 0:
                    self.bus.refuse("tickets", entry_id, CodecError(f"it is not the ticket of {ticket.group_id}"))
            if ticket is not None and attempt > 0:
                claimed.append(ClaimedTicket(ticket, entry_id, attempt))
            else:
                over.append(entry_id)
        if over:
            await self.bus.redis.xack(self.bus.key("tickets"), _GROUP, *over)
            await self.bus.remove("tickets", over)
        return claimed

    async def begin_last(self, group_id: str, lease: str) -> bool:
        """The last of several attempts counts from now on, not from its claim. False: the lease is not valid any more."""
        return bool(await self._run("begin", group_id, lease))

    async def renew(self, worker: str, entries: Sequence[bytes]) -> None:
        """The lease goes on: reset the idle time of ``entries``."""
        if entries:
            await self.bus.redis.xclaim(self.bus.key("tickets"), _GROUP, worker, 0, list(entries), justid=True)

    async def publish(self, group: Group, lease: str, when: float, payload: bytes | None = None) -> bool:
        """Make ``group`` ready. False: the lease is not valid any more, and nothing was published.

        ``payload``: the bytes of the group, of who has encoded it already.
        """
        payload_key = self.bus.key(f"payload:{group.group_id}:{lease}")
        ready = describe(group, payload_key, when)
        # the payload stays outside Lua, which would copy it several times; it is lasting once it is published
        await self.bus.redis.set(payload_key, payload or encode(group), ex=_UNPUBLISHED_S, nx=True)
        return bool(await self._run("publish", group.group_id, lease, payload_key, encode(ready)))

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
        self, group_id: str, lease: str, reason: str, detail: str = "", *, lengths: Sequence[int] = ()
    ) -> bool:
        """A filter refuses what was generated: the group is dropped for ``reason``, and another one may begin.

        ``lengths``: response tokens of its samples. False: the lease is not valid any more.
        """
        sizes = msgspec.msgpack.encode(list(lengths))
        return bool(await self._run("discard", group_id, lease, reason, words(detail), sizes))

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

    async def drop(self, group_id: str, reason: str, detail: str = "") -> bool:
        """The group will not be trained. False: it is batched, trained or dropped already."""
        return bool(await self._run("drop", group_id, reason, words(detail)))

    # the learner

    async def ready_groups(self, last_id: str, *, block_ms: int = READ_BLOCK_MS) -> tuple[list[ReadyGroup], str]:
        """Groups published after ``last_id`` ("0" for all that no commit has removed) and the id to go on from."""
        entries, last_id = await self.bus.read_entries("samples", ReadyGroup, last_id, block_ms=block_ms)
        if not entries:
            return [], last_id
        pairs = [part for entry in entries for part in (entry.message.group_id, entry.id)]
        foreign = {int(index) for index in await self._run("foreign", *pairs)}
        for index in foreign:
            why = f"the ledger has not published {entries[index].message.group_id} with it"
            self.bus.refuse("samples", entries[index].id, CodecError(why))
        await self.bus.remove("samples", [entries[index].id for index in foreign])
        return [entry.message for index, entry in enumerate(entries) if index not in foreign], last_id

    async def batch(self, step: int, groups: Sequence[ReadyGroup], *, surplus: int = 0, max_lag: int = -1) -> Batch:
        """Record that ``step`` trains on ``groups``, and return the record: an earlier one if there is one.

        ``max_lag``: the bound that they were chosen under, which holds for them also when the step is trained again.
        With the record, the ``surplus`` open groups that were dealt first of the others are dropped as "surplus".
        Raises LedgerError: ``step`` is not the next, or a group is not ready.
        """
        record = Batch(
            step=step,
            group_ids=tuple(g.group_id for g in groups),
            payload_keys=tuple(g.payload_key for g in groups),
            max_lag=max_lag,
        )
        done = await self._run("batch", step, encode(record), surplus, *record.group_ids)
        if done == 1:
            return record
        earlier = await self.recorded_batch(step) if done == 2 else None
        if earlier is None:
            raise LedgerError(f"batch of step {step}: it is not the next step, or one of its groups is not ready")
        return earlier

    async def recorded_batch(self, step: int, *, block_ms: int = 0) -> Batch | None:
        """The record of ``step``, waiting up to ``block_ms`` for it; None if there is none (yet), or it is forgotten."""
        cursor = await self.bus.last_id("batches") if block_ms else "0"  # first, so that no news falls in between
        record = await self.bus.redis.hget(self.bus.key("l:batch"), step)
        if record is None and block_ms:
            await self.bus.wait_for_news({"batches": cursor}, block_ms=block_ms)
            record = await self.bus.redis.hget(self.bus.key("l:batch"), step)
        return None if record is None else decode(record, Batch)

    async def payloads(self, keys: Sequence[str]) -> list[Group]:
        """The published groups behind ``keys``. Raises LedgerError naming one that is missing or damaged."""
        found = await self.payloads_or_causes(keys)
        for group in found:
            if isinstance(group, LedgerError):
                raise group
        return [group for group in found if isinstance(group, Group)]

    async def payloads_or_causes(self, keys: Sequence[str]) -> list[Group | LedgerError]:
        """The same, with the error in the place of a group that is missing or damaged."""
        found: list[Group | LedgerError] = []
        for key, value in zip(keys, await self.bus.redis.mget(list(keys)) if keys else [], strict=True):
            try:
                found.append(LedgerError(f"the payload {key} is missing") if value is None else decode(value, Group))
            except CodecError as error:
                found.append(LedgerError(f"the payload {key} is damaged: {error}"))
        return found

    async def commit(self, step: int, *, forget: int | None = None) -> int:
        """A durable checkpoint contains ``step``. Returns how many groups are trained by it. Can be repeated.

        ``forget``: the records and payloads of the steps up to this one leave, None: of all up to ``step``; what stays can be
        trained again by a learner that has to go back to an older checkpoint.
        """
        return int(await self._run("commit", step, step if forget is None else forget))

    async def reconcile(self, step: int, trained: Mapping[int, Sequence[str]]) -> int:
        """Bring a ledger that lost its end (a power cut under ``appendfsync everysec``) up to a durable checkpoint.

        ``trained``: the group ids of each of the last steps that the checkpoint of ``step`` contains. Returns how many
        groups this ledger learnt to be trained. Raises LedgerError: a step it lost is not in ``trained``.
        """
        last, _ = await self.steps()
        lost_steps = range(last + 1, step + 1)
        if unknown := [s for s in lost_steps if s not in trained]:
            raise LedgerError(
                f"the ledger ends at step {last}, the checkpoint is of step {step} and does not name the groups of {unknown[0]}"
            )
        known = min(last, step)
        await self.commit(known, forget=known if lost_steps else 0)
        ids = [group_id for s in lost_steps for group_id in trained[s]]
        return int(await self._run("reconcile", step, *ids)) if lost_steps else 0

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

    async def steps(self) -> tuple[int, int]:
        """The last step that has a batch, and the last one that is committed."""
        last, committed = await self.bus.redis.hmget(self.bus.key("l:meta"), "last_step", "committed_step")
        return int(last or 0), int(committed or 0)

    async def forgotten(self) -> int:
        """The last step that cannot be trained again: a learner needs a checkpoint that contains it."""
        fields = await self.bus.redis.hmget(self.bus.key("l:meta"), "forgotten_step", "committed_step")
        return int(next((value for value in fields if value is not None), 0))


def words(text: str) -> str:
    """What goes on record of it: some of it, and only what is UTF-8."""
    return text[:_DETAIL_CHARS].encode("utf-8", "backslashreplace").decode()


def balanced(counts: dict[str, int]) -> bool:
    """Whether invariant 1 holds in ``counts``."""
    places = ("waiting", "in_flight", "ready", "batched", "trained", "dropped")
    return counts["dealt"] == sum(counts[place] for place in places)
