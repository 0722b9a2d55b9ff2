"""What a policy of ours is asked for and does not do: one line that names the key, its value and what is allowed. Pure."""

from __future__ import annotations

from miles_async.config.schema import ConfigError, Rollout, Staleness

AS_THEY_FINISH = "takes groups as they finish already, and has more of them with a larger max_lag"
ALL_THAT_IS_DEALT = "trains each group that is dealt"


def refuse_surplus(policy: str, rollout: Rollout, why: str = AS_THEY_FINISH) -> None:
    """Of a policy that drops none with a batch, which ``why`` says of it. Raises ConfigError."""
    if rollout.surplus:
        raise ConfigError(
            f'rollout.over_sampling_batch_size = {rollout.over_sampling_batch_size} needs staleness.policy = "fifo": '
            f'"{policy}" {why}'
        )


def what_becomes(policy: str, staleness: Staleness, *allowed: str) -> str:
    """What becomes of a group that is too old: ``staleness.too_old``, or the first that is ``allowed``; "" where none is.

    Raises ConfigError.
    """
    given = staleness.too_old
    if given is None:
        return next(iter(allowed), "")
    if given not in allowed:
        names = " or ".join(f'"{name}"' for name in allowed)
        it_does = f"a group that is too old it can {names}" if allowed else "it trains a group however old it is"
        raise ConfigError(f'staleness.too_old = "{given}" cannot be with staleness.policy = "{policy}": {it_does}')
    return given


def capacity_of(staleness: Staleness, rollout: Rollout) -> int:
    """How many groups a policy that is not gated by versions may have open. Raises ConfigError: a batch is of more."""
    size = rollout.rollout_batch_size
    if staleness.capacity is None:
        return (staleness.max_lag + 1) * size
    if staleness.capacity < size:
        raise ConfigError(
            f"staleness.capacity = {staleness.capacity}: staleness.capacity >= rollout.rollout_batch_size = {size} fails, no "
            "batch would ever be complete"
        )
    return staleness.capacity
