"""Each step trains the groups that were dispatched for it: NeMo-RL's rule, which is fifo. Pure: no I/O, no clock.

Source: NeMo-RL's Single Controller, ``in_order`` (``nemo_rl/algorithms/async_utils/staleness_sampler.py``): batch number
``d`` is dispatched once the version is ``d - L`` or more, with ``d`` stamped on its groups, and step ``d`` trains exactly
these.

*The bound.* A group of batch ``d`` begins at version ``d - L`` or later and is trained at version ``d``: the lag is at most
``L``. That is fifo's admission and fifo's selection (fifo.py, policies.py), so the same object does it, and a comparison of
the two shows nothing. Two things are as fifo has them and not as the source: the gate is the version that engines have, not
the trainer's, else a slow push would break the bound; and where a group is dropped, the next one that was dealt takes its
place in its batch, where the source lets the batch shrink or keeps spare prompts for it.

*No deadlock.* As fifo.
"""

from __future__ import annotations

from miles_async.config.schema import Rollout, Staleness
from miles_async.staleness.fifo import Fifo
from miles_async.staleness.policies import StalenessPolicy
from miles_async.staleness.refusals import ALL_THAT_IS_DEALT, refuse_surplus, what_becomes


def in_order(staleness: Staleness, rollout: Rollout) -> StalenessPolicy:
    """Raises ConfigError where groups to spare are asked for."""
    refuse_surplus("in_order", rollout, ALL_THAT_IS_DEALT)
    becomes = what_becomes("in_order", staleness, "drop", "requeue")
    return Fifo(staleness.max_lag, requeues=becomes == "requeue")
