"""The objective that a configuration asks for, put together from the functions of ``miles_async.rl`` and the user's own.

Promises: the value for a micro-batch is its share of the whole step's mean, so shares add up over micro-batches and ranks,
for the loss and for every metric; a function of the user that gives something of another shape is refused when the learner
is built, before a step, and at every step (``miles_async/rl/checked.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from miles_async.config.optimizer_steps import steps_of_batch
from miles_async.config.schema import RunConfig, old_log_probs
from miles_async.rl import advantages, kl, losses, opd
from miles_async.rl.builtin.table import ESTIMATORS
from miles_async.rl.checked import checked
from miles_async.rl.corrections import loglinear_old
from miles_async.rl.hooks import CORRECTION, ESTIMATOR, POLICY_LOSS, REDUCER
from miles_async.rl.reduce import Totals, sample_mean, token_mean, weighted_sum, weighted_sums
from miles_async.rl.segments import most_segments
from miles_async.rl.terms import (
    Correction,
    CorrectionFunction,
    LossTerms,
    Metrics,
    StepTerms,
    wants_critic,
    wants_logits,
    wants_whole_batch,
)

Sums = dict[str, torch.Tensor]  # name to a float64 scalar: shares that add up over micro-batches and ranks

# sums that are no mean over the step: |learner - engine| over the tokens that the learner's own version sampled
MISMATCH, MISMATCH_TOKENS = "mismatch_sum", "mismatch_tokens"


ANY_VOCABULARY = 1 << 18  # logits to try a function out on, which may look at any token


class Objective:
    """Raises HookError, or HookFailed for a function that raises or whose result does not fit."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.algorithm = config, config.algorithm
        algorithm = config.algorithm
        estimator = ESTIMATOR.functions(config)[0]
        self._estimator = checked(ESTIMATOR, algorithm.advantage_estimator, estimator)
        implied = "gspo" if algorithm.advantage_estimator == "gspo" else "ppo_clip"
        policy_loss = POLICY_LOSS.load(name := algorithm.policy_loss or implied)
        self._policy_loss, self.wants_logits = checked(POLICY_LOSS, name, policy_loss), wants_logits(policy_loss)
        self._whole_batch, self._corrections = list[CorrectionFunction](), list[CorrectionFunction]()
        for name in CORRECTION.values(config):
            correction = CORRECTION.load(name)
            called_once = wants_whole_batch(correction, algorithm)
            (self._whole_batch if called_once else self._corrections).append(checked(CORRECTION, name, correction))
        self._reducer = checked(REDUCER, algorithm.loss_aggregation, REDUCER.functions(config)[0])
        self.old_mode = old_log_probs(algorithm)
        self.is_sft = algorithm.loss_type == "sft_loss"
        self.needs_critic = wants_critic(estimator) and not self.is_sft
        self.needs_reference = algorithm.use_kl_loss or algorithm.kl_coef > 0
        early = bool(self._whole_batch) or algorithm.kl_coef > 0 or algorithm.use_opd
        several = steps_of_batch(config) > 1 and not self.is_sft
        # a forward pass of its own before the batch; else `old` is taken from the only step's own pass, which is the same
        self.needs_pass = (early or several or algorithm.keep_old_actor) and self.old_mode != "rollout"
        named = ESTIMATORS.get(algorithm.advantage_estimator)
        whitens = algorithm.normalize_advantages
        self.whitens = whitens if whitens is not None else named is not None and named.whitens
        self.names = sorted(self._try_out())

    # before the step, for a rank's whole share

    def old(self, current: torch.Tensor, behaviour: torch.Tensor, versions: torch.Tensor, version: int) -> torch.Tensor:
        """The denominator [n], without gradient. current: the learner's log-probs before the step."""
        if self.old_mode == "rollout":
            return behaviour
        if self.old_mode == "loglinear":
            return loglinear_old(current, behaviour, versions, version)
        return current.detach()

    def advantages(self, terms: StepTerms) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Advantages [N] float32 and, with a critic, the returns [N] float32 that it learns: what the estimator gives plus
        the values. Collective if advantages are whitened. Raises ValueError for rewards that cannot be used."""
        if self.is_sft:
            return torch.zeros(len(terms.mask)), None
        found = self._estimator(terms, self.algorithm)
        returns = None if terms.values is None else (found + terms.values.double()).float()
        if self.algorithm.use_opd:
            found = advantages.distil(found, self._reverse_kl(terms), coef=self.algorithm.opd_kl_coef)
        if self.whitens:
            found = advantages.whiten(found, terms.mask, all_sum=terms.all_sum)
        return found.float(), returns

    def observed(self, terms: StepTerms) -> Metrics:
        """What is reported of the whole share besides the loss's own metrics, [N] float64 each."""
        if not self.algorithm.use_opd:
            return {}
        return {"opd_reverse_kl": self._reverse_kl(terms)}

    def _reverse_kl(self, terms: StepTerms) -> torch.Tensor:
        """Between the learner before the step and the teacher, at each token [N] float64."""
        assert terms.old is not None and terms.teacher is not None
        if terms.top is None:
            return terms.old.double() - terms.teacher.double()
        strategy, weight = self.algorithm.opd_top_k_strategy, self.algorithm.opd_top_k_weight
        return opd.reverse_kl(terms.top, terms.old, terms.teacher, strategy=strategy, weight=weight)

    def mean_weights(
        self, mask: torch.Tensor, sample_index: torch.Tensor, rollout_index: torch.Tensor, totals: Totals
    ) -> torch.Tensor:
        """Weight [N] float64 of every response token in the step's means: entropy, KL, metrics."""
        mean = token_mean if self.algorithm.loss_aggregation == "token" else sample_mean
        return mean(mask, sample_index, rollout_index, totals)

    def token_weights(
        self, mask: torch.Tensor, sample_index: torch.Tensor, rollout_index: torch.Tensor, totals: Totals
    ) -> torch.Tensor:
        """Weight [N] float64 of every response token in the policy loss (as in Miles, a reducer is for that alone)."""
        return self._reducer(mask, sample_index, rollout_index, totals, self.config)

    def correct_batch(self, terms: LossTerms) -> Correction | None:
        """The corrections that look at the whole step at once; None if there is none. Collective."""
        return self._multiplied(self._whole_batch, terms) if self._whole_batch else None

    # in the step, for a micro-batch

    def loss(
        self,
        terms: LossTerms,
        weights: torch.Tensor,
        *,
        pg_weights: torch.Tensor | None = None,
        entropy: torch.Tensor,
        reference: torch.Tensor | None = None,
        batch_correction: Correction | None = None,
        alike: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Sums]:
        """The share of n tokens in the step's loss (scalar float64, with gradient) and in every metric.

        weights, pg_weights: [n] float64, of :meth:`mean_weights` and :meth:`token_weights` (None: the same). entropy,
        reference: [n] float32. batch_correction: these tokens' part of what :meth:`correct_batch` gave. alike: [n] bool, which
        of the learner's own tokens are held against the engine's log-probs (None: all).
        """
        algorithm = self.algorithm
        terms, entropy, reference = _without_masked(terms, entropy, reference)
        if self.is_sft:
            pg_loss, metrics = losses.sft(terms.logprobs), {}
            correction = Correction(torch.ones_like(terms.behaviour), {})
        else:
            pg_loss, metrics = self._policy_loss(terms, algorithm)
            correction = self._multiplied(self._corrections, terms)
            if batch_correction is not None:
                correction = _product(correction, batch_correction)
        pg_weights = weights if pg_weights is None else pg_weights
        change = -metrics["ppo_kl"] if "ppo_kl" in metrics else losses.log_ratio(terms.logprobs.detach(), terms.old)
        fixed = self._shift(change, terms, weights, correction.metrics, alike)
        if correction.keep is not None:
            weights, pg_weights = (w * correction.keep for w in (weights, pg_weights))
        # a token of weight 0 is out, whatever its loss is
        pg_loss = torch.where(correction.weights == 0, torch.zeros_like(pg_loss), pg_loss * correction.weights)
        loss = weighted_sum(pg_loss, pg_weights)
        if algorithm.entropy_coef > 0:
            loss = loss - algorithm.entropy_coef * weighted_sum(entropy, weights)
        if reference is not None and algorithm.use_kl_loss:
            kl_loss = self._kl_loss(terms, reference)
            metrics = metrics | {"kl_loss": kl_loss.detach()}
            if algorithm.kl_loss_coef > 0:
                loss = loss + algorithm.kl_loss_coef * weighted_sum(kl_loss, weights)
        with torch.no_grad():
            metrics = metrics | {"entropy_loss": entropy} | _apart(terms)
            sums = weighted_sums(metrics, weights)
            pg_sum = weighted_sum(pg_loss.detach().double(), pg_weights)
        return loss, {"loss": loss.detach(), "pg_loss": pg_sum} | sums | fixed

    def _kl_loss(self, terms: LossTerms, reference: torch.Tensor) -> torch.Tensor:
        ratio = None
        if self.algorithm.use_unbiased_kl:
            # of the policy that sampled: by any other denominator the expectation is not the KL
            ratio = losses.bounded_exp(losses.log_ratio(terms.logprobs, terms.behaviour))
        return kl.approx_kl(terms.logprobs, reference, self.algorithm.kl_loss_type, importance_ratio=ratio)

    def _multiplied(self, functions: list[Callable[..., Correction]], terms: LossTerms) -> Correction:
        product = Correction(torch.ones_like(terms.behaviour), {})
        for function in functions:
            product = _product(product, function(terms, self.algorithm))
        return product

    def _shift(
        self,
        change: torch.Tensor,
        terms: LossTerms,
        weights: torch.Tensor,
        more: Metrics,
        alike: torch.Tensor | None,
    ) -> Sums:
        """How far the policy is from the denominator, and the learner's own tokens from the engine's; ``more`` beside it.

        change: [n] log-ratio, of the sample where the loss looks at samples.
        """
        index = terms.sample_index
        ess = losses.ess_ratio(change, terms.mask, index, most_segments(index))[index]
        ratio = losses.bounded_exp(change)
        own = ((terms.versions == terms.version) & (terms.mask != 0)).double()
        own = own if alike is None else own * alike
        apart = (terms.logprobs.detach() - terms.behaviour).abs().double()
        mismatch = {MISMATCH: weighted_sum(apart, own), MISMATCH_TOKENS: own.sum()}
        return weighted_sums(more | {"ois": ratio, "ess_ratio": ess}, weights) | mismatch

    def _try_out(self) -> Sums:
        """Two tokens of one sample, to see what the functions give."""
        zeros = torch.zeros(2)
        index = torch.zeros(2, dtype=torch.int64)
        step = StepTerms(
            rewards=torch.zeros(1, dtype=torch.float64),
            group_index=torch.zeros(1, dtype=torch.int64),
            rollout_index=torch.zeros(1, dtype=torch.int64),
            sample_index=index,
            mask=torch.ones(2, dtype=torch.bool),
            behaviour=zeros,
            old=zeros,
            reference=zeros,
            teacher=zeros,
            top=opd.TopTokens(zeros[:, None], zeros[:, None], zeros[:, None] == 0),
            values=zeros if self.needs_critic else None,
        )
        self.advantages(step)
        weights = self.token_weights(step.mask, index, step.rollout_index, Totals(2.0, 1.0))
        logprobs = zeros.clone().requires_grad_(True)
        terms = LossTerms(logprobs, zeros, zeros, zeros, index, index, 0, torch.ones(2))
        if self.wants_logits:
            terms = replace(terms, logits=torch.zeros(2, ANY_VOCABULARY, requires_grad=True), targets=index)
        batch = self.correct_batch(terms)
        return self.loss(terms, weights, entropy=zeros, reference=zeros, batch_correction=batch)[1]


