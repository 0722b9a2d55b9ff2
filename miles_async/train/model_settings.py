"""What the configuration says of Megatron's TransformerConfig beyond the model's own sizes."""

from __future__ import annotations

from typing import Any

from miles_async.config.schema import Learner
from miles_async.train.megatron_args import megatron_args


def model_settings(learner: Learner) -> dict[str, Any]:
    """Fields of the TransformerConfig that are not Megatron's own defaults; empty: none is. Raises ConfigError."""
    return _recompute(learner) | megatron_args(learner.megatron_args).transformer


def _recompute(learner: Learner) -> dict[str, Any]:
    if learner.recompute_granularity == "full":
        return {
            "recompute_granularity": "full",
            "recompute_method": learner.recompute_method,
            "recompute_num_layers": learner.recompute_num_layers,
        }
    if learner.recompute_granularity == "selective":
        modules = ["core_attn"] if learner.recompute_modules is None else [*learner.recompute_modules]
        return {"recompute_granularity": "selective", "recompute_modules": modules}
    return {}
