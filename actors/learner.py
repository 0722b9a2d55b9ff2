"""The learner: turns batches of groups into weight versions. One process for each rank.

Consumes: ready groups (rank 0 decides which), batches (all ranks). Publishes: batches, snapshots, metrics.

    ready groups ──► rank 0: evict the stale, select ──► batch(step) ──► every rank: fetch its share ──► train ──► v + 1
                                                         (write-ahead)   (learner_share.py)              │
                     checkpoint every save_interval steps, then commit(step) ◄──────────────────────────┤
                     snapshot of version v ◄─────────────────────────────────────────────────────────────┘

Keeps: a batch is recorded before it is trained on, and payloads stay until the second newest checkpoint contains their
step, so that a learner that restarts from the newest one, or from the one before it where that is damaged, replays what
follows exactly (invariant 2). No token older than ``max_lag`` is trained, measured against this learner's own version
(invariant 3). It never waits for engines: the broadcaster takes the snapshot.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from actors.learner_checkpoints import choose, of_the_replayed
from actors.learner_offers import Offers
from actors.learner_report import LearnerReport
from actors.learner_saves import LearnerSaves
from actors.learner_share import LearnerShare
from actors.runtime.compute import ComputeThread
from actors.runtime.context import ActorContext, wait_for
from bus import Ledger, LedgerError
from bus.client import READ_BLOCK_MS
from bus.messages import Batch, Control, Group, ReadyGroup
from bus.waits import WaitKind
from miles_async.config.layout import layout_of
from miles_async.evaluation.pins import pin
from miles_async.evaluation.settings import is_due
from miles_async.filters.apply import BufferFilter
from miles_async.runs.payloads import payload_store
from miles_async.staleness.choice import make_policy
from miles_async.staleness.policies import too_old
from miles_async.train import idle_steps
from miles_async.train.backend import BACKENDS, LearnerBackend, check_step, make_backend
from miles_async.train.checkpoint_choice import CheckpointChoice
from miles_async.train.mismatch import warning
from miles_async.train.ranks import Ranks
from miles_async.train.target_reward import REWARD_WINDOW, reached
from miles_async.weights.export import outgoing
from miles_async.weights.place import pins_kept
from miles_async.weights.snapshot import SnapshotError, write_where_there_is_room

# A checkpoint names the groups of the steps since the one before it, and of so many seconds: more than an append-only
# file flushed every second can lose.
RECONCILABLE_S = 30.0
ASKED_S = 0.5  # how soon rank 0 hears that its weights are to be written again


class ResumeError(ValueError):
    """The checkpoint and the ledger do not belong together; a restart would not change that."""


class Learner:
    role = "learner"
    trainer: LearnerBackend

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx, self.config = ctx, ctx.config
        self.ledger = Ledger(ctx.bus, payload_store(ctx.config, ctx.bus.run_id))
        self.offers = Offers(ctx)
        self.policy = make_policy(ctx.config)
        self.buffer_filter = BufferFilter(ctx.config)
        meeting = ctx.spec.site.rendezvous(ctx.run_dir, ctx.incarnation)
        learner = ctx.config.learner
        self.ranks = Ranks(ctx.index, learner.num_ranks, init_method=meeting, layout=layout_of(learner))
        self.rank, self.share = ctx.index, LearnerShare(ctx, self.ledger, self.ranks)
        self.max_lag = ctx.config.staleness.max_lag  # of the batch that is being trained
        self.checkpoints = ctx.run_dir / "checkpoints"
        self.ready: dict[str, ReadyGroup] = {}
        self.samples_cursor = self.control_cursor = "0"
        self.rewards: deque[float] = deque(maxlen=REWARD_WINDOW)
        self.recent: deque[tuple[float, int, tuple[str, ...]]] = deque()  # when, step, group ids
        self.replay_to = 0  # the last step that has a batch when this process began
        self.waited_s = 0.0
        # somebody samples with what is learnt
        self.wanted = ctx.config.rollout.generates or ctx.config.eval.eval_interval is not None
        self.replays = ctx.config.replay.run is not None  # every batch is another run's
        self.wanted &= not self.replays
        self.warned = False
        self.report = LearnerReport(ctx)

    async def run(self) -> None:
        async with ComputeThread("learner-compute") as self.compute, ComputeThread("learner-writer") as writer:
            self.saves = LearnerSaves(self.ctx, self.ledger, self.report, self.compute, writer)
            await self._build()
            await self._offer_snapshot()
            while not self._finished() and (batch := await self._next_batch()) is not None:
                await self._step(batch)
                if self.trainer.version % self.config.checkpoint.save_interval == 0:
                    await self._checkpoint()
            await self.saves.ended()
            if self.trainer.version > self.saves.last:
                await self._checkpoint()
                await self.saves.ended()
            if self.config.checkpoint.save_hf:
                await self.compute(self.trainer.save_hf, self.ctx.run_dir / "hf")
                if self.config.learner.lora_rank:
                    await self.compute(self.trainer.save_adapters, self.ctx.run_dir / "hf_adapters")
            if self.config.critic.critic_save:
                await self.compute(self.trainer.save_critic, self.ctx.run_dir / "hf_critic")
            await self.compute(self.trainer.close)
        if self.rank == 0:
            await self.ctx.event("learner_done", version=self.trainer.version, finished=self._finished())

    async def _build(self) -> None:
        with self.ctx.waiting(WaitKind.MODEL):
            BACKENDS.load(self.config.learner.train_backend)  # its imports belong to the main thread
            self.trainer = await self.compute(make_backend, self.config, self.ctx.model_path, self.ranks)
        chosen = CheckpointChoice()
        if self.checkpoints.is_dir():
            chosen = await choose(self.ctx, self.ledger, self.trainer, self.compute, self.checkpoints)
        own = chosen.path is not None
        if (directory := chosen.path or of_the_replayed(self.config)) is not None:
            extra = await self.compute(partial(self.trainer.load_checkpoint, Path(directory), verified=own))
            if own and (owner := extra.get("run_id")) != self.ctx.spec.run_id:
                raise ResumeError(f"the checkpoint {directory} is of run {owner}, this run is {self.ctx.spec.run_id}")
            self.rewards.extend(extra["rewards"])
            self.recent.extend((when, step, tuple(ids)) for when, step, ids in extra["recent"])
            self.saves.last = self.trainer.version
            if self.rank == 0 and own:
                await self._reconcile()
        if (forgotten := await self.ledger.forgotten()) > self.trainer.version:
            raise ResumeError(
                f"the ledger has forgotten the groups of step {forgotten}, but the newest checkpoint in {self.checkpoints} "
                f"is of step {self.trainer.version}: restore the later one"
            )
        self.replay_to, _ = await self.ledger.steps()
        await self.ctx.event("learner_ready", version=self.trainer.version, rank=self.rank)

    async def _reconcile(self) -> None:
        """The ledger may not have heard of the checkpoint, or have lost its end in a power cut."""
        known = {step: ids for _, step, ids in self.recent}
        try:
            learnt = await self.ledger.reconcile(self.trainer.version, known)
        except LedgerError as error:
            raise ResumeError(str(error)) from None
        await self.ctx.event("resumed", version=self.trainer.version, reconciled_groups=learnt)

    def _finished(self) -> bool:
        run = self.config.run
        return reached(self.rewards, run.target_reward) or self.trainer.version >= run.num_steps

    # batches

    async def _next_batch(self) -> Batch | None:
        """The record of the next step: an earlier one (replay), or a new one decided by rank 0. None: stop here."""
        started = time.monotonic()
        step = self.trainer.version + 1
        self.saves.check()
        groups, batch = wait_for(WaitKind.GROUPS, step=step), wait_for(WaitKind.BATCH, [f"{self.role}-0"], step=step)
        try:
            with self.ctx.saying(groups if self.rank == 0 else batch):
                if (recorded := await self.ledger.recorded_batch(step)) is not None:
                    return recorded
                if self.rank != 0:
                    return await self._await_record(step)
                return await (self._follow(step) if self.replays else self._decide(step))
        finally:
            self.waited_s = time.monotonic() - started

    async def _decide(self, step: int) -> Batch | None:
        looked, seen = 0.0, -1
        order: dict[str, None] = {}  # the open groups, as they were when so many had been dropped
        while not self.ctx.stop.is_set():
            self.saves.check()
            if (now_s := time.monotonic()) >= looked + ASKED_S:  # not at each group that is ready
                looked = now_s
                if await self.offers.is_asked_for(self.trainer.version):
                    await self._offer_snapshot()
            groups, self.samples_cursor = await self.ledger.ready_groups(self.samples_cursor)
            self.ready.update((group.group_id, group) for group in groups)
            dropped = await self.ledger.dropped()
            if dropped != seen or not self.ready.keys() <= order.keys():  # they are many, and the same at most looks
                now, seen = await self.ledger.open_groups(), dropped
                order = dict.fromkeys(now.order)
                is_ready = {g for g, state in zip(now.order, now.states, strict=True) if state == "r"}
                self.ready = {g: group for g, group in self.ready.items() if g in is_ready}  # in order of publication
            evicted = await self._evict()
            open_order = [g for g in order if g not in evicted]
            size = self.config.rollout.rollout_batch_size
            chosen = self.policy.select(list(self.ready.values()), open_order, self.trainer.version, size)
            if chosen:
                groups = self.share.arranged([self.ready[group_id] for group_id in chosen])
                surplus, bound = self.policy.surplus, self.config.staleness.max_lag
                masked = sum(too_old(g, self.trainer.version, bound) for g in groups) if self.policy.masks else -1
                return await self.ledger.batch(step, groups, surplus=surplus, max_lag=bound, masked_tokens=masked)
        await self._say_stop(step)
        return None

    async def _evict(self) -> set[str]:
        """Drop what has grown too old, and what the user's filter refuses; returns the ids."""
        version, evicted = self.trainer.version, set[str]()
        for judge in (self.policy, self.buffer_filter):
            for group_id, reason in judge.evict(list(self.ready.values()), version):
                await self.ledger.drop(group_id, reason, f"ready at version {version}")
                del self.ready[group_id]
                evicted.add(group_id)
        return evicted

    async def _follow(self, step: int) -> Batch | None:
        """On rank 0, where batches are another run's: the record, or None once this one is to stop."""
        while not self.ctx.stop.is_set():
            self.saves.check()
            if (recorded := await self.ledger.recorded_batch(step, block_ms=READ_BLOCK_MS)) is not None:
                return recorded
        await self._say_stop(step)
        return None

    async def _say_stop(self, step: int) -> None:
        """Tell the other ranks that ``step`` will not be taken."""
        await self.ctx.bus.publish("control", Control(command="learner_stop", roles=("learner",), reason=str(step)))

    async def _await_record(self, step: int) -> Batch | None:
        """On other ranks than 0: the record, or None once rank 0 has said that ``step`` will not be taken."""
        while True:
            self.saves.check()
            if (recorded := await self.ledger.recorded_batch(step, block_ms=READ_BLOCK_MS)) is not None:
                return recorded
            controls, self.control_cursor = await self.ctx.bus.read("control", Control, self.control_cursor)
            stops = [c.reason for c in controls if c.command == "learner_stop"]
            if any(_is_step(reason) and int(reason) <= step for reason in stops):
                return None

    # steps

    async def _step(self, batch: Batch) -> None:
        started = time.monotonic()
        self.max_lag = self.share.max_lag(batch)
        metrics = await self.share.train(batch, partial(self.compute, self._train))
        self.rewards.append(metrics["raw_reward"])
        self.recent.append((time.time(), batch.step, await self.share.trained(batch)))
        if self.trainer.version % self.config.weights.update_interval == 0 or self.trainer.version == self.replay_to:
            await self._offer_snapshot()
        if self.rank == 0:
            step_s = time.monotonic() - started
            perf = {"perf/train_time": step_s, "perf/train_wait_time": self.waited_s}
            metrics |= perf | {"perf/step_time": step_s + self.waited_s} | self.saves.spent()
            metrics = await self.report.step(batch, metrics, self.compute)
            await self._warn_of_mismatch(batch.step, metrics)
            for kind, text in idle_steps.warnings(metrics, self.config.learner.max_skipped_steps):
                await self.ctx.event(kind, step=batch.step, warning=text)

    async def _warn_of_mismatch(self, step: int, metrics: dict[str, float]) -> None:
        """Once in the life of this process."""
        if not self.warned and (text := warning(metrics, self.config.algorithm.mismatch_warn)):
            self.warned = True
            await self.ctx.event("mismatch", step=step, warning=text)

    def _train(self, groups: list[Group]) -> dict[str, float]:
        step = self.trainer.version + 1
        metrics = self.trainer.step(groups, max_lag=self.max_lag, sizes=self.share.sizes)
        check_step(self.trainer, step, metrics)
        return metrics

    async def _offer_snapshot(self) -> None:
        """Hand the weights to the broadcaster, and go on; in a run in which nobody samples there is nobody to have them.

        Not while batches of an earlier life are replayed: engines that still serve the newest version would be put back,
        and what they are generating would grow too old.
        """
        version = self.trainer.version
        if version < self.replay_to or not self.wanted:
            return
        path = await self.compute(self._write_snapshot, version)
        if self.rank == 0:
            await self.offers.announce(version, path)

    def _write_snapshot(self, version: int) -> Path | None:
        specs, tensors = outgoing(self.config, self.trainer)
        if self.rank != 0:
            deque(tensors, maxlen=0)  # collective: every rank takes part, rank 0 has the result
            return None
        size = sum(prod(shape) * dtype.itemsize for _, dtype, shape in specs)
        root = self.ctx.spec.site.snapshot_root(self.config, self.ctx.run_dir, size)
        who = (version, self.ctx.incarnation)
        path = write_where_there_is_room(root, self.ctx.run_dir, *who, specs, tensors, self.ctx.model_path)
        if is_due(self.config.eval, version):
            with contextlib.suppress(SnapshotError):  # the evaluator will say that it is gone
                pin(path, pins_kept(self.config.eval))
        return path

    def _forget_old(self, version: int) -> list[tuple[float, int, tuple[str, ...]]]:
        """What a ledger that lost its end would have to be told by the checkpoint of ``version``."""
        last = self.saves.last
        while self.recent and self.recent[0][1] <= last and self.recent[0][0] < time.time() - RECONCILABLE_S:
            self.recent.popleft()
        return [entry for entry in self.recent if entry[1] <= version]

    async def _checkpoint(self) -> None:
        """Save; once that is durable, the ledger forgets what it and the one before it contain (learner_saves.py)."""
        await self.saves.ended()
        version = self.trainer.version
        extra: dict[str, Any] = {
            "version": version,
            "run_id": self.ctx.spec.run_id,
            "incarnation": self.ctx.incarnation,
            "rewards": list(self.rewards),
            "next_position": (await self.ledger.open_groups()).next_position,
            "recent": self._forget_old(version),
        }
        await self.saves.save(self.trainer, self.checkpoints, extra)


def _is_step(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
