"""Learners that also write down what they did: put in place through ``[topology]``, as a user's own class would be."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np

from actors.learner import Learner
from actors.runtime.context import ActorContext
from benchmarks.lib.group_files import write_groups
from bus.messages import Group
from miles_async.engines.checksum import checksums
from miles_async.train import checkpoint


class RecordingLearner(Learner):
    """Writes the groups of step ``s``, as its rank trained on them, to ``trained/s-RANK`` in the run directory; of the ranks
    that hold a replica of the model together, and train on the same, the first one does. Where fewer ranks train a step again,
    what the others wrote of it is taken away."""

    def _train(self, groups: list[Group], *, ticks: bool) -> dict[str, float]:
        metrics = super()._train(groups, ticks=ticks)
        layout, ranks = self.ranks.layout, range(self.ranks.world_size)
        if any(layout.replica(rank, len(ranks)) == self.ranks.dp_rank for rank in ranks[: self.rank]):
            return metrics
        directory = self.ctx.run_dir / "trained"
        directory.mkdir(exist_ok=True)
        write_groups(directory / f"{self.trainer.version:04d}-{self.rank}", groups)
        for of_another in directory.glob(f"{self.trainer.version:04d}-*"):
            if int(of_another.name.rpartition("-")[2]) >= len(ranks):
                of_another.unlink(missing_ok=True)
        return metrics


class LearnerWhoseSecondRankIsLost(RecordingLearner):
    """The first time that it trains step ``LOST_AT``, before it does."""

    LOST_AT = 4

    def _train(self, groups: list[Group], *, ticks: bool) -> dict[str, float]:
        once = self.ctx.run_dir / "lost"
        if self.rank == 1 and self.trainer.version + 1 == self.LOST_AT and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._train(groups, ticks=ticks)


class LearnerKilledWhileSaving(RecordingLearner):
    """Is killed (kill -9) in the middle of writing its checkpoints of two versions, the first time that it writes them:
    with all files written and none in place, and with the directory in place and the pointer not."""

    MOMENTS = {10: "0000010", 20: "latest"}  # version: the draft that was made durable last

    def __init__(self, ctx: ActorContext) -> None:
        super().__init__(ctx)
        fsync = checkpoint._fsync

        def fsync_or_die(path: Path) -> None:
            fsync(path)
            version = self.trainer.version
            once = self.ctx.run_dir / f"killed-at-{version}"
            is_draft = path.name.startswith(".writing-") and path.name.endswith(self.MOMENTS.get(version, " "))
            if is_draft and not once.exists():
                once.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        checkpoint._fsync = fsync_or_die


class LearnerKilledBetweenSteps(RecordingLearner):
    """Writes what each optimizer step of version ``v`` computed to ``steps/v.npz`` in the run directory, and is killed
    (kill -9) behind the first of the steps of one version, the first time that it makes it.

    Of its n-th optimizer step: ``where_n`` the places of its tokens among all of the batch's, ``logprobs_n`` and
    ``before_n`` the policy's in the step and before the batch, ``gradient_n`` of the loss by the former, ``loss_n``.
    """

    KILLED_AT = 2

    async def _build(self) -> None:
        await super()._build()
        self.seen: dict[str, Any] = {}
        policy = self.trainer._policy
        self.make_loss, self.apply = policy._loss, policy.model.apply_gradients
        self.parts: list[tuple[Any, ...]] = []
        policy._loss, policy.model.apply_gradients = self._loss, self._apply

    def _loss(self, micro: Any, outputs: Any, part: Any, version: int) -> Any:
        logprobs, loss, sums = self.make_loss(micro, outputs, part, version)
        logprobs.retain_grad()
        self.parts.append((micro.token_index, logprobs, part.current, loss.detach()))
        return logprobs, loss, sums

    def _apply(self) -> dict[str, float]:
        indices, logprobs, before, losses = zip(*self.parts, strict=True)
        n = sum(name.startswith("loss_") for name in self.seen)
        self.seen |= {
            f"where_{n}": np.concatenate(indices),
            f"logprobs_{n}": np.concatenate([values.detach().numpy() for values in logprobs]),
            f"before_{n}": np.concatenate([values.numpy() for values in before]),
            f"gradient_{n}": np.concatenate([values.grad.numpy() for values in logprobs]),
            f"loss_{n}": np.array(sum(losses)),
        }
        self.parts.clear()
        moved = self.apply()
        once = self.ctx.run_dir / "killed-between-steps"
        if self.trainer.version + 1 == self.KILLED_AT and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return moved

    def _train(self, groups: list[Group], *, ticks: bool) -> dict[str, float]:
        self.seen.clear()
        metrics = super()._train(groups, ticks=ticks)
        directory = self.ctx.run_dir / "steps"
        directory.mkdir(exist_ok=True)
        np.savez(directory / f"{self.trainer.version}.npz", **self.seen)
        return metrics


class ChecksumLearner(Learner):
    """Writes the checksums of every version that it exports to ``checksums/VERSION.json`` in the run directory."""

    def _write_snapshot(self, version: int) -> Path | None:
        directory = self.ctx.run_dir / "checksums"
        directory.mkdir(exist_ok=True)
        (directory / f"{version}.json").write_text(json.dumps(checksums(self.trainer.export())))
        return super()._write_snapshot(version)
