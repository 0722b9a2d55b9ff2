"""The built-in rewards of mathematics. They compare by Hugging Face's math-verify, where Miles has a sympy grader of its own.

So they also take what is equal but not written alike (2/4 for 1/2, 2+2 for 4). sympy has no limit of its own on what it
works out (9^9^9^9): these run in a grading process, under its deadline.
"""

from __future__ import annotations

import logging

from miles_async.rewards.boxed import last_boxed
from miles_async.rewards.builtin_rewards import label_of
from miles_async.rewards.sample import RewardSample


def math(sample: RewardSample) -> float:
    """1 if the answer in the response equals the label as mathematics, else 0.

    math-verify finds the answer: the last box, else what follows "the answer is", else the last expression (Miles wants a
    box: ``boxed_math``). The label is LaTeX or plain (``1/2``, ``\\frac{1}{2}``, ``\\boxed{...}``). Raises ValueError
    for another label, or none.
    """
    return _equal(sample.response, label_of(sample))


def deepscaler(sample: RewardSample) -> float:
    """1 if the last box after the thinking equals the label as mathematics, else 0.

    Looked at is what follows the last ``</think>``, or else what stands between the first ``###Response`` and the next
    one; 0 if there is neither, or no box there. Raises ValueError as ``math``.
    """
    label = label_of(sample)
    if "</think>" in sample.response:
        answer = sample.response.rpartition("</think>")[2]
    elif "###Response" in sample.response:
        answer = sample.response.split("###Response")[1]
    else:
        return 0.0
    return _box_equals(answer, label)


def gemma_math(sample: RewardSample) -> float:
    """1 if the last box after the last ``<channel|>`` (Gemma's end of thinking), if there is one, equals the label, else 0.

    Raises ValueError as ``math``.
    """
    return _box_equals(sample.response.rpartition("<channel|>")[2], label_of(sample))


def _box_equals(text: str, label: str) -> float:
    content = last_boxed(text)
    return 0.0 if content is None else _equal(f"\\boxed{{{content}}}", label)


def _equal(response: str, label: str) -> float:
    from math_verify import parse, verify

    # its own time limits raise from SIGALRM inside sympy; the grading process has a deadline that always holds, so they
    # are off here, and so is the warning about that
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    gold = parse(label if "$" in label or "\\boxed" in label else f"${label}$", parsing_timeout=0)
    gold = gold or parse(label, parsing_timeout=0)
    if not gold:
        raise ValueError(f"the label {label!r} is not a mathematical expression")
    answer = parse(response, parsing_timeout=0)
    return float(bool(answer) and verify(gold, answer, timeout_seconds=0))
