"""One learner's step without a model: random rows through the real share, micro-batches and objective.

Shared by the tests of the objective. The "model" is a tensor of log-probs with one entry for each token, so that the
gradient of the step's loss can be read off. Ranks are threads whose collectives are wired together.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from miles_async.config import rules
from miles_async.config.schema import Algorithm, Data, Learner, Model, Rollout, RunConfig, Staleness
from miles_async.rl import rules as algorithm_rules
from miles_async.rl.reduce import Totals
from miles_async.rl.terms import LossTerms
from miles_async.train.batch import Sequences, TrainBatch, micro_batches
from miles_async.train.intake import Admitted
from miles_async.train.objective import Objective, named
from miles_async.train.share import make_share, micro_share

VERSION = 5
WAIT_S = 30.0

T = TypeVar("T")
Collective = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Row:
    """One sample of a step: n response tokens."""

    group: int
    rollout: int  # samples of one group with the same number are branches of one rollout
    reward: float
    mask: tuple[bool, ...]
    versions: tuple[int, ...]
    behaviour: tuple[float, ...]
    before: tuple[float, ...]  # the learner's log-probs before the step
    logprobs: tuple[float, ...]  # and in the step
    reference: tuple[float, ...]
    teacher: tuple[float, ...]
    values: tuple[float, ...]  # the critic's
    entropy: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.mask)


@dataclass(frozen=True)
class Step:
    loss: float
    gradient: list[list[float]]  # of each row's log-probs
    metrics: dict[str, float]


def config(*, max_lag: int = 3, **algorithm: Any) -> RunConfig:
    """A checked configuration of that algorithm; constant aggregation divides by 16."""
    found = RunConfig(
        model=Model(hf_checkpoint="builtin:test"),
        data=Data(prompt_data="builtin:test"),
        rollout=Rollout(
            rollout_max_response_len=16,
            rollout_function="sft" if algorithm.get("loss_type") == "sft_loss" else "single_turn",
            opd_teacher_urls={"default": "http://127.0.0.1:1"} if algorithm.get("use_opd") else {},
        ),
        staleness=Staleness(max_lag=max_lag),
        learner=Learner(),
        algorithm=Algorithm(**algorithm),
    )
    rules.check(found)
    algorithm_rules.check(found)
    return found


def random_rows(seed: int, *, groups: int = 3, samples: int = 3, spread: float = 0.4, whole: bool = False) -> list[Row]:
    """Rows of 1 to 6 tokens, some masked; the second group's first two samples share a rollout, one row is masked out.

    spread: standard deviation of the log-ratios. whole: no masks and no shared rollout.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for group in range(groups):
        for sample in range(samples):
            n = 1 if sample == 0 else int(rng.integers(2, 7))
            base = -3 * rng.random(n) - 0.5
            mask = rng.random(n) < 0.8
            shared = not whole and group == 1 and sample == 1
            reward = rows[-1].reward if shared else float(rng.integers(0, 4)) / 2
            if whole:
                mask[:] = True
            elif group == 2 and sample == 1:
                mask[:] = False
            rows.append(
                Row(
                    group=group,
                    rollout=0 if shared else sample,
                    reward=reward,
                    mask=tuple(bool(m) for m in mask),
                    versions=tuple(int(v) for v in np.sort(rng.integers(VERSION - 3, VERSION + 1, n))),
                    **{name: _f32(base + spread * rng.normal(size=n)) for name in _LOGPROBS},
                    values=_f32(rng.normal(size=n)),
                    entropy=_f32(rng.random(n)),
                )
            )
    return rows


_LOGPROBS = ("behaviour", "before", "logprobs", "reference", "teacher")


def _f32(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(np.float32(v)) for v in values)


def on_policy(rows: Sequence[Row]) -> list[Row]:
    """The same rows where engine and learner agree on every token."""
    return [replace(row, behaviour=row.logprobs, before=row.logprobs) for row in rows]


def totals(rows: Sequence[Row]) -> Totals:
    return Totals(
        tokens=float(sum(max(sum(row.mask), 1) for row in rows)),
        rollouts=float(len({(row.group, row.rollout) for row in rows})),
    )


def step(config: RunConfig, rows: Sequence[Row], *, ranks: int = 1, max_tokens: int = 1 << 20) -> Step:
    """What the learner computes from ``rows``: groups are dealt to the ranks in turn. max_tokens: of a micro-batch."""
    groups = list(dict.fromkeys(row.group for row in rows))
    owner = {group: number % ranks for number, group in enumerate(groups)}
    shares = [[i for i, row in enumerate(rows) if owner[row.group] == rank] for rank in range(ranks)]

    objective = Objective(config)

    def one(rank: int, all_sum: Collective, gather: Collective) -> Part:
        return _one_rank(objective, [rows[i] for i in shares[rank]], rows, max_tokens, all_sum, gather)

    found = on_ranks(ranks, one)
    gradient: list[list[float]] = [[] for _ in rows]
    for share, (parts, _, _) in zip(shares, found, strict=True):
        for i, part in zip(share, parts, strict=True):
            gradient[i] = part
    sums, names = torch.stack([sums for _, sums, _ in found]).sum(dim=0), found[0][2]
    metrics = named(sums, names)
    return Step(metrics["loss"], gradient, metrics)


