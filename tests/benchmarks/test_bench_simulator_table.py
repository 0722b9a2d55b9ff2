"""`bench simulator_table`: a run and its prediction have one world."""

from __future__ import annotations

import pytest

from benchmarks.bench_simulator_table import CONFIG, HELD_OUT
from benchmarks.lib.predicted.world import SAMPLES, VARIABLE, Known, World, from_environment, to_environment
from benchmarks.lib.timed_run import PLACE
from miles_async.cli.load import parse
from miles_async.simulation.fits import lengths_of


@pytest.mark.parametrize("world", [World(), World(sigma=1.1, salt=3)])
def test_lengths_are_as_stated_and_the_same_for_the_engines_and_the_simulation(world: World) -> None:
    groups = [Known(world, 7).group(position) for position in range(1500)]
    assert groups[5] == (7, [world.draw(5 * SAMPLES + n) for n in range(SAMPLES)], 0.0, False)
    fit = lengths_of([group.lengths for group in groups])
    assert fit.mean == pytest.approx(world.mean, rel=0.06) and fit.sigma == pytest.approx(world.sigma, rel=0.06)
    assert fit.alike == pytest.approx(world.alike, abs=0.05)
    assert groups[0] != Known(world._replace(salt=9), 7).group(0)


def test_the_environment_hands_the_world_on(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(kind="pareto", salt=2)
    for name, value in to_environment(world).items():
        assert name == VARIABLE
        monkeypatch.setenv(name, value)
    assert from_environment() == world


def test_every_held_out_configuration_is_one_that_a_run_takes() -> None:
    for held in HELD_OUT:
        settings = [*held.settings, f"engine.num_engines={held.engines}"]
        assert parse(CONFIG.replace(PLACE, "builtin:digits"), settings, check=False).engine.num_engines == held.engines
    assert len(HELD_OUT) >= 5
