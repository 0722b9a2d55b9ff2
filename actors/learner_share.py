"""A learner rank's share of a recorded batch: the groups of it that can be trained.

    record of the step ──► payloads ──► sound? ──yes──► the step
                                          └──no──► quarantined, on record before the step trains

Promises: what the learner cannot train, or the user's batch function fails for, costs its group, not the run; the record is
written before any rank trains, and whoever trains the step again leaves out the same groups; a batch is held against the bound
that it was chosen under, whatever the bound is now; a run with more quarantined groups than ``learner.max_quarantined_groups``
ends with the cause of the last one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from actors.runtime.context import ActorContext
from bus import Ledger, LedgerError
from bus.codec import TOKENS, CodecError, unpack
from bus.messages import Batch, Group, ReadyGroup
from bus.quarantine import Quarantine
from miles_async.config.optimizer_steps import balanced, even, share, steps_of_pass
from miles_async.groups.aged import without_older
from miles_async.groups.limits import group_limits
from miles_async.groups.sound import Limits, UnsoundGroup, check_group, check_groups
from miles_async.train.batch import BatchRefused
from miles_async.train.checked_batch import UnusableGroups
from miles_async.train.ranks import Ranks

Step = Callable[[list[Group]], Awaitable[dict[str, float]]]

UNUSABLE = "batch_function"  # the reason of a group that the user's batch function fails for
LOST = "invalid_payload"  # the reason of a group whose payload is gone, damaged, or another group's


class QuarantineError(ValueError):
    """Too many recorded groups cannot be trained; a restart would not change that."""


class LearnerShare:
    """The share of one rank."""

    def __init__(self, ctx: ActorContext, ledger: Ledger, ranks: Ranks) -> None:
        self._ledger, self._quarantine = ledger, Quarantine(ledger)
        self._dp_rank, self._dp_size = ranks.dp_rank, ranks.dp_size
        self._steps = steps_of_pass(ctx.config)
        self._limits, self._model_path = group_limits(ctx.config, ctx.model_path), ctx.model_path
        self._bound = ctx.config.staleness.max_lag
        self._balances = ctx.config.learner.balance_data and self._dp_size > 1
        self._batch_function = ctx.config.learner.batch_function
        self._most = ctx.config.learner.max_quarantined_groups
        self.sizes: list[int] = []  # how many groups of each mini-batch were taken last

    def arranged(self, groups: list[ReadyGroup]) -> list[ReadyGroup]:
        """The groups of a batch that is to be recorded, in an order in which the ranks' shares have about as many tokens."""
        if not self._balances:
            return groups
        order = balanced([group.n_tokens for group in groups], self._dp_size, self._steps)
        return [groups[place] for place in order]

    def max_lag(self, batch: Batch) -> int:
        """The bound that the batch was chosen under; this run's, where that was not put on record yet."""
        return self._bound if batch.max_lag < 0 else batch.max_lag

    async def take(self, batch: Batch) -> list[Group]:
        """The groups of this rank's share that can be trained, in order; the others are quarantined.

        Raises QuarantineError: there are too many of those in this run.
        """
        known = await self._quarantine.of(batch.group_ids)
        mine = share(range(len(batch.group_ids)), self._dp_rank, self._dp_size, self._steps)
        keys = {batch.group_ids[place]: batch.payload_keys[place] for place in mine}
        wanted = [group_id for group_id in keys if group_id not in known]
        found = await self._ledger.payloads_or_causes([keys[group_id] for group_id in wanted])
        masks, bound = batch.masked_tokens >= 0, self.max_lag(batch)
        limits = replace(self._limits, newest_version=batch.step - 1, max_lag=None if masks else bound)
        groups: list[Group] = []
        in_steps = even(len(mine), self._steps)
        step_of = dict(zip(keys, (step for step, size in enumerate(in_steps) for _ in range(size)), strict=True))
        self.sizes = [0] * self._steps
        for group_id, group, verdict in zip(wanted, found, _judged(wanted, found, limits), strict=True):
            if isinstance(verdict, UnsoundGroup):
                await self._take_out(batch.step, group_id, verdict, group)
            else:
                groups.append(without_older(verdict, batch.step - 1 - bound) if masks else verdict)
                self.sizes[step_of[group_id]] += 1
        return groups

    async def train(self, batch: Batch, step: Step) -> dict[str, float]:
        """What ``step`` gives for this rank's share. Where the user's batch function fails for some groups of any rank, these
        are quarantined, and the step is made without them. Raises what ``step`` does, QuarantineError."""
        for _ in batch.group_ids:
            groups = await self.take(batch)
            try:
                return await step(groups)
            except UnusableGroups as error:
                by_id = {group.group_id: group for group in groups}
                for group_id, cause in error.causes.items():
                    unsound = UnsoundGroup(UNUSABLE, group_id, f": {cause}")
                    await self._take_out(batch.step, group_id, unsound, by_id[group_id])
            except BatchRefused:  # another rank's: it leaves out what it must
                if self._batch_function is None:
                    raise
        return await step(await self.take(batch))

    async def _take_out(self, step: int, group_id: str, error: UnsoundGroup, group: Group | LedgerError) -> None:
        readable = group if isinstance(group, Group) else None
        text = "" if readable is None else await asyncio.to_thread(_prompt, readable, self._model_path)
        total = await self._quarantine.put(step, group_id, error.reason, str(error), readable, text)
        if total > self._most:
            raise QuarantineError(
                f"{total} recorded groups could not be trained, more than learner.max_quarantined_groups = {self._most}; "
                f"the last one, of step {step}: {error.reason}: {error}"
            )

    async def trained(self, batch: Batch) -> tuple[str, ...]:
        """The groups of ``batch`` that its step trained on, on any rank. To be asked once it is trained."""
        out = await self._quarantine.of(batch.group_ids)
        return tuple(group_id for group_id in batch.group_ids if group_id not in out)


def _prompt(group: Group, model_path: str) -> str:
    """The text of its prompt, for whoever looks at the dead letters; empty where that cannot be had."""
    from miles_async.text.tokenizer import Tokenizer, TokenizerError  # a learner seldom needs one

    try:
        tokens = unpack(group.prompt_tokens, TOKENS).tolist()
        return Tokenizer(model_path).decode(tokens, skip_special_tokens=False)
    except (TokenizerError, CodecError, OverflowError):  # ids below 0
        return ""


def _judged(
    group_ids: Sequence[str], found: Sequence[Group | LedgerError], limits: Limits
) -> list[Group | UnsoundGroup]:
    """Each group, or why it cannot be trained: all in one pass, and one by one only where that finds something."""
    try:
        groups = [_readable(*pair) for pair in zip(group_ids, found, strict=True)]
        check_groups(groups, limits)
    except UnsoundGroup:
        return [_verdict(*pair, limits) for pair in zip(group_ids, found, strict=True)]
    return [*groups]


def _verdict(group_id: str, found: Group | LedgerError, limits: Limits) -> Group | UnsoundGroup:
    try:
        group = _readable(group_id, found)
        check_group(group, limits)
    except UnsoundGroup as error:
        return error
    return group


def _readable(group_id: str, found: Group | LedgerError) -> Group:
    if isinstance(found, LedgerError):
        raise UnsoundGroup(LOST, group_id, f": {found}")
    if found.group_id != group_id:
        raise UnsoundGroup(LOST, group_id, f": its payload is that of group {found.group_id:.100}")
    return found
