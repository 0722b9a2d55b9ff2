"""The extension points of the algorithm. Importing this file costs no torch."""

from __future__ import annotations

from miles_async.hooks.hook import Hook
from miles_async.rl.builtin.table import CORRECTIONS, ESTIMATORS, POLICY_LOSSES, REDUCERS

_BUILTIN = "miles_async.rl.builtin"

ESTIMATOR = Hook(
    "algorithm.advantage_estimator",
    ("terms", "algorithm"),
    returns="advantages [N] float64 of a StepTerms",
    default="grpo",
    built_in={name: f"{_BUILTIN}.estimators.{entry.function}" for name, entry in ESTIMATORS.items()},
)
POLICY_LOSS = Hook(
    "algorithm.policy_loss",
    ("terms", "algorithm"),
    returns="(loss [n] with gradient, {name: [n]}) of a LossTerms",
    default='"ppo_clip", or "gspo" with that estimator',
    built_in={name: f"{_BUILTIN}.policy_losses.{name}" for name in POLICY_LOSSES},
)
CORRECTION = Hook(
    "algorithm.correction",
    ("terms", "algorithm"),
    returns="a Correction of a LossTerms; those of several names multiply",
    default="none given: refused where staleness.max_lag > 0",
    built_in={name: f"{_BUILTIN}.corrections.{entry.function}" for name, entry in CORRECTIONS.items()},
)
REDUCER = Hook(
    "algorithm.loss_aggregation",
    ("mask", "sample_index", "rollout_index", "totals", "config"),
    returns="the weight [N] float64 of each token in the step's mean",
    default="token",
    built_in={name: f"{_BUILTIN}.reducers.{name}" for name in REDUCERS},
)

HOOKS = (ESTIMATOR, POLICY_LOSS, CORRECTION, REDUCER)
