"""What a directory is of: a run, a replay of one, a simulation, a sweep. Each has a directory of its own.

Promises: looking changes nothing; who would begin something of another kind there is refused with one line, before anything is
written.
"""

from __future__ import annotations

from pathlib import Path

from miles_async.config.schema import ConfigError, RunConfig
from miles_async.config.words import NONE
from miles_async.runs import launches

RUN, REPLAY, SIMULATION, SWEEP = "a run", "a replay", "a simulation", "a sweep"
SWEEP_FILE = "sweep.toml"  # of a sweep's directory: what it was begun with


def kind_of(directory: Path) -> str | None:
    """What lies there; None: none of these."""
    if (directory / SWEEP_FILE).exists():
        return SWEEP
    if launches.is_simulation(directory):
        return SIMULATION
    if not ((directory / launches.DIRECTORY).exists() or (directory / launches.CONFIG_FILE).exists()):
        return None
    replayed = (launches.last_config(directory) or {}).get("replay")
    return REPLAY if isinstance(replayed, dict) and replayed.get("run", NONE) != NONE else RUN


def kind_of_config(config: RunConfig) -> str:
    """What a launch of ``config`` is."""
    return RUN if config.replay.run is None else REPLAY


def refuse_another(directory: Path, kind: str) -> None:
    """Raises ConfigError: something of another kind than ``kind`` lies there."""
    if (found := kind_of(directory)) not in (None, kind):
        raise ConfigError(f"{directory} holds {found}: give {kind} a directory of its own")
