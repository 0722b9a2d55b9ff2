"""Train what is ready first, drop what grew too old. The bound: policies.py. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bus.messages import ReadyGroup
from miles_async.config.schema import ConfigError, Rollout, Staleness
from miles_async.staleness.policies import Bounded, StalenessPolicy, is_usable


@dataclass(frozen=True, slots=True)
class Drop(Bounded):
    """Train in order of publication, drop what grew too old: the learner waits less, long responses are lost more."""

    def select(
        self, ready: Sequence[ReadyGroup], open_order: Sequence[str], version: int, batch_size: int
    ) -> tuple[str, ...] | None:
        usable = [group.group_id for group in ready if is_usable(group, version, self.max_lag)]
        return tuple(usable[:batch_size]) if len(usable) >= batch_size else None


def drop(staleness: Staleness, rollout: Rollout) -> StalenessPolicy:
    """Raises ConfigError where groups to spare are asked for."""
    refuse_surplus("drop", rollout)
    return Drop(staleness.max_lag)


AS_THEY_FINISH = "takes groups as they finish already, and has more of them with a larger max_lag"


def refuse_surplus(policy: str, rollout: Rollout, why: str = AS_THEY_FINISH) -> None:
    """Of a policy that drops none with a batch, which ``why`` says of it. Raises ConfigError."""
    if rollout.surplus:
        raise ConfigError(
            f'rollout.over_sampling_batch_size = {rollout.over_sampling_batch_size} needs staleness.policy = "fifo": '
            f'"{policy}" {why}'
        )
