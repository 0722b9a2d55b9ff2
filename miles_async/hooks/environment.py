"""The environment of this process, changed for as long as a block lasts.

Promises: at its end every variable that was changed is as it was, or gone: whatever this process starts later, a launch above
all, would take it for somebody's word. Importing this file costs next to nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping


@contextlib.contextmanager
def environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """What is read, or started, inside the ``with`` finds ``wanted``."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
