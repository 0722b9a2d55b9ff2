"""What the functions of an algorithm are given: the response tokens of whole samples, flat, as tensors.

An estimator sees a rank's share of the whole step; a policy loss and a correction see the samples of one micro-batch, or of
the whole share where they ask for it. The tokens of a sample lie together, in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from miles_async.config.schema import Algorithm
from miles_async.rl.opd import TopTokens


def alone(values: torch.Tensor) -> torch.Tensor:
    """A collective over one rank."""
    return values


@dataclass(frozen=True)
class StepTerms:
    """A rank's share of a step: N response tokens of S samples, on the CPU, without gradient.

    old, reference, teacher, values are None where the configuration asks for nobody that would compute them; a masked
    token's entry in them means nothing.
    """

    rewards: torch.Tensor  # [S] float64
    group_index: torch.Tensor  # [S] int64
    rollout_index: torch.Tensor  # [S] int64: samples of one rollout share it
    sample_index: torch.Tensor  # [N] int64
    mask: torch.Tensor  # [N] bool
    behaviour: torch.Tensor  # [N] float32, what the engine reported
    old: torch.Tensor | None = None  # [N] float32, the PPO denominator
    reference: torch.Tensor | None = None  # [N] float32
    teacher: torch.Tensor | None = None  # [N] float32
    values: torch.Tensor | None = None  # [N] float32, the critic's
    top: TopTokens | None = None  # the teacher's likeliest tokens, where it is asked for them
    all_sum: Callable[[torch.Tensor], torch.Tensor] = alone  # over the data-parallel ranks


@dataclass(frozen=True)
class LossTerms:
    """n response tokens of s whole samples, on the learner's device."""

    logprobs: torch.Tensor  # [n] float32, with gradient in a loss
    old: torch.Tensor  # [n] float32, the PPO denominator
    behaviour: torch.Tensor  # [n] float32, what the engine reported
    advantages: torch.Tensor  # [n] float32
    sample_index: torch.Tensor  # [n] int64, from 0
    versions: torch.Tensor  # [n] int64, that sampled the token
    version: int  # the learner's own, before the step
    mask: torch.Tensor  # [n] 0/1; a masked token takes no part
    # over the data-parallel ranks, in a correction of the whole batch: all values of a tensor [n], the sum of a tensor
    gather: Callable[[torch.Tensor], torch.Tensor] = alone
    all_sum: Callable[[torch.Tensor], torch.Tensor] = alone
    # of a policy loss that is marked with_logits: the model's outputs [n, vocabulary], with gradient and not divided by the
    # temperature, and which of them was sampled [n] int64
    logits: torch.Tensor | None = None
    targets: torch.Tensor | None = None

    @property
    def n_samples(self) -> int:
        return int(self.sample_index.max()) + 1 if self.sample_index.numel() else 0


Metrics = dict[str, torch.Tensor]  # name to [n]: their mean over the step is reported


@dataclass(frozen=True)
class Correction:
    """How much each token counts: a factor of its policy loss, without gradient, and what to report.

    ``keep`` 0 rejects a token: it leaves every numerator (loss, entropy, KL, their metrics); denominators stay, as in Miles.
    """

    weights: torch.Tensor  # [n] float32
    metrics: Metrics
    keep: torch.Tensor | None = None  # [n] 0/1; None: all


EstimatorFunction = Callable[[StepTerms, Algorithm], torch.Tensor]


def with_critic(function: EstimatorFunction) -> EstimatorFunction:
    """Mark an estimator that looks at ``StepTerms.values``: it is given a critic, which learns to predict the advantages that
    the estimator gives plus the values."""
    function.wants_critic = True  # type: ignore[attr-defined]
    return function


def wants_critic(function: EstimatorFunction) -> bool:
    return getattr(function, "wants_critic", False)


PolicyLossFunction = Callable[[LossTerms, Algorithm], tuple[torch.Tensor, Metrics]]


def with_logits(function: PolicyLossFunction) -> PolicyLossFunction:
    """Mark a policy loss that looks at ``LossTerms.logits`` and ``targets`` (Miles: --loss-type custom_loss)."""
    function.wants_logits = True  # type: ignore[attr-defined]
    return function


def wants_logits(function: PolicyLossFunction) -> bool:
    return getattr(function, "wants_logits", False)


CorrectionFunction = Callable[[LossTerms, Algorithm], Correction]


def whole_batch(when: Callable[[Algorithm], bool]) -> Callable[[CorrectionFunction], CorrectionFunction]:
    """Mark a correction that has to see a rank's share of the whole step at once, ``when`` the configuration says so.

    It is called once before the step, with the learner's log-probs before it as ``logprobs`` and ``old``.
    """

    def mark(function: CorrectionFunction) -> CorrectionFunction:
        function.wants_whole_batch = when  # type: ignore[attr-defined]
        return function

    return mark


def wants_whole_batch(function: CorrectionFunction, algorithm: Algorithm) -> bool:
    when = getattr(function, "wants_whole_batch", None)
    return when is not None and when(algorithm)
