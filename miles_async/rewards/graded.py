"""What a reward function may return, and what becomes of it: a grade, or the reason why there is none.

Promises: what is no finite number, or no dict of such numbers that says which one is the reward, is refused with one line
that names the culprit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from miles_async.hooks.faults import one_line, printable, words

MAX_PARTS = 64  # they travel with each sample
MAX_PART_CHARS = 100  # they are names of metrics

Numbers = float | dict[str, float]


class RewardError(Exception):
    """A sample has no reward. ``reason`` is "reward_timeout" or "reward_error"; the text says more, on one line.

    place, trace: of an exception of the user's, the line that raised it and the traceback.
    """

    def __init__(self, reason: str, detail: str, place: str = "", trace: str = "") -> None:
        detail = one_line(detail)
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.place = place
        self.trace = trace


class Graded(msgspec.Struct, frozen=True):
    """What a sample is worth, and the numbers beside it by name: the entries of a dict, the addends of a sum, or none."""

    reward: float
    parts: dict[str, float] = {}


def numbers(result: Any) -> Numbers:
    """What a function returned for one sample, in plain floats; numpy and torch scalars have ``__float__`` too.

    Raises TypeError, ValueError: it is, or holds, what is no finite number.
    """
    if not isinstance(result, Mapping):
        return _number("a reward", result)
    if len(result) > MAX_PARTS:
        raise ValueError(f"a reward may have {MAX_PARTS} parts, not {len(result)}")
    for name in result:
        if not isinstance(name, str):
            raise TypeError(f"the name of a part must be a string, not {name!r:.100}")
        if len(name) > MAX_PART_CHARS or printable(name) != name:
            raise ValueError(
                f"the name of a part has at most {MAX_PART_CHARS} characters of Unicode, unlike {name!a:.100}"
            )
    return {name: _number(f'the part "{name}" of a reward', value) for name, value in result.items()}


def numbers_of_group(result: Any, n_samples: int) -> list[Numbers]:
    """What a group's function returned, one entry a sample. Raises TypeError, ValueError as :func:`numbers`, and for a
    length other than ``n_samples``."""
    if isinstance(result, str | bytes | Mapping) or not hasattr(result, "__len__"):
        raise TypeError(f"a group's rewards must be a list, not {type(result).__name__}")
    if len(result) != n_samples:
        raise ValueError(f"a group of {n_samples} samples needs as many rewards, not {len(result)}")
    return [numbers(item) for item in result]


def graded(result: Numbers, reward_key: str | None) -> Graded:
    """The grade in a function's ``result``. Raises RewardError: a dict, and no key, or not this one in it."""
    if not isinstance(result, dict):
        return Graded(result)
    names = ", ".join(result) or "nothing"
    if reward_key is None:
        raise RewardError("reward_error", f"which part is the reward? reward.reward_key is not set; there is {names}")
    if reward_key not in result:
        raise RewardError("reward_error", f'no part "{reward_key}" (reward.reward_key); there is {names}')
    return Graded(result[reward_key], result)


def plain(what: str, value: Any) -> float:
    """``value``, called ``what``, as a plain float; not finite is allowed. Raises TypeError, ValueError: it is no number."""
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"{what} must be a number, not {type(value).__name__}")
    try:
        return float(value)
    except Exception as error:  # a tensor of several numbers, an int beyond any float
        raise ValueError(f"{what} is no single number: {words(error)}") from None


def is_finite(value: Any) -> bool:
    """Whether ``value``, of a function of the user's, is a number, and neither inf nor nan."""
    try:
        return math.isfinite(plain("it", value))
    except (TypeError, ValueError):
        return False


def _number(what: str, value: Any) -> float:
    number = plain(what, value)
    if not math.isfinite(number):
        raise ValueError(f"{what} must be finite, not {number}")
    return number
