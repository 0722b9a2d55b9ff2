"""What each launch of a run was: ``launches/N.toml``, its whole configuration, and ``launches/N.json``, its provenance.

Promises: a launch is written before anything of it runs and never changed; what is read of an earlier one may be damaged,
and then an older one takes its place.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import msgspec

from miles_async.config import RunConfig
from miles_async.config_load import dump
from miles_async.durable import write_whole
from miles_async.provenance import Provenance
from miles_async.train.checkpoint import CheckpointError, latest, read_state

DIRECTORY = "launches"
CONFIG_FILE = "config.toml"  # of the newest launch
# how many incarnations a launch may have had whose count is lost: they have to be new, not next to each other
UNKNOWN_RESTARTS = 10_000


def add(run_dir: Path, config: RunConfig, run_id: str, incarnation: int) -> int:
    """Put the launch that begins now on record; returns its number, 1 for the first. Raises OSError."""
    directory = run_dir / DIRECTORY
    directory.mkdir(mode=0o700, exist_ok=True)
    number = max(_numbers(directory), default=0) + 1
    about = Provenance.of_this_process(number, run_id, incarnation)
    write_whole(directory / f"{number}.toml", dump(config).encode())
    write_whole(directory / f"{number}.json", msgspec.json.format(msgspec.json.encode(about)) + b"\n")
    return number


def last_config(run_dir: Path) -> dict[str, Any] | None:
    """The TOML table of the newest launch that one can be read of; None: there is none."""
    directory = run_dir / DIRECTORY
    older = [directory / f"{number}.toml" for number in sorted(_numbers(directory), reverse=True)]
    for path in (run_dir / CONFIG_FILE, *older):
        try:
            table = tomllib.loads(path.read_bytes().decode())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(table.get("model"), dict):  # an emptied file is TOML, too
            return table
    return None


def remembered(run_dir: Path) -> dict[str, Any] | None:
    """Id and incarnation of the run, where the file that says so is lost: from its launches, else from its checkpoint."""
    directory = run_dir / DIRECTORY
    for number in sorted(_numbers(directory), reverse=True):
        try:
            found = msgspec.json.decode((directory / f"{number}.json").read_bytes(), type=Provenance)
        except (OSError, ValueError, RecursionError):
            continue
        return {"run_id": found.run_id, "incarnation": found.incarnation + UNKNOWN_RESTARTS}
    try:
        checkpoint = latest(run_dir / "checkpoints")
        extra = read_state(checkpoint).extra if checkpoint else {}
    except (CheckpointError, OSError):
        return None
    if not isinstance(extra.get("run_id"), str) or not isinstance(extra.get("incarnation"), int):
        return None
    return {"run_id": extra["run_id"], "incarnation": extra["incarnation"] + UNKNOWN_RESTARTS}


def _numbers(directory: Path) -> list[int]:
    """Of the launches that are on record, whole or not."""
    return [int(path.stem) for path in directory.glob("*.toml") if path.stem.isascii() and path.stem.isdigit()]