def _without_masked(
    terms: LossTerms, entropy: torch.Tensor, reference: torch.Tensor | None
) -> tuple[LossTerms, torch.Tensor, torch.Tensor | None]:
    """Zeros in the place of whatever a masked token holds, so that no gradient of it can be NaN."""
    kept = terms.mask != 0
    if kept.device.type == "cpu" and bool(kept.all()):  # elsewhere the question costs more than the answer saves
        return terms, entropy, reference

    def only(values: torch.Tensor) -> torch.Tensor:
        return torch.where(kept, values, torch.zeros_like(values))

    terms = replace(
        terms,
        logprobs=only(terms.logprobs),
        old=only(terms.old),
        behaviour=only(terms.behaviour),
        advantages=only(terms.advantages),
    )
    return terms, only(entropy), None if reference is None else only(reference)


def _product(a: Correction, b: Correction) -> Correction:
    keeps = [c.keep for c in (a, b) if c.keep is not None]
    keep = keeps[0] * keeps[1] if len(keeps) == 2 else keeps[0] if keeps else None
    return Correction(a.weights * b.weights.detach(), a.metrics | b.metrics, keep)


def _apart(terms: LossTerms) -> Metrics:
    """Between the learner's policy now and the engine's that sampled, lag and mismatch together."""
    current = terms.logprobs.detach()
    return {
        "train_rollout_logprob_abs_diff": (current - terms.behaviour).abs(),
        "train_rollout_kl": kl.reverse_k3(current, terms.behaviour),
    }


def named(sums: torch.Tensor, names: list[str]) -> dict[str, float]:
    """The metrics of a step from the sums over all micro-batches and ranks, in the order of ``names``."""
    values = dict(zip(names, sums.tolist(), strict=True))
    apart, tokens = values.pop(MISMATCH), values.pop(MISMATCH_TOKENS)
    if tokens:
        values["on_policy_logprob_abs_diff"] = apart / tokens
    return values
