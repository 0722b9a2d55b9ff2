"""What a sweep asks for: a file, and the cells of its grid. Pure.

    [sweep]                              [set]                        [grid]
    config = "run.toml"                  "run.num_steps" = 100        "staleness.max_lag" = [0, 2, 4]
    directory = "sweeps/lag"                                          "staleness.policy" = ["fifo", "drop"]
    jobs = 1                                                          "run.seed" = [1, 2, 3]

In the place of ``config`` there may be ``replay = "runs/NAME"`` or ``simulation = "sim.toml"``, whose keys are a simulation's.

Promises: every combination of the grid's values is one cell with a name of its own, in the order of the file; what is wrong
with the file is one line that names the key and the nearest there is.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from miles_async.config.schema import ConfigError, RunConfig, Section
from miles_async.config.typed import any_name, key_types, unknown
from miles_async.config.words import nearest, show, toml
from miles_async.simulation.settings import SimulationConfig

SEEDS = ("run.seed", "simulation.seed")  # cells that differ in them alone are repeats of one another
TABLES = ("sweep", "set", "grid")
MAX_NAME = 120
_PLAIN = re.compile(r"[^A-Za-z0-9_.+-]+")


class Sweep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``config``: a run's TOML file, ``replay``: a recorded run's directory, or ``simulation``: a simulation's TOML file.
    ``directory``: where the cells lie."""

    directory: str
    config: str = ""
    replay: str = ""
    simulation: str = ""
    jobs: Annotated[int, msgspec.Meta(ge=1)] = 1  # cells at a time
    fixed: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}


class Cell(msgspec.Struct, frozen=True):
    """One run of the sweep. ``values``: of the grid's keys."""

    name: str
    values: dict[str, Any]
    overrides: tuple[str, ...]


def parse(text: str, source: str, base: Path) -> Sweep:
    """The sweep in a TOML text; its paths mean "beside the file". Raises ConfigError, one line."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source}: {error}") from None
    for name in tables:
        if name not in TABLES:
            raise ConfigError(
                f'{source}: unknown table "{name}"{nearest(name, TABLES)} (there are: {", ".join(TABLES)})'
            )
    about = tables.get("sweep", {})
    names = [field for field in Sweep.__struct_fields__ if field not in ("fixed", "grid")]
    for name in about:
        if name not in names:
            raise ConfigError(
                f'{source}: unknown key "sweep.{name}"{nearest(name, names)} (there are: {", ".join(names)})'
            )
    fixed, grid = tables.get("set", {}), tables.get("grid", {})
    _check_keys(fixed, grid, source, SimulationConfig if "simulation" in about else RunConfig)
    try:
        sweep = msgspec.convert(about | {"fixed": fixed, "grid": grid}, Sweep)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: [sweep]: {error}") from None
    if sum(map(bool, (sweep.config, sweep.replay, sweep.simulation))) != 1:
        raise ConfigError(
            f'{source}: sweep.config = "run.toml", sweep.replay = "runs/NAME", sweep.simulation = "sim.toml": one of the '
            "three, it says what a cell is"
        )
    placed = {
        name: str((base / value).resolve())
        for name in ("directory", "config", "replay", "simulation")
        if (value := getattr(sweep, name))
    }
    return msgspec.structs.replace(sweep, **placed)


def _check_keys(fixed: Mapping[str, Any], grid: Mapping[str, Any], source: str, whole: type[Section]) -> None:
    known = key_types(whole)
    for key, value in (*fixed.items(), *grid.items()):
        if isinstance(value, dict):
            raise ConfigError(
                f'{source}: {key}: write the key in quotes, as one word: "{key}.{next(iter(value), "key")}" = ...'
            )
        if key not in known and any_name(key) not in known:
            raise ConfigError(f"{source}: {unknown(key, whole)}")
    if not grid:
        raise ConfigError(f"{source}: [grid] is empty: a sweep has at least one key with the values that it takes")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{source}: grid.{key} = {show(values)}: expected a list of the values that it takes")
        if key in fixed:
            raise ConfigError(f"{source}: {key} is in [set] and in [grid]: it is fixed or varied")
        if len({toml(value) for value in values}) < len(values):
            raise ConfigError(f"{source}: grid.{key} = {show(values)}: it names a value twice")


def cells(sweep: Sweep) -> list[Cell]:
    """All of them, the last key varying fastest. Raises ConfigError: two would have one name."""
    always = tuple(f"{key}={toml(value)}" for key, value in sweep.fixed.items())
    found = []
    for chosen in itertools.product(*sweep.grid.values()):
        values = dict(zip(sweep.grid, chosen, strict=True))
        own = tuple(f"{key}={toml(value)}" for key, value in values.items())
        found.append(Cell(_name(values), values, (*always, *own)))
    names = [cell.name for cell in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(
            f"two cells of the sweep would both be called {twice}: values that differ in a plain letter or digit are told apart"
        )
    return found


def _name(values: Mapping[str, Any]) -> str:
    return ",".join(_words(values))[:MAX_NAME]


def _words(values: Mapping[str, Any]) -> Iterator[str]:
    leaves = [key.rpartition(".")[2] for key in values]
    for key, value in values.items():
        leaf = key.rpartition(".")[2]
        short = leaf if leaves.count(leaf) == 1 else key
        yield f"{short}={_PLAIN.sub('-', value if isinstance(value, str) else toml(value)).strip('-')}"


def group_of(cell: Cell) -> str:
    """What the cell has in common with its repeats under other seeds."""
    return _name({key: value for key, value in cell.values.items() if key not in SEEDS}) or "all"
