"""What stands between a draft on a disk and its name: the question whether this process still is who may give it.

    draft ──► ask ──► rename                        of whoever writes what its successor would read
    replaced on the bus ──► sweep ──► read          of the successor

Promises: no draft of a life that is over gets its name, however long its process stood still between any two of its calls: one
that was made before the successor swept is gone, one that was made later is asked about when the answer is no. For that a
draft's name has the incarnation (:func:`mark`), and a sweep takes those of earlier ones (:func:`is_earlier`) and no other. A
process that is no actor's has nobody to ask, and no mark.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_MARK = re.compile(r"i(\d{4,})-")


def _nobody() -> None:
    """There is nobody to ask."""


_ask: Callable[[], None] = _nobody
_incarnation = 0


def set_fence(ask: Callable[[], None], incarnation: int) -> None:
    """Of this process. ``ask`` comes back only if this life goes on; it is called from any thread."""
    global _ask, _incarnation
    _ask, _incarnation = ask, incarnation


def clear_fence() -> None:
    """This process is nobody's any more."""
    set_fence(_nobody, 0)


def before_it_counts() -> None:
    """To be called when a draft is whole, and right before it gets its name."""
    _ask()


def incarnation() -> int:
    """Of the actor whose process this is; 0: of nobody."""
    return _incarnation


def mark() -> str:
    """What the name of a draft has behind what says that it is one: ``i0003-``; "" where this is no actor's process."""
    return f"i{_incarnation:04d}-" if _incarnation else ""


def is_earlier(rest: str) -> bool:
    """Whether a draft may be swept, since it is no later life's; ``rest``: its name behind what says that it is a draft."""
    found = _MARK.match(rest)
    return found is None or int(found[1]) <= _incarnation
