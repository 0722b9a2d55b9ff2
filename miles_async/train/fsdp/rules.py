"""What ``learner.train_backend = "fsdp"`` cannot do, said before the start. Costs no torch."""

from __future__ import annotations

from miles_async.config.schema import ConfigError, RunConfig


def check(config: RunConfig) -> None:
    """Refuse what it cannot do. Keys that only another backend looks at are not its matter. Raises ConfigError."""
    if config.learner.recompute_granularity == "selective":
        raise ConfigError(
            'learner.recompute_granularity = "selective" needs learner.train_backend = "megatron"; with "fsdp" allowed: "full"'
        )
