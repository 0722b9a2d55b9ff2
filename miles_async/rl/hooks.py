"""The extension points of the algorithm. Importing this file costs no torch."""

from __future__ import annotations

from miles_async.config.schema import CORRECTIONS
from miles_async.hooks.hook import Hook

_ESTIMATORS = ("grpo", "dr_grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "ppo")
_LOSSES = ("ppo_clip", "gspo", "cispo", "truncated_reinforce", "dppo")

ESTIMATOR = Hook(
    "algorithm.advantage_estimator",
    ("terms", "algorithm"),
    returns="advantages [N] float64 of a StepTerms",
    default="grpo",
    # gspo is GRPO's advantage with a loss of its own
    built_in={name: f"miles_async.rl.estimators.{name}" for name in _ESTIMATORS}
    | {"gspo": "miles_async.rl.estimators.grpo"},
)
POLICY_LOSS = Hook(
    "algorithm.policy_loss",
    ("terms", "algorithm"),
    returns="(loss [n] with gradient, {name: [n]}) of a LossTerms",
    default='"ppo_clip", or "gspo" with that estimator',
    built_in={name: f"miles_async.rl.policy_losses.{name}" for name in _LOSSES},
)
CORRECTION = Hook(
    "algorithm.correction",
    ("terms", "algorithm"),
    returns="a Correction of a LossTerms; those of several names multiply",
    default="none given: refused where staleness.max_lag > 0",
    built_in={
        name: f"miles_async.rl.weighting.{'nothing' if name in ('behaviour', 'uncorrected') else name}"
        for name in CORRECTIONS
    },
)
REDUCER = Hook(
    "algorithm.loss_aggregation",
    ("mask", "sample_index", "rollout_index", "totals", "config"),
    returns="the weight [N] float64 of each token in the step's mean",
    default="token",
    built_in={name: f"miles_async.rl.reducers.{name}" for name in ("token", "sample", "constant")},
)

HOOKS = (ESTIMATOR, POLICY_LOSS, CORRECTION, REDUCER)
