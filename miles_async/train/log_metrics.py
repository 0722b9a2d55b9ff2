"""What ``learner.log_function`` may return, and what becomes of anything else: a reason, and no end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from miles_async.hooks.faults import printable

MAX_METRICS = 200  # of one function; they travel in one message with the learner's own
MAX_NAME_CHARS = 150


class LogResultError(ValueError):
    """A log function returned what are no metrics; one line."""


def checked(found: Any) -> dict[str, float]:
    """``found`` as plain floats: numbers by name, also of numpy and torch; None is none. Raises LogResultError."""
    if found is None:
        return {}
    if not isinstance(found, Mapping) or len(found) > MAX_METRICS:
        shown = f"{len(found)} of them" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise LogResultError(f"it must return at most {MAX_METRICS} metrics {{name: number}}, or None, not {shown}")
    return {_name(name): _number(name, value) for name, value in found.items()}


def _name(name: Any) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS or printable(name) != name:
        raise LogResultError(f"the name of a metric is a text of 1 to {MAX_NAME_CHARS} characters, not {name!a:.60}")
    return name


def _number(name: str, value: Any) -> float:
    """Not finite is allowed: it is recorded as null."""
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise LogResultError(f"{name} must be a number, not a {type(value).__name__}")
    try:
        return float(value)
    except Exception as error:  # a tensor of several numbers, an int beyond any float
        raise LogResultError(f"{name} is no single number: {type(error).__name__}") from None
