"""Pace the samplers and discard nothing: Tinker's rule. Pure: no I/O, no clock.

Source: ``AsyncConfig`` of the Tinker cookbook (``sampling_steps_ahead``; cookbook PR 822): at most ``(sampling_steps_ahead +
1) * B`` groups may be begun and not trained; a group takes its place when it begins and leaves it once it is trained, or at
once where a filter refuses it. Each step trains the groups that have finished and are of the oldest weights.
``sampling_steps_ahead`` is ``max_lag`` here.

What is begun and not trained is ``o`` and the batch that is being trained: ``o + (k - v) * B <= (L + 1) * B``, the gate of
``ready_first``. What differs is the order: by the version of the oldest token, and as they were published within one version.

*No hard bound*, and *no deadlock*, as with ``ready_first``. A late group is older than all that overtook it, so it is in the
first batch after its end: a group that is generated for ``d`` steps and was published in time is trained with a lag of ``d``
or ``d + 1``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bus.messages import ReadyGroup
from miles_async.config.schema import Rollout, Staleness
from miles_async.staleness.policies import NO_BOUND, StalenessPolicy, is_usable
from miles_async.staleness.ready_first import ReadyFirst
from miles_async.staleness.refusals import refuse_surplus, what_becomes


@dataclass(frozen=True, slots=True)
class Pace(ReadyFirst):
    def select(
        self, ready: Sequence[ReadyGroup], open_order: Sequence[str], version: int, batch_size: int
    ) -> tuple[str, ...] | None:
        usable = [group for group in ready if is_usable(group, version, NO_BOUND)]
        if len(usable) < batch_size:
            return None
        return tuple(group.group_id for group in sorted(usable, key=lambda group: group.oldest_version)[:batch_size])


def pace(staleness: Staleness, rollout: Rollout) -> StalenessPolicy:
    """Raises ConfigError: groups to spare are asked for, or what becomes of one too old."""
    refuse_surplus("pace", rollout)
    what_becomes("pace", staleness)
    return Pace(staleness.max_lag)
