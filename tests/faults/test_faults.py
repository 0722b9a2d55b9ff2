"""kill -9 of every kind of process: it is replaced, the run goes on, nothing is lost, nothing is trained twice."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from launching import (
    RECORDING,
    TINY,
    begin,
    events,
    first_prompts,
    kill,
    kill_at_step,
    launch,
    left_behind,
    metrics,
    recording_environment,
    summary,
    trained_groups,
    trained_prompts,
    wait_for_step,
    wait_until,
    write_config,
)
from recorded_runs import check_that_nothing_is_lost_or_twice, check_that_the_weights_are_those_of_the_recorded_batches

STEPS_BETWEEN = 6


def run_with_kills(
    config: Path, run_dir: Path, victims: list[str], *, stop: bool = False
) -> subprocess.CompletedProcess[str]:
    """Launch, kill the victims one after the other while the run trains, wait for its end. ``stop``: a few steps after the
    last one it is stopped."""
    process = begin(config, run_dir)
    step = 3
    for number, victim in enumerate(victims, 1):
        wait_for_step(run_dir, step, process)
        kill(run_dir, victim)
        restarts = f"restart number {number}, of {victim}"
        wait_until(lambda n=number: len(events(run_dir, "restarted")) >= n, restarts, process)
        step = max(line["step"] for line in metrics(run_dir)) + STEPS_BETWEEN
    if stop:
        wait_for_step(run_dir, step, process)
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=180)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 4000},
        checkpoint={"save_interval": 20, "save_hf": True},
        staleness={"max_lag": 2},
        topology=RECORDING,
    )


def test_every_kind_of_process_is_replaced_and_the_weights_are_those_of_the_recorded_batches(
    config_file: Path, tmp_path: Path
) -> None:
    victims = ["rollout-0", "engine-1", "router", "redis", "broadcaster", "learner-0", "dealer"]
    result = run_with_kills(config_file, tmp_path / "run", victims, stop=True)
    assert result.returncode == 130, result.stderr
    restarted = {event["data"]["actor"]: event["data"]["cause"] for event in events(tmp_path / "run", "restarted")}
    assert list(restarted) == victims
    assert restarted["redis"] == "redis: killed by signal 9"  # in the words that any other has
    check_that_nothing_is_lost_or_twice(tmp_path / "run", steps=None, batch=8, max_lag=2)

    check_that_the_weights_are_those_of_the_recorded_batches(config_file, tmp_path / "run")


def test_a_learner_killed_in_the_middle_of_a_checkpoint_ends_with_the_same_bits(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 25},
        checkpoint={"save_interval": 10, "save_hf": True},
        topology={"learner": "recording_learner.LearnerKilledWhileSaving"},
    )
    run_dir = tmp_path / "run"
    result = launch(config, run_dir, env=recording_environment())
    assert result.returncode == 0, result.stderr
    assert (run_dir / "killed-at-10").exists() and (run_dir / "killed-at-20").exists()
    assert len(events(run_dir, "restarted")) == 2
    # from nothing the first time (no checkpoint was whole), from version 10 the second time
    assert [event["data"]["version"] for event in events(run_dir, "learner_ready")] == [0, 0, 10]
    check_that_nothing_is_lost_or_twice(run_dir, steps=25, batch=8, max_lag=2)
    check_that_the_weights_are_those_of_the_recorded_batches(config, run_dir)


@pytest.mark.parametrize("split", ["", "pipeline_parallel_size", "context_parallel_size"])
def test_the_learner_ranks_restart_together(tmp_path: Path, split: str) -> None:
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 16},
        learner={"lr": 1e-3, "num_ranks": 2} | ({split: 2} if split else {}),
        checkpoint={"save_interval": 5, "save_hf": False},
        topology=RECORDING,
    )
    result = run_with_kills(config, tmp_path / "run", ["learner-1"])
    assert result.returncode == 0, result.stderr
    check_that_nothing_is_lost_or_twice(tmp_path / "run", steps=16, batch=8, max_lag=2)


def test_an_actor_that_dies_too_often_ends_the_run_with_its_name_and_cause(tmp_path: Path) -> None:
    config = write_config(tmp_path, run=TINY["run"] | {"num_steps": 400, "max_restarts": 0}, topology=RECORDING)
    run_dir = tmp_path / "run"
    process = begin(config, run_dir)
    wait_for_step(run_dir, 2, process)
    kill(run_dir, "engine-1")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "engine-1: killed by signal 9" in err
    assert summary(run_dir)["status"] == "failed" and summary(run_dir)["balanced"]
    assert left_behind(run_dir) == []

    steps = max(line["step"] for line in metrics(run_dir)) + 4
    result = launch(config, run_dir, "--set", f"run.num_steps={steps}", env=recording_environment())
    assert result.returncode == 0, result.stderr
    assert summary(run_dir)["balanced"]


def test_a_redis_that_lost_its_end_under_a_newer_checkpoint_trains_nothing_twice(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 400},
        checkpoint={"save_interval": 2, "save_hf": False},
        staleness={"policy": "recycle", "max_lag": 1, "capacity": 4 * 8},
        topology=RECORDING,
    )
    run_dir = tmp_path / "run"
    kill_at_step(config, run_dir, 20)
    # one file up to Redis 6.2; from 7 on a directory of which the incremental one grows
    log = max((run_dir / "redis").rglob("*.aof"), key=lambda path: path.stat().st_size)
    with log.open("r+b") as file:
        file.truncate(log.stat().st_size * 6 // 10)  # the power cut

    steps = max(trained_groups(run_dir)) + 4
    result = launch(config, run_dir, "--set", f"run.num_steps={steps}", env=recording_environment())
    assert result.returncode == 0, result.stderr
    assert events(run_dir, "resumed")[-1]["data"]["reconciled_groups"] > 0  # else nothing was lost, nothing shown
    check_that_nothing_is_lost_or_twice(run_dir, steps=steps, batch=8, max_lag=1)
    assert set(trained_prompts(run_dir).values()) == {1}  # also of those that were dealt again
    assert any(not group.group_id.endswith("-0") for groups in trained_groups(run_dir).values() for group in groups)


def test_a_checkpoint_older_than_what_the_ledger_has_forgotten_is_refused_with_one_line(tmp_path: Path) -> None:
    config = write_config(tmp_path, checkpoint=TINY["checkpoint"] | {"keep": 1}, topology=RECORDING)
    assert launch(config, tmp_path / "run", env=recording_environment()).returncode == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    result = launch(config, tmp_path / "run", "--set", "run.num_steps=6", env=recording_environment())
    assert result.returncode == 1
    assert "the ledger has forgotten the groups of step 4" in result.stderr.strip().splitlines()[-1]
    assert left_behind(tmp_path / "run") == []


def test_an_empty_ledger_is_told_by_the_checkpoint_and_that_of_another_run_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, topology=RECORDING)
    run_dir, other = tmp_path / "run", tmp_path / "other"
    assert launch(config, run_dir, env=recording_environment()).returncode == 0
    shutil.rmtree(run_dir / "redis")
    result = launch(config, run_dir, "--set", "run.num_steps=7", env=recording_environment())
    assert result.returncode == 0, result.stderr
    assert events(run_dir, "resumed")[-1]["data"]["reconciled_groups"] == 4 * 8
    check_that_nothing_is_lost_or_twice(run_dir, steps=7, batch=8, max_lag=2)
    assert trained_prompts(run_dir) == first_prompts(config, run_dir, 7 * 8)

    other.mkdir()
    shutil.copytree(run_dir / "checkpoints", other / "checkpoints")
    result = launch(config, other, env=recording_environment())
    assert result.returncode == 1
    assert re.search("is of run run-[0-9a-f]+, this run is other-", result.stderr.strip().splitlines()[-1])
    assert left_behind(other) == []


def test_64_flipped_bytes_of_the_newest_checkpoint_cost_the_run_nothing_and_of_all_of_them_one_line(
    tmp_path: Path,
) -> None:
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 6},
        checkpoint={"save_interval": 3, "save_hf": True},
        topology=RECORDING,
    )
    run_dir = tmp_path / "run"

    def flip(version: int) -> None:
        with (run_dir / "checkpoints" / f"iter_{version:07d}" / "__0_0.distcp").open("r+b") as file:
            file.seek(40_000)
            found = file.read(64)
            file.seek(40_000)
            file.write(bytes(255 - byte for byte in found))

    assert launch(config, run_dir, env=recording_environment()).returncode == 0
    before = trained_groups(run_dir)
    flip(6)
    result = launch(config, run_dir, "--set", "run.num_steps=9", env=recording_environment())
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if "checkpoint_damaged" in line]
    assert "iter_0000006 is damaged: __0_0.distcp" in line and "goes_on_from=iter_0000003" in line
    assert events(run_dir, "learner_ready")[-1]["data"]["version"] == 3
    after = trained_groups(run_dir)
    assert {step: after[step] for step in before} == before
    check_that_nothing_is_lost_or_twice(run_dir, steps=9, batch=8, max_lag=2)
    check_that_the_weights_are_those_of_the_recorded_batches(config, run_dir)

    for version in (6, 9):
        flip(version)
    result = launch(config, run_dir, "--set", "run.num_steps=12", env=recording_environment())
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and not events(run_dir, "restarted")
    assert "iter_0000009 is damaged: __0_0.distcp" in last and "iter_0000006 is damaged: __0_0.distcp" in last
    assert "put back a copy" in last and summary(run_dir)["balanced"] and left_behind(run_dir) == []
