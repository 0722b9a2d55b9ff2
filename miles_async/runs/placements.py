"""The table of placements: who gives actors a place to run, and who looks there from outside of the run.

By path, since nothing of ``miles_async`` imports an actor. A placement of its own is a file in ``actors/runtime/placement/``
and a line here.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

LOCAL = "pid"


class Named(NamedTuple):
    """``placement``: a class, without arguments. ``look``: a function that is given what follows the kind of a place.
    ``warm_up``: a function without arguments, whose module costs nothing to import: a launch calls it before all else."""

    placement: str
    look: str
    warm_up: str


# by the word that a heartbeat's place begins with
PLACEMENTS = {
    LOCAL: Named(
        "actors.runtime.placement.local.LocalPlacement",
        "actors.runtime.placement.process.look",
        "actors.runtime.placement.fork_server.begin",
    ),
}


def load(path: str) -> Any:
    """What a path of the table names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
