"""This process as that of an actor which learns, at its n-th question, that it has been replaced."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from miles_async.disk.fence import clear_fence, set_fence


class Replaced(Exception):
    """The process would have ended."""


@contextlib.contextmanager
def life(incarnation: int, questions: int | None = None) -> Iterator[None]:
    """Be of ``incarnation`` meanwhile. ``questions``: so many are answered well; None: all."""
    left = questions

    def ask() -> None:
        nonlocal left
        if left is not None:
            if left == 0:
                raise Replaced
            left -= 1

    set_fence(ask, incarnation)
    try:
        yield
    finally:
        clear_fence()
