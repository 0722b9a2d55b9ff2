"""The learner: turns batches of groups into weight versions. One process for each rank.

Consumes: ready groups (rank 0 decides which), batches (all ranks). Publishes: batches, snapshots, metrics.

    ready groups ──► rank 0: evict the stale, select ──► batch(step) ──► every rank: fetch its share ──► train ──► v + 1
                             (learner_batches.py)        (write-ahead)   (learner_share.py)              │
                     checkpoint every save_interval steps, then commit(step) ◄──────────────────────────┤
                     snapshot of version v ◄─────────────────────────────────────────────────────────────┘

Keeps: a batch is recorded before it is trained on, and payloads stay until the second newest checkpoint contains their
step, so that a learner that restarts from the newest one, or from the one before it where that is damaged, replays what
follows exactly (invariant 2). No token older than ``max_lag`` is trained, measured against this learner's own version
(invariant 3). It never waits for engines: the broadcaster takes the snapshot.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.learner_batches import LearnerBatches
from actors.learner_checkpoints import choose, of_the_replayed
from actors.learner_offers import Offers
from actors.learner_record import LearnerRecord
from actors.learner_report import LearnerReport
from actors.learner_saves import LearnerSaves
from actors.learner_share import LearnerShare
from actors.runtime.compute import ComputeThread
from actors.runtime.context import ActorContext, wait_for
from actors.runtime.site import Rank
from bus import Ledger, LedgerError
from bus.ledger_batches import part_of, sizes_of
from bus.messages import Batch, Group, Wait
from bus.waits import WaitKind
from miles_async.config.layout import layout_of
from miles_async.runs.payloads import payload_store
from miles_async.train import idle_steps
from miles_async.train.backend import BACKENDS, LearnerBackend, check_step, make_backend
from miles_async.train.checkpoint_choice import CheckpointChoice
from miles_async.train.held_batches import of_all_parts
from miles_async.train.mismatch import warning
from miles_async.train.ranks import Ranks
from miles_async.train.target_reward import REWARD_WINDOW, reached

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# A checkpoint names the groups of the steps since the one before it, and of so many seconds: more than an append-only
# file flushed every second can lose.
RECONCILABLE_S = 30.0


class ResumeError(ValueError):
    """The checkpoint and the ledger do not belong together; a restart would not change that."""


class Learner:
    role = "learner"
    trainer: LearnerBackend

    def __init__(self, ctx: ActorContext) -> None:
        self.ctx, self.config = ctx, ctx.config
        self.ledger = Ledger(ctx.bus, payload_store(ctx.config, ctx.bus.run_id))
        self.offers = Offers(ctx)
        learner = ctx.config.learner
        self.ranks = Ranks(ctx.index, learner.num_ranks, init_method="", layout=layout_of(learner))  # until they meet
        self.rank, self.share = ctx.index, LearnerShare(ctx, self.ledger, self.ranks)
        self.max_lag = ctx.config.staleness.max_lag  # of the batch that is being trained
        self.checkpoints = ctx.run_dir / "checkpoints"
        self.rewards: deque[float] = deque(maxlen=REWARD_WINDOW)
        self.recent: deque[tuple[float, int, tuple[str, ...]]] = deque()  # when the ledger heard of it, step, group ids
        self.replay_to = 0  # the last step that has a batch when this process began
        self.waited_s = 0.0
        # somebody samples with what is learnt
        self.wanted = ctx.config.rollout.generates or ctx.config.eval.eval_interval is not None
        self.wanted &= ctx.config.replay.run is None
        self.warned = False
        self.report, self.record = LearnerReport(ctx), LearnerRecord(ctx)
        # the groups that were trained last, and the log-probs of their tokens
        self.learnt: tuple[list[Group], npt.NDArray[np.float32] | None] = [], None

    async def run(self) -> None:
        async with ComputeThread("learner-compute") as self.compute, ComputeThread("learner-writer") as writer:
            self.saves = LearnerSaves(self.ctx, self.ledger, self.report, self.compute, writer)
            self.batches = LearnerBatches(
                self.ctx, self.ledger, self.share.arranged, self.saves.check, self._offer_if_asked
            )
            await self._build()
            await self._offer_snapshot()
            while not self._finished() and (batch := await self._next_batch()) is not None:
                if not await self._step(batch):
                    break
                if self.trainer.version % self.config.checkpoint.save_interval == 0:
                    await self._checkpoint()
            await self.saves.ended()
            if self.trainer.version > self.saves.last:
                await self._checkpoint()
                await self.saves.ended()
            await self.record.close()
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
            self.trainer = await self._meet()
        chosen = CheckpointChoice()
        if self.checkpoints.is_dir():
            chosen = await choose(self.ctx, self.ledger, self.trainer, self.compute, self.checkpoints)
        own = chosen.path is not None
        if (directory := chosen.path or of_the_replayed(self.config)) is not None:
            extra = await self.compute(partial(self.trainer.load_checkpoint, Path(directory), verified=own))
            if own and (owner := extra.get("run_id")) != self.ctx.spec.run_id:
                raise ResumeError(f"the checkpoint {directory} is of run {owner}, this run is {self.ctx.spec.run_id}")
            self.rewards.extend(extra["rewards"])
            # the ledger may only hear of them now, and lose that in its turn
            self.recent.extend((time.time(), step, tuple(ids)) for _, step, ids in extra["recent"])
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

    async def _meet(self) -> LearnerBackend:
        """The backend, with all ranks in its groups."""
        ctx, me = self.ctx, Rank(self.rank, self.ctx.incarnation, self.config.learner.grad_reduce_timeout_s)
        async with ctx.spec.site.rendezvous(ctx.run_dir, me, ctx.bus) as where:
            self.ranks = replace(self.ranks, init_method=where)
            return await self.compute(make_backend, self.config, ctx.model_path, self.ranks)

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
        try:
            with self.ctx.saying(self._wait(step)):
                return await self.batches.next(self.trainer.version)
        finally:
            self.waited_s = time.monotonic() - started

    def _wait(self, step: int) -> Wait:
        """What a rank waits for before ``step``: the first for groups, the others for the first."""
        if self.rank == 0:
            return wait_for(WaitKind.GROUPS, step=step)
        return wait_for(WaitKind.BATCH, [f"{self.role}-0"], step=step)

    async def _offer_if_asked(self) -> None:
        if await self.offers.is_asked_for(self.trainer.version):
            await self._offer_snapshot()

    # steps

    async def _step(self, batch: Batch) -> bool:
        """Train it, and what it is extended by while its weights are held. False: stopped before they changed."""
        started, reported = time.monotonic(), list[dict[str, float]]()
        self.max_lag = self.share.max_lag(batch)
        while True:
            for index in range(len(reported), len(sizes_of(batch))):
                ticks = batch.ticks and index == len(sizes_of(batch)) - 1
                train = partial(self.compute, partial(self._train, ticks=ticks))
                reported.append(await self.share.train(part_of(batch, index), train))
                self.record.begin(batch.step, *self.learnt)
            if batch.ticks:
                break
            began = time.monotonic()
            with self.ctx.saying(self._wait(batch.step)):
                more = await self.batches.more(batch)
            waited_s = time.monotonic() - began
            self.waited_s, started = self.waited_s + waited_s, started + waited_s
            if more is None:
                return False
            batch = more
        metrics = of_all_parts(reported)
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
            for kind, text in idle_steps.warnings(metrics, self.config):
                await self.ctx.event(kind, step=batch.step, warning=text)
        return True

    async def _warn_of_mismatch(self, step: int, metrics: dict[str, float]) -> None:
        """Once in the life of this process."""
        if not self.warned and (text := warning(metrics, self.config.algorithm.mismatch_warn)):
            self.warned = True
            await self.ctx.event("mismatch", step=step, warning=text)

    def _train(self, groups: list[Group], *, ticks: bool) -> dict[str, float]:
        version, held = self.trainer.version + ticks, {} if ticks else {"ticks": False}
        metrics = self.trainer.step(groups, max_lag=self.max_lag, sizes=self.share.sizes, **held)
        check_step(self.trainer, version, metrics)
        if self.record.wanted:
            self.learnt = groups, self.trainer.token_log_probs()
        return metrics

    async def _offer_snapshot(self) -> None:
        """Hand the weights to the broadcaster, and go on; in a run in which nobody samples there is nobody to have them.

        Not while batches of an earlier life are replayed: engines that still serve the newest version would be put back,
        and what they are generating would grow too old.
        """
        version = self.trainer.version
        if version < self.replay_to or not self.wanted:
            return
        if self.rank == 0:
            await self.offers.find_readers()
        path = await self.compute(self._write_snapshot, version)
        if self.rank == 0:
            await self.offers.announce(version, path)

    def _write_snapshot(self, version: int) -> Path | None:
        return self.offers.write(self.trainer, version)

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