Part = tuple[list[list[float]], torch.Tensor, list[str]]  # gradients of its rows, its part of the metrics, their names


def _one_rank(
    objective: Objective,
    mine: Sequence[Row],
    everyone: Sequence[Row],
    max_tokens: int,
    all_sum: Collective,
    gather: Collective,
) -> Part:
    admitted = Admitted(_batch(mine), totals(everyone), float(len(everyone)), True, {})
    reference = _flat(mine, "reference")
    share = make_share(
        admitted,
        objective,
        VERSION,
        current=_flat(mine, "before"),
        reference=reference if objective.needs_reference else None,
        values=_flat(mine, "values") if objective.needs_critic else None,
        all_sum=all_sum,
        gather=gather,
    )
    logprobs = _flat(mine, "logprobs").requires_grad_(True)
    entropy = _flat(mine, "entropy")
    sums = torch.zeros(len(objective.names), dtype=torch.float64)
    for micro in micro_batches(admitted.batch.sequences, max_tokens):
        part = micro_share(share, micro, torch.device("cpu"))
        index = torch.from_numpy(micro.token_index)
        terms = LossTerms(
            logprobs=logprobs[index],
            old=objective.old(part.current, part.behaviour, part.versions, VERSION),
            behaviour=part.behaviour,
            advantages=part.advantages,
            sample_index=part.sample_index,
            versions=part.versions,
            version=VERSION,
            mask=torch.ones_like(part.behaviour),
        )
        loss, parts = objective.loss(
            terms,
            part.weights,
            pg_weights=part.pg_weights,
            entropy=entropy[index],
            reference=part.reference,
            batch_correction=part.correction,
        )
        loss.backward()
        sums += torch.stack([parts[name] for name in objective.names])
    gradient = torch.zeros_like(logprobs) if logprobs.grad is None else logprobs.grad
    observed = torch.stack([torch.zeros((), dtype=torch.float64), *share.observed.values()])[1:]
    parts = [part.tolist() for part in gradient.split([len(row) for row in mine])]
    return parts, torch.cat([sums, observed]), [*objective.names, *share.observed]


def _flat(rows: Sequence[Row], name: str) -> torch.Tensor:
    return torch.tensor([value for row in rows for value in getattr(row, name)], dtype=torch.float32)


def _batch(rows: Sequence[Row]) -> TrainBatch:
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    numbers = {key: i for i, key in enumerate(dict.fromkeys((row.group, row.rollout) for row in rows))}
    groups = {group: i for i, group in enumerate(dict.fromkeys(row.group for row in rows))}
    prompt = np.ones_like(lengths)

    def flat(name: str, dtype: Any) -> np.ndarray:
        return np.array([value for row in rows for value in getattr(row, name)], dtype=dtype)

    return TrainBatch(
        sequences=Sequences(np.zeros(int((lengths + 1).sum()), np.int32), lengths + 1, prompt, flat("mask", bool)),
        behaviour=flat("behaviour", np.float32),
        versions=flat("versions", np.int32),
        sample_index=np.repeat(np.arange(len(rows)), lengths),
        rewards=np.array([row.reward for row in rows], dtype=np.float64),
        raw_rewards=np.array([row.reward for row in rows], dtype=np.float64),
        group_index=np.array([groups[row.group] for row in rows], dtype=np.int64),
        rollout_index=np.array([numbers[row.group, row.rollout] for row in rows], dtype=np.int64),
        teacher=flat("teacher", np.float32),
        truncated=np.zeros(len(rows), dtype=bool),
    )


def on_ranks(ranks: int, function: Callable[[int, Collective, Collective], T]) -> list[T]:
    """``function(rank, all_sum, gather)`` of every rank, each in a thread, with collectives that reach the others."""
    barrier = threading.Barrier(ranks)
    slots: list[torch.Tensor] = [torch.zeros(0)] * ranks

    def exchange(rank: int, values: torch.Tensor) -> list[torch.Tensor]:
        slots[rank] = values.clone()
        barrier.wait(WAIT_S)
        found = list(slots)
        barrier.wait(WAIT_S)
        return found

    def one(rank: int) -> T:
        try:
            return function(
                rank,
                lambda values: torch.stack(exchange(rank, values)).sum(dim=0),
                lambda values: torch.cat(exchange(rank, values)),
            )
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(one, range(ranks)))


def close(ours: Step, theirs: Step, *, tolerance: float = 1e-6) -> None:
    """Fails where loss, a gradient or a metric of two steps differ by more than ``tolerance``, absolute or relative."""
    assert near(ours.loss, theirs.loss, tolerance), f"loss {ours.loss} is not {theirs.loss}"
    assert ours.metrics.keys() == theirs.metrics.keys()
    for name, value in ours.metrics.items():
        assert near(value, theirs.metrics[name], tolerance), f"{name} = {value} is not {theirs.metrics[name]}"
    for i, (mine, other) in enumerate(zip(ours.gradient, theirs.gradient, strict=True)):
        assert all(near(a, b, tolerance) for a, b in zip(mine, other, strict=True)), f"row {i}: {mine} is not {other}"


def near(a: float, b: float, tolerance: float) -> bool:
    return math.isfinite(a) and abs(a - b) <= tolerance * max(1.0, abs(a), abs(b))
