"""Imports without what comes along: what a decorator does in them, and modules of which a function is wanted, and that later.
Either may load far more than the module that uses it."""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any


def _leave_alone(decorated: Any = None, **_: Any) -> Any:
    return (lambda one: one) if decorated is None else decorated


@contextlib.contextmanager
def undecorated(module: Any, name: str) -> Iterator[None]:
    """Inside the ``with``, the decorator ``module.name``, with arguments or without, leaves everything as it is."""
    decorator = getattr(module, name)
    setattr(module, name, _leave_alone)
    try:
        yield
    finally:
        setattr(module, name, decorator)


class _ImportedWhenCalled(types.ModuleType):
    """In the place of a module: its functions are those of the module, which they import at their first call."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def function(*args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*args, **kwargs)

        return function


@contextlib.contextmanager
def imported_when_called(*names: str) -> Iterator[None]:
    """Inside the ``with``, nobody imports the modules ``names``: whoever asks for a function of one gets one that does so when
    it is called. What is imported already stays as it is."""
    with _in_place_of({name: _ImportedWhenCalled(name) for name in names}):
        yield


_OF_DTENSORS = ("torch.distributed.tensor", "torch.distributed.tensor._utils", "torch.distributed._tensor")
_WITH_CHECKPOINTS = ("torch.distributed.fsdp", "torch.distributed.fsdp._shard_utils", "cProfile", "pstats")


class _OfNobody(_ImportedWhenCalled):
    """The same, and its classes have no instances."""

    def __getattr__(self, name: str) -> Any:
        if not name.lstrip("_")[:1].isupper():
            return super().__getattr__(name)
        setattr(self, name, found := type(name, (), {}))
        return found


@contextlib.contextmanager
def without_dtensors() -> Iterator[None]:
    """Inside the ``with``, torch's and Megatron's distributed checkpoints are imported for a process that has no DTensor, and a
    tenth of what they load otherwise. What is imported already stays as it is."""
    with imported_when_called(*_WITH_CHECKPOINTS), _in_place_of({name: _OfNobody(name) for name in _OF_DTENSORS}):
        yield


@contextlib.contextmanager
def absent(*names: str) -> Iterator[None]:
    """Inside the ``with``, the modules ``names`` are not installed, for whoever gets by without. What is imported already stays
    as it is."""
    with _in_place_of(dict.fromkeys(names)):
        yield


@contextlib.contextmanager
def _in_place_of(stand_ins: dict[str, Any]) -> Iterator[None]:
    missing = {name: stand_in for name, stand_in in stand_ins.items() if name not in sys.modules}
    sys.modules.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]
