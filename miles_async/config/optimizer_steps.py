"""How many optimizer steps one batch is, and which of its groups each of them trains on. Pure, without torch.

    rollout_batch_size * n_samples_per_prompt = global_batch_size * num_steps_per_rollout        (Miles' four knobs)

Promises: a step trains whole prompt groups, and the same ones for every number of learner ranks, each of which has its own in
the order of the ledger; numbers that contradict one another are refused with the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from miles_async.config.layout import layout_of, replicas
from miles_async.config.schema import ConfigError, Learner, RunConfig

T = TypeVar("T")


def steps_of_pass(config: RunConfig) -> int:
    """Optimizer steps of one pass over a batch: its mini-batches."""
    learner, rollout = config.learner, config.rollout
    if learner.num_steps_per_rollout is not None:
        return learner.num_steps_per_rollout
    if learner.global_batch_size is not None:
        return rollout.rollout_batch_size * rollout.n_samples_per_prompt // learner.global_batch_size
    return 1


def steps_of_batch(config: RunConfig) -> int:
    """Optimizer steps between two weight versions."""
    return steps_of_pass(config) * config.learner.ppo_epochs


def share(items: Sequence[T], dp_rank: int, dp_size: int, steps: int) -> list[T]:
    """What of a batch's groups, in the ledger's order, ``dp_rank`` of ``dp_size`` trains on: its part of each of ``steps``
    mini-batches, one after the other."""
    begins = _begins(len(items), dp_size * steps)
    mine = (step * dp_size + dp_rank for step in range(steps))
    return [item for part in mine for item in items[begins[part] : begins[part + 1]]]


def balanced(costs: Sequence[int], dp_size: int, steps: int) -> list[int]:
    """An order of a batch's groups, by their places, in which :func:`share` gives the ranks of each step as many groups as
    before and costs that are nearly even: the dearest first, each to the rank that has least so far (Graham's LPT rule).

    costs: of each group, in the order of the ledger; a step keeps its groups, and a rank theirs in that order.
    """
    begins, order = _begins(len(costs), dp_size * steps), list[int]()
    for first in range(0, dp_size * steps, dp_size):
        rooms = [begins[first + rank + 1] - begins[first + rank] for rank in range(dp_size)]
        parts: list[list[int]] = [[] for _ in rooms]
        sums = [0] * dp_size
        of_step = range(begins[first], begins[first + dp_size])
        for place in sorted(of_step, key=lambda place: -costs[place]):
            rank = min((rank for rank in range(dp_size) if len(parts[rank]) < rooms[rank]), key=sums.__getitem__)
            parts[rank].append(place)
            sums[rank] += costs[place]
        order += [place for part in parts for place in sorted(part)]
    return order


def _begins(count: int, parts: int) -> list[int]:
    return [count * i // parts for i in range(parts + 1)]


def even(count: int, steps: int) -> list[int]:
    """The sizes of ``steps`` mini-batches of ``count`` groups."""
    return [count * (step + 1) // steps - count * step // steps for step in range(steps)]


def check(config: RunConfig) -> None:
    """Refuse a batch that does not come out even. Raises ConfigError."""
    learner, rollout = config.learner, config.rollout
    groups, samples = rollout.rollout_batch_size, rollout.n_samples_per_prompt
    batch = f"rollout.rollout_batch_size * rollout.n_samples_per_prompt = {groups} * {samples} = {groups * samples}"
    steps, size = learner.num_steps_per_rollout, learner.global_batch_size
    if steps is not None and size is not None and steps * size != groups * samples:
        raise ConfigError(
            f"learner.global_batch_size * learner.num_steps_per_rollout = {size} * {steps} = {size * steps}, but {batch}: "
            "the one has to be the other; either key may be left out"
        )
    if size is not None and groups * samples % size:
        raise ConfigError(f"learner.global_batch_size = {size} does not divide {batch} samples of a batch")
    steps, shares = steps_of_pass(config), replicas(learner)
    if groups % shares:
        raise ConfigError(
            f"rollout.rollout_batch_size = {groups} must be a multiple of {_replicas(learner)}: each trains on as many groups"
        )
    if groups % (steps * shares):
        ranks = f" on each of {_replicas(learner)}" if shares > 1 else ""
        raise ConfigError(
            f"{_named(config)} optimizer steps for rollout.rollout_batch_size = {groups} prompt groups: each step trains "
            f"whole groups, as many as the others{ranks}, so that {groups} must be a multiple of "
            f"{steps * shares}"
        )


def _replicas(learner: Learner) -> str:
    layout = layout_of(learner)
    if layout.model == 1:
        return f"learner.num_ranks = {learner.num_ranks}"
    return f"the {replicas(learner)} replicas that learner.num_ranks = {learner.num_ranks} are at {layout.model} processes each"


def _named(config: RunConfig) -> str:
    learner, steps = config.learner, steps_of_pass(config)
    if learner.num_steps_per_rollout is not None or learner.global_batch_size is None:
        return f"learner.num_steps_per_rollout = {steps}"
    return f"learner.global_batch_size = {learner.global_batch_size} makes {steps}"
