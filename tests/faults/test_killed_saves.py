"""kill -9 in the middle of an asynchronous save: whenever it comes, the run goes on, every group is trained once, and the
weights end with the bits of an undisturbed run."""

from __future__ import annotations

from pathlib import Path

from killed_saves import MOMENTS, NEVER_DURABLE, noted
from launching import (
    TINY,
    begin,
    events,
    launch,
    recording_environment,
    wait_for_step,
    wait_until,
    wait_until_gone,
    write_config,
)
from recorded_runs import check_that_nothing_is_lost_or_twice, check_that_the_weights_are_those_of_the_recorded_batches

SAVE = {"save_interval": 2, "async_save": True, "save_hf": True}


def test_a_kill_at_any_of_ten_moments_of_an_asynchronous_save_costs_neither_a_group_nor_a_bit(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 12, "max_restarts": 20, "restart_backoff_s": 1e-4},
        learner=TINY["learner"] | {"num_ranks": 2, "tensor_parallel_size": 2},
        checkpoint=SAVE,
        topology={"learner": "killed_saves.LearnerKilledWhileSaving"},
    )
    run_dir = tmp_path / "run"
    result = launch(config, run_dir, env=recording_environment())
    assert result.returncode == 0, result.stderr
    assert noted(run_dir) == list(MOMENTS) and len(MOMENTS) > 10
    ready = [e["data"]["version"] for e in events(run_dir, "learner_ready") if e["data"]["rank"] == 0]
    assert ready[: NEVER_DURABLE + 1] == [0] * (NEVER_DURABLE + 1)
    # what has its name is a checkpoint, whatever latest and the ledger have heard
    assert ready[NEVER_DURABLE + 1 :] == [2, 4, 6, 6, 6]
    assert [e["data"]["version"] for e in events(run_dir, "checkpoint")] == [6, 8, 10, 12]
    check_that_nothing_is_lost_or_twice(run_dir, steps=12, batch=8, max_lag=2)
    check_that_the_weights_are_those_of_the_recorded_batches(config, run_dir)


def test_a_launch_that_is_killed_whole_while_a_checkpoint_is_written_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 8},
        checkpoint=SAVE,
        topology={"learner": "killed_saves.LearnerWhoseFirstSaveHangs"},
    )
    run_dir = tmp_path / "run"
    process = begin(config, run_dir)
    wait_until((run_dir / "save-hangs").exists, "save that hangs", process)
    wait_for_step(run_dir, 3, process)  # which it does not hold up
    process.kill()
    process.communicate()
    wait_until_gone(run_dir)
    assert list((run_dir / "checkpoints").glob("iter_*")) == []
    result = launch(config, run_dir, env=recording_environment())
    assert result.returncode == 0, result.stderr
    assert events(run_dir, "learner_ready")[-1]["data"]["version"] == 0
    check_that_nothing_is_lost_or_twice(run_dir, steps=8, batch=8, max_lag=2)
    check_that_the_weights_are_those_of_the_recorded_batches(config, run_dir)
