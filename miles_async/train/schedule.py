"""The learning rate as a function of the optimizer step.

Promises: pure; the same step gives the same rate after any restart, so no scheduler state needs a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

from miles_async.config.schema import Learner


def learning_rate(
    step: int,
    *,
    lr: float,
    min_lr: float = 0.0,
    warmup_steps: int = 0,
    decay_steps: int | None = None,
    decay_style: Literal["linear", "cosine"] = "linear",
) -> float:
    """The rate of optimizer step ``step`` (0-based: the steps that the model has behind it, without those skipped).

    Warm-up: ``lr * (step + 1) / warmup_steps``. Then from ``lr`` to ``min_lr``, reached at ``decay_steps`` (counted
    from step 0) and kept; ``decay_steps = None`` keeps ``lr``.
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if decay_steps is None:
        return lr
    if step >= decay_steps:
        return min_lr
    done = (step - warmup_steps) / (decay_steps - warmup_steps)
    left = 1.0 - done if decay_style == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return min_lr + (lr - min_lr) * left


def rate_of(learner: Learner, *, lr: float, warmup_steps: int) -> Callable[[int], float]:
    """The rate by optimizer step of a model that decays as ``learner`` says, from a rate and a warm-up of its own."""
    return partial(
        learning_rate,
        lr=lr,
        min_lr=learner.min_lr,
        warmup_steps=warmup_steps,
        decay_steps=learner.lr_decay_steps,
        decay_style=learner.lr_decay_style,
    )
