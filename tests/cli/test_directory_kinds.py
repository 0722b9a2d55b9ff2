"""A run, a replay, a simulation and a sweep have a directory each: another one's is refused, and stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from simulations import settings
from typer.testing import CliRunner

import miles_async as ma
from miles_async.cli.app import app
from miles_async.cli.load import load
from miles_async.config.schema import ConfigError
from miles_async.runs import launches
from miles_async.runs.kinds import REPLAY, RUN, SIMULATION, SWEEP, kind_of, refuse_another
from miles_async.simulation.directory import simulate_into
from miles_async.sweeping.grid import Sweep
from miles_async.sweeping.runs import claim

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.toml"


def a_run(directory: Path) -> None:
    directory.mkdir()
    launches.add(directory, load(QUICKSTART, []), "run-1", 1)


def a_replay(directory: Path) -> None:
    directory.mkdir()
    launches.add(directory, load(QUICKSTART, ["replay.run=/runs/first"], check=False), "run-2", 1)


def a_simulation(directory: Path) -> None:
    simulate_into(settings("simulation.num_steps=2"), directory)


def a_sweep(directory: Path) -> None:
    claim(Sweep(directory=str(directory), config="run.toml"), "[sweep]\n")


MADE: dict[str, Callable[[Path], None]] = {RUN: a_run, REPLAY: a_replay, SIMULATION: a_simulation, SWEEP: a_sweep}


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sim.toml").write_text("[simulation]\nnum_steps = 2\n")
    (tmp_path / "grid.toml").write_text(
        '[sweep]\nsimulation = "sim.toml"\ndirectory = "there"\n[grid]\n"simulation.seed" = [1]\n'
    )
    return tmp_path / "there"


def everything(directory: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.rglob("*") if path.is_file()}


LAUNCH = ("launch", str(QUICKSTART), "--run-dir", "there")
COMMANDS = {
    "launch": (RUN, (*LAUNCH, "--set", "placement.kind=ray")),  # of which nothing is begun before it is looked at
    "dry run": (RUN, (*LAUNCH, "--dry-run")),
    "recipe": (RUN, (*LAUNCH, "--slurm", "--dry-run")),
    "replay": (REPLAY, ("replay", "first", "--run-dir", "there")),
    "simulate": (SIMULATION, ("simulate", "sim.toml", "--run-dir", "there")),
    "sweep": (SWEEP, ("sweep", "grid.toml")),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_directory_of_another_kind_is_one_line_and_stays_as_it_is(there: Path, command: str) -> None:
    own, words = COMMANDS[command]
    for kind, make in MADE.items():
        if kind == own:
            continue
        make(there)
        before = everything(there)
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2 and done.stdout == "", done.output
        (line,) = done.stderr.splitlines()
        assert line.startswith("miles-async: ") and line.endswith(
            f"there holds {kind}: give {own} a directory of its own"
        )
        assert everything(there) == before
        there = there.rename(there.with_name(kind)).with_name("there")


def test_from_python_it_is_refused_the_same(there: Path) -> None:
    a_simulation(there)
    before = everything(there)
    for config in (QUICKSTART, load(QUICKSTART, [])):
        with pytest.raises(ConfigError, match="holds a simulation: give a run a directory of its own"):
            ma.launch(config, run_dir=there)
    assert everything(there) == before


@pytest.mark.parametrize("kind", MADE)
def test_its_own_kind_goes_on_there_and_an_empty_directory_is_anybodys(tmp_path: Path, kind: str) -> None:
    for own in MADE:
        refuse_another(tmp_path / "there", own)
        refuse_another(tmp_path, own)
    MADE[kind](tmp_path / "there")
    assert kind_of(tmp_path / "there") == kind
    refuse_another(tmp_path / "there", kind)
