"""A machine that was lost comes back while the run goes on elsewhere: who lived there changes nothing any more, and ends."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from launching import begin, bus_url, events, launch, metrics, summary, wait_for_step, wait_until_gone, write_config
from lost_machine import LOST, LostMachine
from recorded_runs import check_that_nothing_is_lost_or_twice

from actors.runtime.lease import LAST_WORDS, REPLACED
from actors.runtime.supervisor import FAILED, OK, Supervisor
from bus import connect
from bus.lives import Lives
from miles_async.cli.load import load
from miles_async.monitor import Monitor
from miles_async.runs.state import read
from miles_async.train import checkpoint

STEPS, LOSE_AT, BACK_AT = 24, 5, 9


@pytest.mark.usefixtures("as_a_launch")
def test_the_actors_of_a_machine_that_comes_back_end_and_the_run_is_as_if_they_had_died(tmp_path: Path) -> None:
    config = load(
        write_config(
            tmp_path,
            run={"num_steps": STEPS},
            checkpoint={"save_interval": 2},
            topology={"learner": "recording_learner.RecordingLearner"},
        ),
        [],
    )
    run_dir = tmp_path / "run"
    placement = LostMachine(run_dir, LOSE_AT, BACK_AT)
    assert Supervisor(config, run_dir, Monitor(stream=io.StringIO()), placement).run() == OK
    everybody = {actor.name for actor in placement.started}
    assert {actor.name for actor in placement.lost} == everybody
    assert {ending.how for ending in placement.endings.values()} == {LAST_WORDS[REPLACED]}
    assert placement.endings.keys() == placement.lost.keys()
    assert sorted(event["data"]["cause"] for event in events(run_dir, "restarted")) == sorted(
        f"{name}: {LOST.how}" for name in everybody
    )
    check_that_nothing_is_lost_or_twice(run_dir, STEPS, 8, config.staleness.max_lag)
    steps = [line["step"] for line in metrics(run_dir) if "raw_reward" in line["values"]]
    assert steps == list(range(1, STEPS + 1))
    kept = checkpoint.kept(run_dir / "checkpoints")
    assert [checkpoint.read_state(path).version for path in kept] == [STEPS, STEPS - 2]
    assert all(checkpoint.read_state(path).extra["incarnation"] > 1 for path in kept)


def test_a_launch_that_a_later_one_has_replaced_ends_at_once_and_writes_no_summary(tmp_path: Path) -> None:
    config, run_dir = write_config(tmp_path, run={"num_steps": 4000}), tmp_path / "run"
    process = begin(config, run_dir)
    wait_for_step(run_dir, 1, process)

    async def replace() -> None:
        bus = await connect(bus_url(run_dir), read(run_dir).run_id)  # type: ignore[union-attr]
        await Lives(bus).begin(5000)
        await bus.close()

    asyncio.run(replace())
    _, said = process.communicate(timeout=60)
    assert process.returncode == FAILED
    assert "miles-async: supervisor, incarnation 1, has been replaced: incarnation 5000 lives: this launch ends" in said
    assert not (run_dir / "summary.json").exists()
    wait_until_gone(run_dir)
    # the same directory goes on where the bus says that it is
    assert launch(config, run_dir, "--set", "run.num_steps=40").returncode == OK
    assert summary(run_dir)["balanced"] and all(
        checkpoint.read_state(path).extra["incarnation"] == 5001 for path in checkpoint.kept(run_dir / "checkpoints")
    )
