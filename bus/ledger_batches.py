"""What the learner asks of the ledger: which groups are ready, the record of each step, and what is trained for good.

Promises: ``batch`` records a step's groups before the step trains on them, and a step has one record, for ever; payloads leave
only when ``commit`` says that the checkpoints contain their step which a learner may have to go back to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from bus.client import READ_BLOCK_MS
from bus.codec import CodecError, decode, encode
from bus.errors import LedgerError
from bus.ledger_scripts import LedgerScripts
from bus.messages import Batch, Group, ReadyGroup
from bus.payloads import PAYLOAD, OnRecord


class Batches(LedgerScripts):
    """The part of the ledger that moves groups from ready to batched and trained."""

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

    async def batch(
        self,
        step: int,
        groups: Sequence[ReadyGroup],
        *,
        surplus: int = 0,
        max_lag: int = -1,
        masked_tokens: int = -1,
        ticks: bool = True,
    ) -> Batch:
        """Record that ``step`` trains on ``groups``, and return the record: an earlier one if there is one.

        ``max_lag``: the bound that they were chosen under, which holds for them also when the step is trained again.
        ``masked_tokens``: how many tokens beyond it are to be masked; -1: none may be. ``ticks``: false where the step is to be
        extended before its weights change.
        With the record, the ``surplus`` open groups that were dealt first of the others are dropped as "surplus".
        Raises LedgerError: ``step`` is not the next, or a group is not ready.
        """
        record = Batch(
            step=step,
            group_ids=tuple(g.group_id for g in groups),
            payload_keys=tuple(g.payload_key for g in groups),
            max_lag=max_lag,
            masked_tokens=masked_tokens,
            ticks=ticks,
        )
        done = await self._run("batch", step, encode(record), surplus, *record.group_ids)
        if done == 1:
            return record
        earlier = await self.recorded_batch(step) if done == 2 else None
        if earlier is None:
            raise LedgerError(f"batch of step {step}: it is not the next step, or one of its groups is not ready")
        return earlier

    async def extend(
        self, record: Batch, groups: Sequence[ReadyGroup], *, masked_tokens: int = -1, ticks: bool = True
    ) -> Batch:
        """Record that the last step, whose record so far is ``record``, trains on ``groups`` as well, and return the record
        with them: another one if the step was extended otherwise.

        Raises LedgerError: it is not the last step, its weights have changed, a group is not ready, or the ledger, which
        lost its end, does not have all of ``record``.
        """
        if record.ticks:
            raise LedgerError(f"step {record.step} cannot be extended: its weights change with what it has")
        extended = replace(
            record,
            group_ids=(*record.group_ids, *(g.group_id for g in groups)),
            payload_keys=(*record.payload_keys, *(g.payload_key for g in groups)),
            masked_tokens=masked_tokens if record.masked_tokens < 0 else record.masked_tokens + max(masked_tokens, 0),
            parts=(*sizes_of(record), len(groups)),
            ticks=ticks,
        )
        ids = [group.group_id for group in groups]
        done = await self._run("extend", record.step, len(record.group_ids), encode(extended), *ids)
        if done == 1:
            return extended
        earlier = await self.recorded_batch(record.step) if done == 2 else None
        if earlier is None or len(earlier.group_ids) < len(record.group_ids):
            raise LedgerError(
                f"step {record.step} cannot be extended: it is not the last, or one of its groups is not ready, or the ledger "
                "lost its end, and groups of the step with it"
            )
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
        values = await self.store.get(await self.bus.redis.mget(list(keys)) if keys else [])
        for key, value in zip(keys, values, strict=True):
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
        trained = int(await self._run("commit", step, step if forget is None else forget))
        await self.store.sweep(self._on_record)
        return trained

    async def _on_record(self, keys: Sequence[str]) -> list[OnRecord]:
        """Of the payloads under ``keys``; what is no payload's key of this run may always be on its way."""
        ours = self.bus.key(f"{PAYLOAD}:")
        parts = [key.removeprefix(ours).partition(":") if key.startswith(ours) else ("", "", "") for key in keys]
        holders = await self.bus.redis.hmget(self.bus.key("l:lease"), [group_id for group_id, _, _ in parts])
        # after the leases: whoever had none then publishes nothing under such a key
        values = await self.bus.redis.mget(list(keys))
        return [
            OnRecord(not lease or holder == lease.encode(), value)
            for (_, _, lease), holder, value in zip(parts, holders, values, strict=True)
        ]

    async def begin_behind(self, step: int) -> None:
        """An empty ledger begins behind ``step``, which another run has trained. Of one that has steps of its own: nothing."""
        if step:
            await self._run("reconcile", step)

    async def reconcile(self, step: int, trained: Mapping[int, Sequence[str]]) -> int:
        """Bring a ledger that lost its end (a power cut under ``appendfsync everysec``) up to a durable checkpoint.

        What is trained is a prompt: of one that was dealt again, no other attempt stays open or is dealt any more.

        ``trained``: the group ids of each of the last steps that the checkpoint of ``step`` contains. Returns how many
        groups this ledger learnt to be trained. Raises LedgerError: a step it lost is not in ``trained``.
        """
        last, _ = await self.steps()
        record = await self.recorded_batch(last) if last <= step else None
        # of a step whose weights are held in the ledger, and not in the checkpoint, the last parts are lost
        held = record is not None and not record.ticks
        lost_steps = range(last if held else last + 1, step + 1)
        if unknown := [s for s in lost_steps if s not in trained]:
            raise LedgerError(
                f"the ledger ends at step {last}, the checkpoint is of step {step} and does not name the groups of {unknown[0]}"
            )
        await self.commit(min(last, step), forget=lost_steps.start - 1 if lost_steps else 0)
        known = set(record.group_ids) if record is not None else set[str]()
        ids = [group_id for s in lost_steps for group_id in trained[s] if group_id not in known]
        return int(await self._run("reconcile", step, *ids)) if lost_steps else 0


def sizes_of(record: Batch) -> tuple[int, ...]:
    """How many groups each part of the step has."""
    return record.parts or (len(record.group_ids),)


def part_of(record: Batch, index: int) -> Batch:
    """The part ``index`` of the step, as if it were all of it."""
    sizes = sizes_of(record)
    start = sum(sizes[:index])
    place = slice(start, start + sizes[index])
    return replace(record, group_ids=record.group_ids[place], payload_keys=record.payload_keys[place], parts=())
