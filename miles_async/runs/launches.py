"""What each launch of a run was: ``launches/N.toml``, its whole configuration, and ``launches/N.json``, its provenance.

Promises: a launch is written before anything of it runs and never changed; what is read of an earlier one may be damaged,
and then an older one takes its place.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from miles_async.config.schema import RunConfig
from miles_async.config.toml import dump
from miles_async.disk.durable import write_whole
from miles_async.runs.provenance import Provenance

DIRECTORY = "launches"
CONFIG_FILE = "config.toml"  # of the newest launch
SIMULATION_FILE = "sim.toml"  # of a simulation's directory, which has no launches


def add(run_dir: Path, config: RunConfig, run_id: str, incarnation: int) -> int:
    """Put the launch that begins now on record; returns its number, 1 for the first. Raises OSError."""
    directory = run_dir / DIRECTORY
    directory.mkdir(mode=0o700, exist_ok=True)
    number = max(numbers(directory), default=0) + 1
    about = Provenance.of_this_process(number, run_id, incarnation)
    write_whole(directory / f"{number}.toml", dump(config).encode())
    write_whole(directory / f"{number}.json", msgspec.json.format(msgspec.json.encode(about)) + b"\n")
    return number


def last_config(run_dir: Path) -> dict[str, Any] | None:
    """The TOML table of the newest launch that one can be read of; None: there is none."""
    directory = run_dir / DIRECTORY
    older = [directory / f"{number}.toml" for number in sorted(numbers(directory), reverse=True)]
    for path in (run_dir / CONFIG_FILE, *older):
        try:
            table = tomllib.loads(path.read_bytes().decode())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(table.get("model"), dict):  # an emptied file is TOML, too
            return table
    return None


def provenances(run_dir: Path) -> Iterator[Provenance]:
    """Of the launches that one can be read of, the newest first."""
    directory = run_dir / DIRECTORY
    for number in sorted(numbers(directory), reverse=True):
        try:
            yield msgspec.json.decode((directory / f"{number}.json").read_bytes(), type=Provenance)
        except (OSError, ValueError, RecursionError):
            continue


def is_simulation(directory: Path) -> bool:
    """Whether a simulation lies there, and no run."""
    return (directory / SIMULATION_FILE).is_file() and not (directory / DIRECTORY).is_dir()


def configured(directory: Path) -> dict[str, Any] | None:
    """The TOML table of the run there, or of the simulation; None: there is neither."""
    if not is_simulation(directory):
        return last_config(directory)
    try:
        return tomllib.loads((directory / SIMULATION_FILE).read_bytes().decode())
    except (OSError, ValueError, RecursionError):
        return None


def numbers(directory: Path) -> list[int]:
    """The numbers of the launches that are on record, whole or not."""
    return [int(path.stem) for path in directory.glob("*.toml") if path.stem.isascii() and path.stem.isdigit()]
