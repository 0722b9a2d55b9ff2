"""Runs on a Ray cluster whose machines come and go: engines come with a machine and leave one that is taken back, at no cost to
a group; where nobody else has room for an engine the run says so within the watchdog's time; and Ray starts a launch again."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from launching import (
    RECORDING,
    TINY,
    ask_status,
    begin,
    events,
    left_behind,
    metrics,
    summary,
    wait_for_step,
    wait_until,
    write_config,
)
from recorded_runs import check_that_nothing_is_lost_or_twice

from actors.runtime.placement.on_ray.placement import namespace_of
from benchmarks.lib.ray_machines import ROOT, RayMachines, left_in_ray, ray_machines
from miles_async.monitor.record_lines import read_transitions
from miles_async.runs import state

pytestmark = pytest.mark.cluster
ON_RAY: dict[str, Any] = {"kind": "ray", "engine.resources.spot": 1.0}
FIRST = "127.0.0.2"


@pytest.fixture
def machines() -> Iterator[RayMachines]:
    with ray_machines(ROOT / "tests" / "support") as found:
        found.add(FIRST, spot=1)
        yield found


def begun(tmp_path: Path, placement: dict[str, Any], **run: Any) -> tuple[subprocess.Popen[str], Path]:
    """A run with one engine, on the only machine for engines; it trains."""
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 4000} | run,
        engine={"num_engines": 1},
        placement=ON_RAY | placement,
        topology=RECORDING,
    )
    process = begin(config, tmp_path / "run")
    wait_for_step(tmp_path / "run", 2, process)
    return process, tmp_path / "run"


def test_engines_come_with_a_machine_and_leave_one_that_is_taken_back(machines: RayMachines, tmp_path: Path) -> None:
    process, run_dir = begun(tmp_path, {"elastic.max_engines": 2})
    try:
        spot = machines.add(spot=1)
        wait_until(lambda: len(events(run_dir, "engine_up")) == 2, "an engine to come", process)
        [came] = events(run_dir, "scaled")
        assert came["data"] == {"engines": 2, "workers": 2, "starts": ["engine-1"], "leaves": []}
        machines.take_back(spot)
        wait_until(lambda: events(run_dir, "left"), "it to leave", process)
        assert events(run_dir, "left")[0]["data"]["actor"] == "engine-1"
        step = max(line["step"] for line in metrics(run_dir))
        wait_for_step(run_dir, step + 4, process)
        assert len(events(run_dir, "scaled")) == 2  # and none comes back to it
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert not events(run_dir, "restarted")
    assert not [line for line in read_transitions(run_dir) if line.kind == "failed"]
    check_that_nothing_is_lost_or_twice(run_dir, steps=None, batch=8, max_lag=2)
    assert left_behind(run_dir) == [] and left_in_ray(machines.address, namespace_of(run_dir)) == []


def test_a_launch_that_ray_keeps_and_that_is_killed_is_started_again_and_ends_the_run_for_its_command(
    machines: RayMachines, tmp_path: Path
) -> None:
    process, run_dir = begun(tmp_path, {"launch_restarts": 2}, num_steps=16)
    try:
        found = state.read(run_dir)
        assert found is not None and found.pid not in (None, process.pid)
        os.kill(int(found.pid), signal.SIGKILL)
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "miles-async: the launch was killed by signal 9" in out
    assert len(list((run_dir / "launches").glob("*.toml"))) == 2
    check_that_nothing_is_lost_or_twice(run_dir, steps=16, batch=8, max_lag=2)
    assert left_in_ray(machines.address, namespace_of(run_dir)) == []


def test_an_engine_whose_machine_is_lost_and_that_has_room_nowhere_is_named_within_the_watchdogs_time(
    machines: RayMachines, tmp_path: Path
) -> None:
    process, run_dir = begun(tmp_path, {}, watchdog_s=6.0, watchdog_exit=True)
    try:
        machines.lose(FIRST)
        _, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 1, err
    said = "engine-0 has no place yet: it asks for CPU 1, spot 1"
    assert said in err.strip().splitlines()[-1] and "nothing moved for " in summary(run_dir)["reason"]
    assert left_behind(run_dir) == [] and left_in_ray(machines.address, namespace_of(run_dir)) == []


def test_a_learner_goes_on_with_fewer_ranks_where_a_machine_of_it_is_lost_and_has_all_again_when_there_is_room(
    machines: RayMachines, tmp_path: Path
) -> None:
    for_ranks = [machines.add(train=1) for _ in range(2)]
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 4000},
        engine={"num_engines": 1},
        learner=TINY["learner"] | {"num_ranks": 2},
        checkpoint=TINY["checkpoint"] | {"save_interval": 4},
        placement=ON_RAY
        | {"learner.resources.train": 1.0, "elastic_learner.min_ranks": 1, "elastic_learner.wait_s": 2.0},
        topology=RECORDING,
    )
    run_dir = tmp_path / "run"
    process = begin(config, run_dir)
    try:
        wait_for_step(run_dir, 6, process)
        where = {actor["actor"]: actor.get("ray", "").partition("@")[2] for actor in ask_status(run_dir)["actors"]}
        assert {where["learner-0"], where["learner-1"]} == set(for_ranks)
        machines.lose(where["learner-0"])  # the broadcaster is there, too
        wait_until(lambda: len(events(run_dir, "learner_resized")) == 1, "a smaller learner", process)
        [fewer] = [event["data"] for event in events(run_dir, "learner_resized")]
        assert (fewer["was"], fewer["ranks"], fewer["dp_size"]) == (2, 1, 1)
        assert fewer["lost"] == [where["learner-0"]] and fewer["from_step"] >= 4
        wait_for_step(run_dir, step_of(run_dir) + 6, process)
        assert ask_status(run_dir)["learner"] == {"ranks": 1, "num_ranks": 2}
        served = {actor["actor"]: actor.get("ray", "").partition("@")[2] for actor in ask_status(run_dir)["actors"]}
        assert served["broadcaster"] == served["learner-0"] == where["learner-1"]
        machines.add(train=1)
        wait_until(lambda: len(events(run_dir, "learner_resized")) == 2, "all ranks", process)
        more = events(run_dir, "learner_resized")[1]["data"]
        assert (more["was"], more["ranks"]) == (1, 2)
        wait_for_step(run_dir, step_of(run_dir) + 6, process)
        assert ask_status(run_dir)["learner"] == {"ranks": 2, "num_ranks": 2}
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    sizes = [line["values"]["dp_size"] for line in metrics(run_dir) if "dp_size" in line["values"]]
    assert sorted(set(sizes)) == [1.0, 2.0] and sizes[0] == sizes[-1] == 2.0
    check_that_nothing_is_lost_or_twice(run_dir, steps=None, batch=8, max_lag=2)
    assert left_in_ray(machines.address, namespace_of(run_dir)) == []


def step_of(run_dir: Path) -> int:
    return max(line["step"] for line in metrics(run_dir))
