"""Hold the weights rather than let a group grow too old: a batch that is sometimes larger. Pure: no I/O, no clock.

*Elastic* takes groups as they finish, as token_mask does. Before the weights change from version ``v`` to ``v + 1`` it looks at
what is open and not in the batch: a group with a token of version ``v - L`` would be too old at ``v + 1``. If there is one, the
weights are held: one more batch is trained at ``v``, its gradient is added to that of the first, and the step has the mean of
both. So the learner is never idle, nothing is dropped, long responses are trained as short ones are, and no token is older than
``L``; the price is fewer and larger optimizer steps.

*The bound.* As long as fewer than ``elastic_cap`` batches are in a step, no group that is open or begins then has a token of a
version below ``v + 1 - L`` when the weights change: the version of a token that is not published yet is not taken to be newer
than it can be, and that of a group still to begin is what engines serve (floors.py). Behind the cap the weights change in any
case, and what is too old then is masked, as token_mask masks it: the bound is hard whatever was known. A group that is beyond
the bound already holds nothing up: waiting could not help it.

*Admission* may begin groups ``elastic_admit_lag`` versions ahead, fewer than ``L``: those that are begun late need not be
waited for.

*No deadlock.* While the weights are held at ``v`` the batches on record are ``k = v + 1`` and engines serve ``s = v``, so with
an admission lag ``A`` of 1 or more ``(s + A + 1 - k) * B = A * B`` groups may be open: enough for another batch, each of which
finishes. At the last step nothing more is admitted, and with ``L = 0`` nothing is open but the batch: the weights change.

What fewer, larger steps do to learning is a matter of the task and the learning rate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from miles_async.config.schema import ConfigError, Rollout, Staleness
from miles_async.staleness.policies import StalenessPolicy, StalenessState, admissible
from miles_async.staleness.refusals import refuse_surplus, what_becomes
from miles_async.staleness.token_mask import TokenMask


@dataclass(frozen=True, slots=True)
class Elastic(TokenMask):
    """``admit_lag``: versions ahead that a group may begin. ``cap``: batches in a step."""

    admit_lag: int = 1
    cap: int = 4

    @property
    def holds(self) -> bool:
        return True

    def admit(self, state: StalenessState) -> int:
        return admissible(state, self.admit_lag)

    def ticks(self, open_versions: Iterable[int], version: int, batches: int) -> bool:
        due = self.max_lag == 0 or batches >= self.cap
        return due or all(version - oldest != self.max_lag for oldest in open_versions)


def elastic(staleness: Staleness, rollout: Rollout) -> StalenessPolicy:
    """Raises ConfigError: groups to spare are asked for, or admission could not fill a second batch."""
    refuse_surplus("elastic", rollout)
    what_becomes("elastic", staleness, "mask")
    bound, admit_lag = staleness.max_lag, staleness.admit_lag
    if admit_lag > bound or (bound and not admit_lag):
        raise ConfigError(
            f"staleness.elastic_admit_lag = {admit_lag}: while the weights are held so many times rollout.rollout_batch_size "
            f"groups may be open, which another batch is made of: 1 to staleness.max_lag = {bound}"
        )
    return Elastic(bound, admit_lag=admit_lag, cap=staleness.elastic_cap)
