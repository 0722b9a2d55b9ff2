"""The built-in rewards: plain functions of a ``RewardSample``, each with its formula."""

from __future__ import annotations

import logging
from typing import Any

from miles_async.rewards.sample import RewardSample

_EOS = object()  # equal to nothing but itself


def graded_match(sample: RewardSample) -> float:
    """Positions where response and label agree / length of the longer one, counted in characters; in [0, 1].

    The end of sequence counts as one position: the label always has one, the response if it ended by itself. So 1 means
    the label and then a stop, and both rambling and stopping early cost. Raises ValueError without a label.
    """
    target: list[Any] = [*_label(sample), _EOS]
    response: list[Any] = [*sample.response, _EOS] if sample.finish_reason == "stop" else [*sample.response]
    equal = sum(mine == theirs for mine, theirs in zip(response, target, strict=False))
    return equal / max(len(response), len(target))


def exact_match(sample: RewardSample) -> float:
    """1 if the response is the label, surrounding white space aside, else 0. Raises ValueError without a label."""
    return float(sample.response.strip() == _label(sample).strip())


def math(sample: RewardSample) -> float:
    """1 if the answer in the response equals the label as mathematics, else 0, by Hugging Face's math-verify.

    The label is LaTeX or plain (``1/2``, ``\\frac{1}{2}``, ``\\boxed{...}``). Raises ValueError for another label.
    """
    from math_verify import parse, verify

    label = _label(sample)
    # its own time limits raise from SIGALRM inside sympy; the grading process has a deadline that always holds, so they
    # are off here, and so is the warning about that
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    gold = parse(label if "$" in label or "\\boxed" in label else f"${label}$", parsing_timeout=0)
    gold = gold or parse(label, parsing_timeout=0)
    if not gold:
        raise ValueError(f"the label {label!r} is not a mathematical expression")
    answer = parse(sample.response, parsing_timeout=0)
    return float(bool(answer) and verify(gold, answer, timeout_seconds=0))


def _label(sample: RewardSample) -> str:
    if sample.label is None:
        raise ValueError("the prompt has no label")
    return sample.label
