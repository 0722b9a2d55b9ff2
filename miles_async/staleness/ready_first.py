"""Bound how far generation is ahead of the learner, and train whatever is ready: NeMo-RL's rule. Pure: no I/O, no clock.

Source: NeMo-RL's Single Controller, ``ready_first`` (``nemo_rl/algorithms/async_utils/staleness_sampler.py``, PR 3582): batch
number ``d`` is dispatched once the trainer's version is ``d - eta`` or more; of what is ready, what was dispatched first is
trained first; nothing is ever evicted, and late stragglers stay usable.

It is ``count`` with another gate: the learner's version ``v`` in the place of the engines' ``s``, so that a slow push of the
weights holds up nobody. Admission knows ``k``, the batches on record, of which the learner is training the last one or none:
``v`` is taken to be ``max(s, k - 1)``, which is never above it. The source dispatches whole batches; here a group that is
dropped gives its place to the next one at once, else a version would lack it for ever.

*No hard bound.* As with ``count``, and what begins may be sampled by weights of any age that engines still have.

*No deadlock.* When batch ``k`` lacks groups, the learner has version ``k``: ``(max(s, k - 1) + L + 1) * B - (k*B + o)`` is at
least ``L*B - o``, which is above 0 for each ``o < B`` if ``L >= 1``; with ``L = 0`` it is ``B - o`` once the engines have
version ``k``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from miles_async.config.schema import Rollout, Staleness
from miles_async.staleness.count import Count
from miles_async.staleness.policies import StalenessPolicy, StalenessState, admissible
from miles_async.staleness.refusals import refuse_surplus, what_becomes


@dataclass(frozen=True, slots=True)
class ReadyFirst(Count):
    def admit(self, state: StalenessState) -> int:
        return admissible(of_the_learner(state), self.max_lag)


def of_the_learner(state: StalenessState) -> StalenessState:
    """``state`` as if engines had the learner's version, as far as that is known."""
    return replace(state, serving_version=max(state.serving_version, state.batched_steps - 1))


def ready_first(staleness: Staleness, rollout: Rollout) -> StalenessPolicy:
    """Raises ConfigError: groups to spare are asked for, or what becomes of one too old."""
    refuse_surplus("ready_first", rollout)
    what_becomes("ready_first", staleness)
    return ReadyFirst(staleness.max_lag)
