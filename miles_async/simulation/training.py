"""How long the learner takes for a batch: with the run's own rules for who trains what, and in which micro-batches.

Promises: pure; groups go to replicas and optimizer steps as ``config/optimizer_steps.py`` has it, sequences to micro-batches as
``train/batch.py`` has it; a step ends when the replica that has most of it ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from miles_async.config.optimizer_steps import balanced, even, share
from miles_async.simulation.samples import SimulatedGroup
from miles_async.simulation.settings import SimulationConfig
from miles_async.train.batch import SPLIT_COST_TOKENS, filled, plan


class LearnerTime:
    def __init__(self, config: SimulationConfig) -> None:
        self._learner = learner = config.learner
        self._tools = config.environment.tool_tokens * (config.environment.turns - 1)
        # where nothing but the number of tokens counts, who has which does not matter
        self._by_tokens = learner.replicas == 1 and not learner.micro_batch_s and not learner.padding

    def seconds(self, groups: Sequence[SimulatedGroup]) -> float:
        """Of one step on ``groups``, in the order of their batch."""
        learner = self._learner
        if not learner.token_s and not learner.micro_batch_s:
            return learner.step_s
        lengths = [self._lengths(group) for group in groups]
        if self._by_tokens:
            return learner.step_s + learner.token_s * sum(map(sum, lengths))
        replicas, steps = learner.replicas, learner.num_steps_per_rollout
        if learner.balance_data and replicas > 1:
            order = balanced([sum(group.drawn.lengths) for group in groups], replicas, steps)
            lengths = [lengths[place] for place in order]
        parts = [self._of_replica(share(lengths, rank, replicas, steps), steps) for rank in range(replicas)]
        return learner.step_s + sum(max(part[step] for part in parts) for step in range(steps))

    def _lengths(self, group: SimulatedGroup) -> list[int]:
        """Tokens of its sequences."""
        return [group.drawn.prompt + self._tools + length for length in group.drawn.lengths]

    def _of_replica(self, lengths: list[list[int]], steps: int) -> list[float]:
        """Seconds of each of its optimizer steps."""
        seconds, first = [], 0
        for size in even(len(lengths), steps):
            widths = np.array([w for group in lengths[first : first + size] for w in group], dtype=np.int64)
            seconds.append(self._of_sequences(widths))
            first += size
        return seconds

    def _of_sequences(self, widths: np.ndarray) -> float:
        learner, limit = self._learner, self._learner.max_tokens_per_micro_batch
        if not learner.micro_batch_s and not learner.padding:
            return learner.token_s * int(widths.sum())
        if learner.padding:
            rows = plan(widths, limit, SPLIT_COST_TOKENS)
            computed = sum(int(widths[part].max()) * len(part) for part in rows)
            return learner.token_s * computed + learner.micro_batch_s * len(rows)
        total = int(widths.sum())
        number = (
            len(filled(widths, limit))
            if len(widths) <= FEW
            else max(-(-total // limit), int((2 * widths > limit).sum()))
        )
        return learner.token_s * total + learner.micro_batch_s * number


# sequences: first fit takes the square of their number; of more than so many it comes nearly to the least that there can be
FEW = 512
