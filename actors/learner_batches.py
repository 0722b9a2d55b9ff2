"""Which groups a step trains on: rank 0 decides and records them, the others follow; what is on record is followed by all.

Promises: a batch is recorded before it is given; no group is chosen that the policy or the user's filter refuses, and what they
evict is dropped on record; of a step whose weights are held (``staleness.policy = "elastic"``) each further part is recorded as
the first was; when the learner is to stop, every rank hears that there is no such batch; nobody waits for groups of a ledger
that has lost what is trained; where batches are another run's (``replay.run``), nobody decides.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from actors.runtime.context import ActorContext
from bus import Ledger, LedgerError
from bus.client import READ_BLOCK_MS, Topic
from bus.ledger_batches import sizes_of
from bus.messages import Batch, Control, ReadyGroup
from miles_async.filters.apply import BufferFilter
from miles_async.staleness.choice import make_policy
from miles_async.staleness.floors import Floors
from miles_async.staleness.policies import bound_of, too_old

ASKED_S = 0.5  # how soon rank 0 hears that its weights are to be written again

Arrange = Callable[[list[ReadyGroup]], list[ReadyGroup]]


class LearnerBatches:
    """Of one rank. ``arranged``: the order in which a batch is recorded. While one is waited for, ``check`` is called again and
    again, which may raise, and now and then ``asked`` on the rank that decides."""

    def __init__(
        self,
        ctx: ActorContext,
        ledger: Ledger,
        arranged: Arrange,
        check: Callable[[], None],
        asked: Callable[[], Awaitable[None]],
    ) -> None:
        self._ctx, self._ledger, self._arranged, self._check, self._asked = ctx, ledger, arranged, check, asked
        self._decides = ctx.index == 0 and ctx.config.replay.run is None
        self._policy, self._buffer_filter = make_policy(ctx.config), BufferFilter(ctx.config)
        self._bound, self._size = bound_of(self._policy), ctx.config.rollout.rollout_batch_size
        self._ready: dict[str, ReadyGroup] = {}
        self._samples_cursor = self._control_cursor = "0"
        self._batches_cursor: dict[Topic, str] = {"batches": "0"}
        self._floors = Floors()

    async def next(self, version: int) -> Batch | None:
        """The record of the step behind ``version``: an earlier one, or a new one. None: stop here."""
        step = version + 1
        self._check()
        if (recorded := await self._ledger.recorded_batch(step)) is not None:
            return recorded
        if not self._decides:
            return await self._follow(step, 1)
        if (groups := await self._choose(version, version)) is None:
            await self._say_stop(step)
            return None
        surplus, masked, ticks = self._policy.surplus, self._masked(groups, version), self._ticks(groups, version, 1)
        return await self._ledger.batch(
            step, groups, surplus=surplus, max_lag=self._bound, masked_tokens=masked, ticks=ticks
        )

    async def more(self, record: Batch) -> Batch | None:
        """The record of a step whose weights are held, with a further part. None: stop here."""
        version, batches = record.step - 1, len(sizes_of(record)) + 1
        if not self._decides:
            return await self._follow(record.step, batches)
        if (groups := await self._choose(version, record.step)) is None:
            await self._say_stop(record.step)
            return None
        masked, ticks = self._masked(groups, version), self._ticks(groups, version, batches)
        return await self._ledger.extend(record, groups, masked_tokens=masked, ticks=ticks)

    # deciding

    async def _choose(self, version: int, last_step: int) -> list[ReadyGroup] | None:
        """The groups of the next batch, behind what is on record. None: stop here. Raises LedgerError: ``last_step`` is not."""
        looked, seen = 0.0, -1
        order: dict[str, None] = {}  # the open groups, as they were when so many others were not
        left = set[str]()  # what was evicted since the last batch
        while not self._ctx.stop.is_set():
            self._check()
            if (now_s := time.monotonic()) >= looked + ASKED_S:  # not at each group that is ready
                looked = now_s
                await self._asked()
            groups, self._samples_cursor = await self._ledger.ready_groups(self._samples_cursor)
            self._ready.update((group.group_id, group) for group in groups)
            closed = await self._ledger.closed()
            if closed != seen or not self._ready.keys() <= order.keys():  # they are many, and the same at most looks
                now, seen = await self._ledger.open_groups(), closed
                if now.last_step < last_step:
                    raise LedgerError(
                        f"the ledger ends at step {now.last_step}: it lost step {last_step}, which is trained"
                    )
                if self._policy.holds:
                    self._floors.look(now.order, now.states, await self._serving(version))
                order = dict.fromkeys(now.order)
                is_ready = {g for g, state in zip(now.order, now.states, strict=True) if state == "r"}
                if left & is_ready:  # Redis came back without its end, and their news has been read
                    self._samples_cursor, left = "0", set()
                self._ready = {g: group for g, group in self._ready.items() if g in is_ready}  # in order of publication
            evicted = await self._evict(version)
            if evicted:
                left, seen = left | evicted, -1  # looked for once more
            open_order = [g for g in order if g not in evicted]
            chosen = self._policy.select(list(self._ready.values()), open_order, version, self._size)
            if chosen:
                return self._arranged([self._ready[group_id] for group_id in chosen])
        return None

    async def _evict(self, version: int) -> set[str]:
        """Drop what has grown too old (its prompt may be dealt again), and what the user's filter refuses; returns the ids."""
        evicted = set[str]()
        for judge in (self._policy, self._buffer_filter):
            again = judge is self._policy and self._policy.requeues
            for group_id, reason in judge.evict(list(self._ready.values()), version):
                await self._ledger.drop(group_id, reason, f"ready at version {version}", again=again)
                del self._ready[group_id]
                evicted.add(group_id)
        return evicted

    def _masked(self, groups: list[ReadyGroup], version: int) -> int:
        """Tokens beyond the bound; -1: there may be none."""
        return sum(too_old(group, version, self._bound) for group in groups) if self._policy.masks else -1

    def _ticks(self, groups: list[ReadyGroup], version: int, batches: int) -> bool:
        """Whether the weights change with ``groups``, the last of so many batches of the step."""
        if not self._policy.holds or version + 1 >= self._ctx.config.run.num_steps:  # then nothing more is admitted
            return True
        waiting = self._floors.of(self._ready, {group.group_id for group in groups})
        return self._policy.ticks(waiting, version, batches)

    async def _serving(self, version: int) -> int:
        """The lowest version that a serving engine has; the learner's own where none serves now."""
        states = (await self._ctx.engine_states()).values()
        return min((e.version for e in states if e.state in ("serving", "updating")), default=version)

    async def _say_stop(self, step: int) -> None:
        """Tell the other ranks that ``step`` will not be taken."""
        await self._ctx.bus.publish("control", Control(command="learner_stop", roles=("learner",), reason=str(step)))

    # following

    async def _follow(self, step: int, batches: int) -> Batch | None:
        """The record of ``step``, once it has so many batches. None: this rank is the first and is to stop, or the first has
        said that there will be no such record."""
        while not (self._ctx.index == 0 and self._ctx.stop.is_set()):
            self._check()
            recorded = await self._ledger.recorded_batch(step, block_ms=READ_BLOCK_MS)
            if recorded is not None and len(sizes_of(recorded)) >= batches:
                return recorded
            if recorded is not None:
                await self._ctx.bus.wait_for_news(self._batches_cursor)
            controls, self._control_cursor = await self._ctx.bus.read("control", Control, self._control_cursor)
            stops = [c.reason for c in controls if c.command == "learner_stop"]
            if any(_is_step(reason) and int(reason) <= step for reason in stops):
                return None
        await self._say_stop(step)
        return None


def _is_step(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
