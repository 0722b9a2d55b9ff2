"""Imports without what a decorator does in them: it may load far more than the module that uses it."""

from __future__ import annotations

import contextlib
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
