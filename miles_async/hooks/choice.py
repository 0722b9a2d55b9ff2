"""From a name in the configuration to a class: which of several parts of one kind a run has.

A value is the name of one of ours, a dotted path ``package.module.Class``, or ``file.py:Class``. Promises: a value that leads
nowhere, or to something else than a class of that kind, is refused in one line that names the key, the value, what is allowed
and the nearest valid name; one of ours is imported only when it is asked for; what a class of the user's raises where it is
made or asked about the configuration is one line that names the key and the place in its file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Generic, ParamSpec, TypeVar

from miles_async.config.schema import ConfigError
from miles_async.config.words import nearest, one_of
from miles_async.hooks.calls import HookFailed, called
from miles_async.hooks.hook import Hook, HookError

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


class Choice(Generic[T]):
    """One key, whose value names a class below ``base``.

    parameters: what an object of the class is made of, by position. ours: name to ``package.module.Class``. needs: the methods
    that ``base`` leaves to the classes below it, or one of several (``"carry or push"``).
    """

    def __init__(
        self, key: str, base: type[T], parameters: tuple[str, ...], ours: Mapping[str, str], needs: tuple[str, ...] = ()
    ) -> None:
        self.base, self.ours, self.needs = base, ours, needs
        self.hook = Hook(key, parameters, returns=f"a {base.__name__}", default="", built_in=ours)

    def load(self, value: str) -> type[T]:
        """The class that ``value`` names. Raises HookError."""
        key, ours = self.hook.key, self.ours
        if value not in ours and "." not in value and ":" not in value:
            forms = f'{one_of(ours)}, or "package.module.Class" or "file.py:Class"'
            raise HookError(f'{key} = "{value}": expected {forms}{nearest(value, ours)}')
        found = self.hook.load(value)
        if not (isinstance(found, type) and issubclass(found, self.base)):
            base = f"{self.base.__module__}.{self.base.__name__}"
            raise HookError(f'{key} = "{value}": it must be a class below {base}')
        for need in self.needs:
            if all(getattr(found, one) is getattr(self.base, one) for one in need.split(" or ")):
                raise HookError(f'{key} = "{value}": it needs a method {need} of its own')
        return found

    def called(self, value: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """``function`` called, which is the class that ``value`` names, or a method of it.

        Of one of the user's, whatever it raises is a HookFailed, but for a ConfigError, which is a line already.
        """
        if value in self.ours:
            return function(*args, **kwargs)
        try:
            return called(self.hook, functools.partial(function, *args, **kwargs))
        except HookFailed as failed:
            if isinstance(failed.__cause__, ConfigError):
                raise failed.__cause__ from None
            raise

    def all_ours(self) -> dict[str, type[T]]:
        """Those that need no path, by name."""
        return {name: self.load(name) for name in self.ours}
