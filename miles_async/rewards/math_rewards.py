"""The built-in rewards of mathematics. They compare by Hugging Face's math-verify, where Miles has a sympy grader of its own.

So they also take what is equal but not written alike (2/4 for 1/2, 2+2 for 4). sympy has no limit of its own on what it
works out (9^9^9^9): these run in a grading process, under its deadline.
"""

from __future__ import annotations

import logging

from miles_async.rewards.boxed import BOX, last_boxed
from miles_async.rewards.builtin_rewards import label_of
from miles_async.rewards.final_answer import bare, declared, readings, same_text
from miles_async.rewards.sample import RewardSample


def math(sample: RewardSample) -> float:
    """1 if the answer in the response equals the label as mathematics, or is the same text, else 0.

    math-verify finds the answer: the last box, else what follows "the answer is", else the last expression (Miles wants a
    box: ``boxed_math``). Where it finds another one than the label and there is no box, what the response declares
    (``final_answer.py``), or all of it, is compared, too. The label is LaTeX or plain (``1/2``, ``\\frac{1}{2}``,
    ``\\boxed{...}``, ``\\$18.90``), or any other text. Raises ValueError: there is none, or it is empty.
    """
    label = _gold(sample)
    if _equal(sample.response, label):
        return 1.0
    boxes = len(BOX.findall(sample.response))
    if boxes == 0:
        answer = declared(sample.response)
        if answer is None:
            return float(same_text(sample.response, _unboxed(label)))
        return float(any(_is_answer(reading, label) for reading in readings(answer)))
    content = last_boxed(sample.response) if boxes == 1 else None
    return float(content is not None and _is_answer(content, label))


def deepscaler(sample: RewardSample) -> float:
    """1 if the last box after the thinking equals the label as mathematics, else 0.

    Looked at is what follows the last ``</think>``, or else what stands between the first ``###Response`` and the next
    one; 0 if there is neither, or no box there. Raises ValueError as ``math``.
    """
    label, response = _gold(sample), sample.raw_response or sample.response  # the marks may be special tokens
    if "</think>" in response:
        answer = response.rpartition("</think>")[2]
    elif "###Response" in response:
        answer = response.split("###Response")[1]
    else:
        return 0.0
    return _box_equals(answer, label)


def gemma_math(sample: RewardSample) -> float:
    """1 if the last box after the last ``<channel|>`` (Gemma's end of thinking), if there is one, equals the label, else 0.

    Raises ValueError as ``math``.
    """
    response = sample.raw_response or sample.response
    return _box_equals(response.rpartition("<channel|>")[2], _gold(sample))


def _gold(sample: RewardSample) -> str:
    label = label_of(sample)
    if not bare(label):
        raise ValueError(f"the label {label!r} is not a mathematical expression, nor any other text")
    return label


def _box_equals(text: str, label: str) -> float:
    content = last_boxed(text)
    return float(content is not None and _is_answer(content, label))


def _is_answer(answer: str, label: str) -> bool:
    """Whether ``answer``, in whatever form it was declared, is the label."""
    return same_text(answer, _unboxed(label)) or _equal(f"\\boxed{{{answer}}}", label)


def _unboxed(label: str) -> str:
    content = last_boxed(label)
    return label if content is None else content


def _equal(response: str, label: str) -> bool:
    from math_verify import parse, verify

    # its own time limits raise from SIGALRM inside sympy; the grading process has a deadline that always holds, so they
    # are off here, and so is the warning about that
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    label, response = _without_money(label), _without_money(response)
    gold = parse(label if "$" in label or "\\boxed" in label else f"${label}$", parsing_timeout=0)
    gold = gold or parse(label, parsing_timeout=0)
    answer = parse(response, parsing_timeout=0) if gold else []
    return bool(answer) and bool(verify(gold, answer, timeout_seconds=0))


def _without_money(text: str) -> str:
    """``\\$`` is a currency's sign: math-verify takes it for the delimiter of a formula."""
    return text.replace("\\$", "")
