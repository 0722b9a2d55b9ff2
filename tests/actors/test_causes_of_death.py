"""What an actor died of is said in the words of the error itself, also where a task group holds it."""

from __future__ import annotations

import pytest

from actors.runtime.context import cause_of
from miles_async.hooks.calls import HookFailed

HOOK = HookFailed("weights.transport, mine.py:Mine.prepare: it gave None")
SAID = "HookFailed: weights.transport, mine.py:Mine.prepare: it gave None"


@pytest.mark.parametrize(
    ("error", "cause", "fatal"),
    [
        (RuntimeError("one\ntwo"), "RuntimeError: one", False),
        (ValueError("wrong"), "ValueError: wrong", True),
        (ExceptionGroup("unhandled", [RuntimeError("inner")]), "RuntimeError: inner", False),
        (ExceptionGroup("unhandled", [ExceptionGroup("unhandled", [HOOK])]), SAID, True),
        (ExceptionGroup("unhandled", [ConnectionError("gone"), HOOK]), SAID, True),
    ],
)
def test_the_cause_of_a_death_is_the_error_and_not_the_group_around_it(
    error: BaseException, cause: str, fatal: bool
) -> None:
    assert cause_of(error) == (cause, fatal)
