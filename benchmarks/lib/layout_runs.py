"""Whole runs whose learner is split over processes, with some of them killed, undisturbed, and on one process.

    one process ─── the same losses? ─── split, undisturbed ─── the same bits? ─── split, ranks killed

Promises: with ``staleness.max_lag`` = 0 a seed decides every batch, so that what differs between two of these runs the learner
made; how requests come together in an engine moves its log-probs by rounding, so no loss depends on those; the verdict is read
from what the runs left on disk.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.lib.fault_run import RUN_TIMEOUT_S, FaultRun, Verdict
from benchmarks.lib.tiny_mixture import make_mixture
from miles_async.monitor.record_lines import LEARNER, read_events, read_metrics


class Split(NamedTuple):
    """A layout, of two processes. mixture: of a mixture of experts, whose engines say which each token took."""

    key: str
    mixture: bool = False

    @property
    def settings(self) -> tuple[str, ...]:
        return ("learner.num_ranks=2", f"learner.{self.key}=2")


RANKS = 2
LAYOUTS = {
    "tp2": Split("tensor_parallel_size"),
    "pp2": Split("pipeline_parallel_size"),
    "cp2": Split("context_parallel_size"),
    "ep2": Split("expert_parallel_size", mixture=True),
}
SETTINGS = (
    "staleness.max_lag=0",
    "algorithm.correction=uncorrected",
    "algorithm.old_log_probs=recompute",
    "checkpoint.save_hf=true",
    "checkpoint.save_interval=5",
    "run.max_restarts=100",
)
ALIKE_STEPS = 10  # from then on a rounded number may have become another token
TOLERANCE = 1e-4
REWARD_STEPS, REWARD_TOLERANCE = 5, 0.15


def of_model(root: Path, seed: int, *, mixture: bool) -> tuple[str, ...]:
    """The settings of a run of the one model, or the other, which is made below ``root``."""
    if not mixture:
        return ()
    path = make_mixture(root / "model", seed)
    return (f"model.hf_checkpoint={path}", "model.parity_check=false", "rollout.routing_replay=true")


class LayoutRun(FaultRun):
    """A run with these settings besides, in which ``kills`` times a random one of the learner's processes is killed (kill -9)
    at a random moment, once the one before has been replaced and has made a step."""

    def __init__(self, directory: Path, seed: int, steps: int, settings: Sequence[str] = (), kills: int = 0) -> None:
        directory.mkdir()
        super().__init__(directory, seed, steps, settings=(*SETTINGS, *settings))
        self.settings, self.kills = settings, kills

    def _trouble(self) -> None:
        for number in range(1, self.kills + 1):
            self._wait_for_step(self._last_step() + self.rng.randint(1, 3))
            self._inflict_between_steps(f"kill learner-{self.rng.randrange(RANKS)}")
            self._wait_for_restart(number)

    def _wait_for_restart(self, number: int) -> None:
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while self.process.poll() is None and self._restarts() < number and time.monotonic() < deadline:
            time.sleep(0.02)

    def _restarts(self) -> int:
        return sum(e.kind == "restarted" and e.data["actor"].startswith("learner") for e in read_events(self.run_dir))

    def _check(self, verdict: Verdict) -> None:
        super()._check(verdict)
        if len(self.faults) != self.kills:
            verdict.broken.append(f"{len(self.faults)} of {self.kills} kills happened")
        if self._restarts() != self.kills:
            verdict.broken.append(f"{self._restarts()} restarts after {self.kills} kills")

    # what it left

    def values(self, name: str) -> list[float | None]:
        """A metric of the learner, step by step."""
        lines = [line for line in read_metrics(self.run_dir) if line.actor == LEARNER and name in line.values]
        found = {line.step: line.values[name] for line in lines}
        return [found.get(step) for step in range(1, self.steps + 1)]

    def weights(self) -> bytes:
        """What it has exported at its end."""
        return (self.run_dir / "hf" / "model.safetensors").read_bytes()


def compared(one: LayoutRun, split: LayoutRun, killed: LayoutRun) -> dict[str, Any]:
    """How the three ended runs differ; ``broken``: what must not be, in words."""
    apart = {name: _apart(one, split, name) for name in ("loss", "grad_norm")}
    rewards = {which: _reward(run, slice(-REWARD_STEPS, None)) for which, run in (("one", one), ("split", split))}
    same = all(split.values(name) == killed.values(name) for name in apart) and split.weights() == killed.weights()
    broken = {
        f"the first {ALIKE_STEPS} losses and gradient norms are those of one process": max(apart.values()) <= TOLERANCE,
        "it learns as one process does": rewards["split"] >= rewards["one"] - REWARD_TOLERANCE,
        "killed ranks leave no trace in the weights": same,
    }
    return {
        "largest_difference_to_one_process": apart,
        "reward_of_first_steps": _reward(split, slice(REWARD_STEPS)),
        "reward_of_last_steps": rewards,
        "bit_equal": same,
        "broken": [promise for promise, kept in broken.items() if not kept],
    }


def _apart(one: LayoutRun, other: LayoutRun, name: str) -> float:
    """The largest difference in the first steps; infinite where a step has no such value."""
    pairs = zip(one.values(name)[:ALIKE_STEPS], other.values(name)[:ALIKE_STEPS], strict=True)
    return max(float("inf") if a is None or b is None else abs(a - b) for a, b in pairs)


def _reward(run: LayoutRun, steps: slice) -> float:
    return round(statistics.mean(value or 0.0 for value in run.values("raw_reward")[steps]), 4)
