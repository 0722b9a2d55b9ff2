"""Asynchronous reinforcement learning of language models. ``import miles_async as ma``: runs from Python (``api/``).

Promises: importing this costs nothing: what is behind the names is imported when one of them is used first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from miles_async.api import Run, RunFailedError, configuration, launch, load

__all__ = ["Run", "RunFailedError", "configuration", "launch", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from miles_async import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
