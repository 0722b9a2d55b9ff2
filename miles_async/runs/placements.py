"""The table of placements: who gives actors a place to run, and who looks there from outside of the run.

By path, since nothing of ``miles_async`` imports an actor, and importing this file costs next to nothing. A placement of its
own is a file in ``actors/runtime/placement/`` and a line here; what a configuration may ask of one is in ``places.py``.
"""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from miles_async.config.schema import RunConfig

LOCAL, RAY = "pid", "ray"


class Named(NamedTuple):
    """``placement``: a function of the configuration and the run directory. ``look``: a function that is given what follows the
    kind of a place. ``warm_up``: a function without arguments, whose module costs nothing to import: a launch calls it before
    all else; "": there is nothing that could be begun before the configuration is known. ``keep``: a function of the
    configuration, the run directory, the words of the command line and the stream for what is said, that has the launch itself
    kept there and returns its exit code; "": nobody keeps one."""

    placement: str
    look: str
    warm_up: str = ""
    keep: str = ""


# by the word that a heartbeat's place begins with
PLACEMENTS = {
    LOCAL: Named(
        "actors.runtime.placement.local.placed",
        "actors.runtime.placement.process.look",
        "actors.runtime.placement.fork_server.begin",
    ),
    RAY: Named(
        "actors.runtime.placement.on_ray.placement.RayPlacement",
        "actors.runtime.placement.on_ray.where.look",
        keep="actors.runtime.placement.on_ray.kept.keep",
    ),
}
KEPT = "MILES_ASYNC_KEPT"  # in the environment of a launch that is kept
KINDS = {"local": LOCAL, "ray": RAY}  # what placement.kind says


def load(path: str) -> Any:
    """What a path of the table names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def named(config: RunConfig) -> Named:
    """The line of the table that ``placement.kind`` chooses."""
    return PLACEMENTS[KINDS[config.placement.kind]]


def kind_in(config_file: Path, overrides: Sequence[str]) -> str:
    """What a configuration that was not looked at yet says of ``placement.kind``: good enough to begin with."""
    for override in reversed(overrides):
        name, _, value = override.partition("=")
        if name.strip() == "placement.kind":
            return value.strip().strip("\"'")
    try:
        return str(tomllib.loads(config_file.read_text()).get("placement", {}).get("kind", "local"))
    except (OSError, ValueError, AttributeError):
        return "local"  # what is wrong is said when it is read
