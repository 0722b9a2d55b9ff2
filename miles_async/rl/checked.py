"""The algorithm's functions of the user, held at every step against what their hooks say they give.

Promises: what does not fit the tokens (another shape, device or kind of number, no gradient, other metrics than at first) is a
HookFailed that names the key, the function and what it gave, before a weight has moved by it; so is what is not finite, where
that is known without waiting for the device: what is computed once for a batch is on the CPU. A loss that is not finite is a
skipped step (``learner.max_skipped_steps``). Built-ins are not wrapped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from miles_async.config.schema import Algorithm
from miles_async.hooks.calls import called, refused
from miles_async.hooks.faults import printable
from miles_async.hooks.hook import Hook
from miles_async.rl.hooks import CORRECTION, ESTIMATOR, POLICY_LOSS, REDUCER
from miles_async.rl.terms import Correction, LossTerms, Metrics, StepTerms

MAX_NAME_CHARS = 100

Function = Callable[..., Any]


def checked(hook: Hook, value: str, function: Function) -> Function:
    """``function``, which ``value`` names at ``hook``; a user's with its result looked at."""
    return function if value in hook.built_in else _CHECKED[hook.key](function)


def _estimator(function: Function) -> Function:
    def estimate(terms: StepTerms, algorithm: Algorithm) -> torch.Tensor:
        found = called(ESTIMATOR, function, terms, algorithm)
        _of_tokens(ESTIMATOR, function, found, terms.behaviour)
        _finite(ESTIMATOR, function, torch.where(terms.mask, found, 0).float())  # as which they are trained on
        return found.double()

    return estimate


def _reducer(function: Function) -> Function:
    def weigh(mask: torch.Tensor, *others: Any) -> torch.Tensor:
        found = called(REDUCER, function, mask, *others)
        _of_tokens(REDUCER, function, found, mask)
        _finite(REDUCER, function, found)
        return found.double()

    return weigh


def _policy_loss(function: Function) -> Function:
    same = _SameMetrics(POLICY_LOSS, function)

    def loss(terms: LossTerms, algorithm: Algorithm) -> tuple[torch.Tensor, Metrics]:
        found = called(POLICY_LOSS, function, terms, algorithm)
        if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], dict):
            raise refused(POLICY_LOSS, function, found, "(loss, metrics)")
        _of_tokens(POLICY_LOSS, function, found[0], terms.logprobs)
        if torch.is_grad_enabled() and terms.logprobs.requires_grad and not found[0].requires_grad:
            raise refused(POLICY_LOSS, function, found[0], "a loss with gradient")
        same.check(found[1], terms.logprobs)
        return found

    return loss


def _correction(function: Function) -> Function:
    same = _SameMetrics(CORRECTION, function)

    def correct(terms: LossTerms, algorithm: Algorithm) -> Correction:
        found = called(CORRECTION, function, terms, algorithm)
        if not isinstance(found, Correction):
            raise refused(CORRECTION, function, found, "a Correction")
        for part in (found.weights, *(() if found.keep is None else (found.keep,))):
            _of_tokens(CORRECTION, function, part, terms.behaviour, bools=True)
            if part.device.type == "cpu":  # the GPU would have to be waited for
                _finite(CORRECTION, function, torch.where(terms.mask != 0, part, 0))
        same.check(found.metrics, terms.behaviour)
        return found

    return correct


class _SameMetrics:
    """Holds one function to the metrics' names of its first result."""

    def __init__(self, hook: Hook, function: Function) -> None:
        self._hook, self._function = hook, function
        self._names: frozenset[str] | None = None

    def check(self, metrics: Any, tokens: torch.Tensor) -> None:
        if not isinstance(metrics, dict):
            raise refused(self._hook, self._function, metrics, "metrics {name: [n]}")
        for name, value in metrics.items():
            if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS or printable(name) != name:
                raise refused(self._hook, self._function, name, f"a metric's name of 1 to {MAX_NAME_CHARS} characters")
            _of_tokens(self._hook, self._function, value, tokens, bools=True, what=f"the metric {name}")
        if self._names is None:
            self._names = frozenset(metrics)
        elif self._names != metrics.keys():
            wanted = f"those of its first call: {', '.join(sorted(self._names)) or 'none'}"
            raise refused(self._hook, self._function, sorted(metrics), f"{wanted} (metrics of every call are the same)")


def _of_tokens(
    hook: Hook, function: Function, found: Any, tokens: torch.Tensor, *, bools: bool = False, what: str = ""
) -> None:
    """Refuse what is no real number for each of ``tokens``, on their device."""
    n = len(tokens)
    fits = isinstance(found, torch.Tensor) and found.shape == (n,) and found.device == tokens.device
    if not fits or found.is_complex() or (found.dtype == torch.bool and not bools):
        wanted = f"for {n} tokens a real tensor of shape ({n},) on {tokens.device}"
        raise refused(hook, function, found, f"{wanted}, {what}" if what else wanted)


def _finite(hook: Hook, function: Function, found: torch.Tensor) -> None:
    if not bool(torch.isfinite(found).all()):
        value = found[~torch.isfinite(found)][0].item()
        raise refused(hook, function, value, "a finite number for each token")


_CHECKED: dict[str, Callable[[Function], Function]] = {
    ESTIMATOR.key: _estimator,
    REDUCER.key: _reducer,
    POLICY_LOSS.key: _policy_loss,
    CORRECTION.key: _correction,
}
