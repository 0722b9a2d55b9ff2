"""The replayer: gives the learner the batches of another run's record, in the place of dealer, rollout workers and engines.

    record of a run ──► admit, claim, publish, batch(step) ──► the learner trains them as it trains after a restart

Consumes: the record of ``replay.run``. Publishes: its groups and batches, on the ledger of this run.

Keeps: every batch has the groups that it had, in their order, as they were published, under the bound that it had (so with an
unchanged configuration each loss is the same to the bit); a group whose payload the learner had found gone is gone again; it is
no further ahead of the newest checkpoint than a running run would be; a replayer that died goes on where the ledger is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path

from actors.runtime.context import ActorContext, wait_for
from bus import Ledger
from bus.codec import decode
from bus.ledger_batches import sizes_of
from bus.ledger_leases import Publication
from bus.messages import Group, ReadyGroup, Ticket
from bus.topics import Topic
from bus.waits import WaitKind
from miles_async.recording import manifest
from miles_async.recording.reader import RecordedRun
from miles_async.recording.steps import RecordedStep
from miles_async.runs.payloads import payload_store
from miles_async.staleness.choice import make_policy
from miles_async.staleness.policies import bound_of, too_old

AHEAD = 8  # steps, beyond those between two checkpoints
MEMORY_SHARE = 0.8  # of what Redis may use, as for a dealer
AT_ONCE = 32  # groups in a claim or a publication


class Replayer:
    """In the dealer's role. Raises RecordError: the record is damaged, or another model's."""

    role = "dealer"

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx, self.ledger = ctx, Ledger(ctx.bus, payload_store(ctx.config, ctx.bus.run_id))
        self.lease = f"{ctx.name}/{ctx.incarnation}"
        self.first, self.last = ctx.config.replay.from_step + 1, ctx.config.run.num_steps
        self.cursor, self.ready = "0", dict[str, ReadyGroup]()

    async def run(self) -> None:
        config = self.ctx.config
        assert config.replay.run is not None
        run, model = Path(config.replay.run), Path(self.ctx.model_path)
        await asyncio.to_thread(manifest.check_model, run, config.model.hf_checkpoint, config.run.seed, model)
        self.record = await asyncio.to_thread(RecordedRun, run)
        self.record.check(self.first, self.last)
        await self.ledger.prepare()
        await self.ledger.begin_behind(config.replay.from_step)
        await self.ledger.release()  # of an earlier life
        done, _ = await self.ledger.steps()
        begun = await self.ledger.recorded_batch(done)
        first = done if begun is not None and not begun.ticks else done + 1  # an earlier life did not end it
        for step in range(first, self.last + 1):
            if not await self._may_go_on(step):
                return
            await self._offer(step, self.record.steps[step])
        await self.ctx.stop.wait()

    async def _may_go_on(self, step: int) -> bool:
        """Wait until the learner has left room for ``step``; False: it is to stop."""
        ahead = self.ctx.config.checkpoint.save_interval + AHEAD
        # looked up first, so that no commit falls in between
        news: dict[Topic, str] = {"events": await self.ctx.bus.last_id("events")}
        with contextlib.ExitStack() as said:
            awaited = -1
            while not self.ctx.stop.is_set():
                _, committed = await self.ledger.steps()
                used, limit = await self.ctx.bus.memory()
                if step <= max(committed, self.first - 1) + ahead and not (limit and used > MEMORY_SHARE * limit):
                    return True
                if committed != awaited:  # else it is one wait, however many looks it takes
                    said.close()
                    said.enter_context(self.ctx.saying(wait_for(WaitKind.STEP, step=committed + 1)))
                    awaited = committed
                await self.ctx.bus.wait_for_news(news)
        return False

    async def _offer(self, step: int, recorded: RecordedStep) -> None:
        """Record ``step`` with its groups; what an earlier life has dealt, published or recorded of it is not done again."""
        record = await self.ledger.recorded_batch(step)
        rest = recorded.groups[len(record.group_ids) if record is not None else 0 :]
        opened = await self.ledger.open_groups()
        new = [group_id for group_id in rest if group_id not in opened.order]
        tickets = [Ticket(group_id=group_id, prompt_tokens=b"", sampling_seed=0) for group_id in new]
        await self.ledger.admit(tickets, limit=len(opened.order) + len(new), position=opened.next_position)
        while not await self._are_ready(rest):
            claimed = await self.ledger.next_tickets(self.ctx.name, self.lease, AT_ONCE, 0)
            groups = [c.ticket.group_id for c in claimed]
            await self.ledger.publish_all([self._publication(group_id, recorded) for group_id in groups], self.lease)
        chosen = [self.ready.pop(group_id) for group_id in rest]
        bound, masks = self._chosen_under(recorded)
        for group in chosen:
            if group.group_id in recorded.lost:
                await self.ctx.bus.redis.delete(group.payload_key)
        for number in range(len(sizes_of(record)) if record is not None else 0, len(recorded.sizes)):
            some, chosen = chosen[: recorded.sizes[number]], chosen[recorded.sizes[number] :]
            masked = sum(too_old(group, step - 1, bound) for group in some) if masks else -1
            ticks = number == len(recorded.sizes) - 1
            if record is None:
                record = await self.ledger.batch(step, some, max_lag=bound, masked_tokens=masked, ticks=ticks)
            else:
                record = await self.ledger.extend(record, some, masked_tokens=masked, ticks=ticks)

    def _chosen_under(self, recorded: RecordedStep) -> tuple[int, bool]:
        """The step's bound, and whether tokens beyond it are masked: another launch of the run may have had others."""
        if recorded.max_lag is not None:
            return recorded.max_lag, recorded.masks
        policy = make_policy(self.ctx.config)
        return bound_of(policy), policy.masks

    async def _are_ready(self, groups: Sequence[str]) -> bool:
        found, self.cursor = await self.ledger.ready_groups(self.cursor, block_ms=1)
        self.ready.update((group.group_id, group) for group in found)
        return all(group_id in self.ready for group_id in groups)

    def _publication(self, group_id: str, recorded: RecordedStep) -> Publication:
        if group_id in recorded.lost:  # whatever it was, it is only to be missed
            empty = Group(group_id=group_id, prompt_tokens=b"", samples=(), worker="", started=0.0, finished=0.0)
            return Publication(empty, 0.0, b"")
        payload = self.record.payload(group_id)
        group = decode(payload, Group)
        return Publication(group, group.finished, payload)
