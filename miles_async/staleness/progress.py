"""Whether a policy can go on at all, found out before a run starts. Pure: no I/O, no clock.

Promises: a policy whose admission would never let a batch be complete is refused with one line that has the inequality that
fails; its own admission is asked, so that holds for a policy of the user's, too.
"""

from __future__ import annotations

from miles_async.config.schema import ConfigError, Rollout
from miles_async.staleness.policies import StalenessPolicy, StalenessState


def check_progress(policy: StalenessPolicy, name: str, rollout: Rollout, update_interval: int, num_steps: int) -> None:
    """While the next batch lacks a group, another one may begin, also where engines are as far behind as they may stay.

    ``update_interval``: versions between two that engines are given. Raises ConfigError.
    """
    size = rollout.rollout_batch_size
    # engines are given every update_interval-th version: at the one before the next of them they have the last of them
    behind = min(update_interval, num_steps) - 1
    for version, serving in ((0, 0), (behind, 0)):
        for opened in sorted({0, size - 1}):
            admitted = policy.admit(StalenessState(version, opened, size, serving, num_steps))
            if admitted < 1:
                raise ConfigError(
                    f'staleness.policy = "{name}" cannot progress: 1 <= admitted fails, it admits {admitted} groups at version '
                    f"{version} while engines serve version {serving}, and {opened} are open of the {size} that a batch has "
                    f"(rollout.rollout_batch_size; weights.update_interval = {update_interval}, staleness.max_lag = "
                    f"{policy.max_lag})"
                )
