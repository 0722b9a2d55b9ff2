"""The first failure of each kind, with the traceback of the user's code: it is told once, and further ones are counted.

Two failures are of a kind if the same line of the user's raised them, or where there is no such line, if their reasons and
the beginning of their words are the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator
from typing import Any

from miles_async.hooks.faults import place, trace, words

MAX_KINDS = 20  # of one worker: a function whose every error is another one is known by then

_PLACE = re.compile(r" \(([^()\s]+:\d+ in [^()]+)\)\Z")
_VARIES = re.compile(r"'[^']*'|\"[^\"]*\"|\d+(?:\.\d+)?")
_HEAD_CHARS = 80


class OwnCancellation(RuntimeError):
    """A function of the user's has raised by itself what would end its task, its loop or its process; one line."""


def is_stop(error: BaseException) -> bool:
    """Whether ``error`` is the end of the very task that asks, and not one that a function has raised by itself."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # there is no loop any more
        task = None
    if isinstance(error, asyncio.CancelledError):
        return task is None or task.cancelling() > 0
    return isinstance(error, GeneratorExit) and task is None


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Around a call of a function of the user's: whatever it raises is an Exception, unless it is the end of this task."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:  # CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit
        if is_stop(error):
            raise
        raise OwnCancellation(words(error)) from error


def told(error: BaseException) -> str:
    """``ValueError: what it says (my_eval.py:12 in score)``, one line, whatever the exception does when it is asked."""
    cause, where = str(error) if isinstance(error, OwnCancellation) else words(error), place_of(error)
    return f"{cause} ({where})" if where else cause


def place_of(error: BaseException) -> str:
    """The line of the user's that raised ``error``, which may have come from another process; empty: none is known."""
    if isinstance(error, OwnCancellation) and error.__cause__ is not None:
        error = error.__cause__
    return getattr(error, "place", "") or place(error)


def with_place(detail: str, where: str, limit: int) -> str:
    """``detail (my_reward.py:12 in score)``, at most ``limit`` characters."""
    if not where:
        return detail[:limit]
    return f"{detail[: max(0, limit - len(where) - 3)]} ({where})"


def kind_of(reason: str, detail: str) -> str:
    """What a failure that is on record as ``reason``, ``detail`` has in common with others of its cause."""
    where = _PLACE.search(detail)
    return f"{reason} {where[1]}" if where else f"{reason} {_VARIES.sub('…', detail)[:_HEAD_CHARS]}"


class FirstFailures:
    """What one worker has told already."""

    def __init__(self) -> None:
        self._kinds: set[str] = set()

    def news(self, error: BaseException, reason: str, detail: str) -> dict[str, Any] | None:
        """What to tell of ``error``: its reason, its words, and the traceback; None: one of its kind was told."""
        kind = kind_of(reason, detail)
        if kind in self._kinds or len(self._kinds) >= MAX_KINDS:
            return None
        self._kinds.add(kind)
        return {"reason": reason, "cause": detail, "traceback": getattr(error, "trace", "") or trace(error)}
