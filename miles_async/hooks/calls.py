"""Calling a function of the user's without whose result nothing goes on, and refusing what it may not give.

Promises: whatever it raises, and whatever it gives instead of what its hook wants, is a HookFailed: one line that names the
key, the function and the cause. That is a ValueError, so the run ends with it at once: a restart would call the same function
with the same. Only what may pass by itself (connections, deadlines, a device's memory) goes through as it is. Importing this
file costs no torch.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from miles_async.config.schema import ConfigError
from miles_async.hooks.faults import one_line, place, printable, trace, words
from miles_async.hooks.hook import Hook

MAY_PASS = (ConnectionError, TimeoutError)
SHOWN_CHARS = 80


class HookFailed(ConfigError):
    """A function of the user's raised, or gave what its hook cannot take; one line. place, trace: of the user's exception."""

    def __init__(self, text: str, place: str = "", trace: str = "") -> None:
        super().__init__(one_line(text))
        self.place, self.trace = place, trace


def called(hook: Hook, function: Callable[..., Any], *args: Any, of: Callable[..., Any] | None = None) -> Any:
    """``function(*args)``, which is no awaitable. Raises HookFailed, and what may pass by itself. ``of``: the function that is
    the user's, if ``function`` is not."""
    users = function if of is None else of
    try:
        found = function(*args)
    except BaseException as error:  # a plain call: also SystemExit and its like are the function's own
        if isinstance(error, (*MAY_PASS, HookFailed)) or type(error).__name__ == "OutOfMemoryError":  # torch's
            raise
        raise raised(hook, users, error) from error
    if inspect.isawaitable(found):
        raise refused(hook, users, found)
    return found


def raised(hook: Hook, function: Callable[..., Any], error: BaseException) -> HookFailed:
    """What ``error`` of ``function`` is to the run."""
    where = place(error)
    cause = f"{words(error)} ({where})" if where else words(error)
    return HookFailed(f"{hook.key}, {name_of(function)}: {cause}", where, trace(error))


def refused(hook: Hook, function: Callable[..., Any], found: Any, wanted: str = "") -> HookFailed:
    """``function`` gave ``found`` instead of what ``wanted`` says, or the hook's own words."""
    if inspect.iscoroutine(found):
        found.close()
    return HookFailed(f"{hook.key}, {name_of(function)}: it gave {shown(found)}, not {wanted or hook.returns}")


def name_of(function: Callable[..., Any]) -> str:
    """``my_reward.py:score``, or ``package.module.score``."""
    inner: Any = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    inner = inspect.unwrap(inner)
    name = getattr(inner, "__qualname__", None) or type(inner).__qualname__
    module = str(getattr(inner, "__module__", None) or type(inner).__module__)
    stem, at, path = module.partition("@")  # as hooks/hook.py calls a file
    return f"{Path(path).name}:{name}" if at and stem else f"{module}.{name}"


def shown(value: Any) -> str:
    """``value`` in a few words that can be written: a tensor or an array by its form."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None and hasattr(value, "__len__"):
        return f"a {type(value).__name__} of shape {tuple(shape)} and {dtype}"
    try:
        text = repr(value)
    except BaseException:
        return f"a {type(value).__name__}"
    if not isinstance(value, str | int | float | bool | list | tuple | dict | set | None):
        text = f"a {type(value).__name__}: {text}"
    return printable(text[:SHOWN_CHARS])
