"""How a fork server imports what the actors forked from it need: once, and for good.

Promises: a fork server whose launch is gone ends at once.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
from collections.abc import Iterator

import setproctitle

from actors.runtime.placement.fork_server import LAUNCH_PID
from bus.server import die_with_parent


@contextlib.contextmanager
def for_good(title: str) -> Iterator[None]:
    """What is imported inside stays in every process forked from this one, which is called ``title`` from now on."""
    gc.disable()  # looking for garbage among it again and again took a fifth of the time
    die_with_parent(signal.SIGKILL)()  # by itself it would look for its launch only when all is imported
    # taken out: what the actors start is not this launch's to end
    if os.environ.pop(LAUNCH_PID, str(os.getppid())) != str(os.getppid()):
        os._exit(1)  # it was gone before that
    setproctitle.setproctitle(title)
    yield
    # the collector of a forked process leaves alone what is here: looking at it would copy it, and take a tenth of a second
    gc.freeze()
    gc.enable()


def import_all(modules: tuple[str, ...]) -> None:
    """In their order."""
    for module in modules:
        importlib.import_module(module)
