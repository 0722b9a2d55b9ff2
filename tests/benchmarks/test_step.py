"""`bench step`: the table of layers names what there is, the innermost name counts, and a real run is accounted for."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
from launching import write_config
from typer.testing import CliRunner

from benchmarks import bench_step
from benchmarks.bench_step import ROOT, Measured, Plan
from benchmarks.lib.layers import LAYERS, OTHER, LayerTable
from miles_async.cli.app import app

TABLE = LayerTable({"broad": ("bus",), "narrow": ("bus.codec",), "one": ("bus.codec:Codec.pack",)})


@pytest.mark.parametrize("name", [name for names in LAYERS.values() for name in names])
def test_every_module_and_function_of_the_table_exists(name: str) -> None:
    module, _, path = name.partition(":")
    assert importlib.util.find_spec(module) is not None
    if path:
        found = importlib.import_module(module)
        for attribute in path.split("."):
            found = getattr(found, attribute)


def test_the_longest_name_counts() -> None:
    assert TABLE.layer_of("bus.client", "Bus.read") == "broad"
    assert TABLE.layer_of("bus.codec", "unpack") == "narrow"
    assert TABLE.layer_of("bus.codec", "Codec.pack.<locals>.inner") == "one"
    assert TABLE.layer_of("bus.codec", "Codec.packed") == "narrow"
    assert TABLE.layer_of("busy", "wait") is None


def made(module: str, body: str) -> Callable[..., FrameType]:
    """A function ``f`` of ``module``."""
    names = {"__name__": module, "sys": sys}
    exec(f"def f(*inner): return {body}", names)
    return names["f"]  # pyright: ignore[reportReturnType]


def test_the_innermost_frame_that_is_named_counts_and_the_innermost_function_of_ours_is_told() -> None:
    library = made("numpy", "sys._getframe()")
    caller = made("bus.codec", "inner[0]()")
    actor = made("actors.dealer", "inner[0](*inner[1:])")
    assert TABLE.place(actor(caller, library)) == ("narrow", "bus.codec:f")
    assert TABLE.place(actor(library)) == (OTHER, "actors.dealer:f")
    assert TABLE.place(library()) == (OTHER, "?")
    assert TABLE.place(None) == (OTHER, "?")


def test_two_checkouts_are_measured_in_turns_and_compared_by_their_medians(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, order = Plan(None, [], 8), list[Path]()
    figures = {tmp_path: [4.0, 8.0, 9.0], ROOT: [2.0, 1.0, 4.0]}

    def measure(_: Plan, root: Path, environment: dict[str, str]) -> Measured:
        assert environment["PYTHONPATH"].startswith(str(root))
        order.append(root)
        return Measured(Counter(learner=figures[root][order.count(root) - 1], router=1.0), 0.0, 1.0, {})

    monkeypatch.setattr(bench_step, "measure", measure)
    found = bench_step.compare(plan, tmp_path, 3)
    assert order == [tmp_path, ROOT, ROOT, tmp_path, tmp_path, ROOT]
    assert found["learner"] == {"before": 8.0, "now": 2.0, "ratio": 0.25}
    assert found["router"]["ratio"] == 1.0
    assert found["all"] == {"before": 9.0, "now": 3.0, "ratio": 0.333}


def test_the_cpu_time_of_a_real_run_is_accounted_for_by_role_and_by_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEP_CONFIG", str(write_config(tmp_path)))
    monkeypatch.setenv("STEP_STEPS", "40")  # so many that every layer is seen at work
    monkeypatch.setenv("STEP_SET", "rollout.rollout_batch_size=4 checkpoint.save_interval=100")
    printed = CliRunner().invoke(app, ["bench", "step", "--json"], catch_exceptions=False)
    assert printed.exit_code == 0, printed.output
    found = json.loads(printed.stdout)
    assert found["samples_per_step"] == 16 and "rollout.rollout_batch_size=4" in found["settings"]
    roles = found["us_per_sample"]
    assert {"launch", "redis", "learner", "engine", "rollout", "router", "dealer", "broadcaster"} <= roles.keys()
    assert all(roles[name] > 0 for name in ("learner", "engine", "rollout"))
    assert found["roles"]["redis"]["layers"] == {}
    assert {"forward", "backward"} <= found["roles"]["learner"]["layers"].keys()
    assert {"forward"} <= found["roles"]["engine"]["layers"].keys()
