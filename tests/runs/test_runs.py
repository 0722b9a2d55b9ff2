"""Whole runs on real parts: the ledger balances, the bound holds, stops resume, and what is wrong is one clear line."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections import Counter
from pathlib import Path

import psutil
import pytest
from launching import (
    RECORDING,
    TINY,
    begin,
    command,
    environment,
    first_prompts,
    kill_at_step,
    lags,
    launch,
    left_behind,
    metrics,
    recording_environment,
    summary,
    trained_groups,
    trained_prompts,
    wait_for_step,
    write_config,
)
from warm_start import WarmPopen

from miles_async.weights.place import in_memory


def test_an_asynchronous_run_keeps_the_bound_and_accounts_for_every_group(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 12},
        staleness={"max_lag": 2},
        checkpoint={"save_interval": 5, "save_hf": True},
        topology=RECORDING,
    )
    run_dir = tmp_path / "run"
    result = launch(config, run_dir, env=recording_environment())
    assert result.returncode == 0, result.stderr
    found = summary(run_dir)
    assert (found["status"], found["steps"]) == ("finished", 12)
    ledger = found["ledger"]
    assert found["balanced"] and ledger["dealt"] == ledger["trained"] == 12 * 8
    assert found["max_token_lag"] <= 2
    assert found["learner_busy"] > 0 and found["engine_busy"] > 0
    # against the tokens themselves, not what the run says of itself
    steps = trained_groups(run_dir)
    ids = [group.group_id for groups in steps.values() for group in groups]
    assert len(ids) == len(set(ids)) == 12 * 8
    assert all(least >= 0 and greatest <= 2 for least, greatest in lags(run_dir).values())
    assert trained_prompts(run_dir) == first_prompts(config, run_dir, 12 * 8)
    assert (run_dir / "run.png").stat().st_size > 1000
    assert (run_dir / "hf" / "config.json").exists()
    assert left_behind(run_dir) == []
    assert not in_memory(run_dir).exists()  # the snapshots gave their memory back


def test_a_run_stopped_by_ctrl_c_goes_on_at_the_next_step(tmp_path: Path) -> None:
    config = write_config(tmp_path, run=TINY["run"] | {"num_steps": 400}, staleness={"max_lag": 2}, topology=RECORDING)
    run_dir = tmp_path / "run"
    process = begin(config, run_dir)
    wait_for_step(run_dir, 5, process)
    titles = [" ".join(found.info["cmdline"] or ()) for found in psutil.process_iter(["cmdline"])]
    for actor in ("dealer", "rollout-0", "learner-0", "router", "engine-0", "broadcaster"):
        assert any(title.startswith(f"miles-async {actor} {run_dir}") for title in titles), actor
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    words = errors.splitlines()[-1]
    assert words == f"miles-async: to go on: miles-async launch {config} --run-dir {run_dir}"
    stopped = summary(run_dir)
    assert stopped["status"] == "stopped" and stopped["balanced"]
    assert stopped["ledger"]["batched"] == 0  # the checkpoint holds every step that was taken
    assert left_behind(run_dir) == []
    at = stopped["steps"]

    result = launch(config, run_dir, "--set", f"run.num_steps={at + 5}", env=recording_environment())
    assert result.returncode == 0, result.stderr
    done = summary(run_dir)
    assert done["steps"] == at + 5 and done["balanced"] and done["max_token_lag"] <= 2
    assert [line["step"] for line in metrics(run_dir)] == list(range(1, at + 6))
    ids = [group.group_id for groups in trained_groups(run_dir).values() for group in groups]
    assert max(Counter(ids).values()) == 1
    positions = {gid for gid in ids}
    dropped = done["ledger"]["dropped"]
    assert len(positions) == done["ledger"]["trained"] and not dropped
    assert f"supervisor: resumes after_step={at} launch=2\n" in result.stdout
    assert f"supervisor: config_changed key=run.num_steps was=400 now={at + 5}\n" in result.stdout

    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    again = launch(config, run_dir, "--set", f"run.num_steps={at + 5}", env=recording_environment())
    assert again.returncode == 0 and f"{at + 5} steps are done; to go on, give a higher run.num_steps" in again.stderr
    fewer = launch(config, run_dir, "--set", "run.num_steps=3", env=recording_environment())
    assert fewer.returncode == 2 and f"run.num_steps = 3: the run in {run_dir} has done {at + 5} steps" in fewer.stderr
    after = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file() and path.suffix != ".log"}
    changed = {path.name for path, content in after.items() if content != before.get(path)}
    assert changed <= {"supervisor.json", "launch.lock"}  # nothing else was written, and nothing was started
    for path in run_dir.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, f"{path} can be read by others"


def test_a_closed_terminal_stops_a_run_in_order(tmp_path: Path) -> None:
    """It tells every process of its group, and more than once."""
    config = write_config(tmp_path, run=TINY["run"] | {"num_steps": 400})
    run_dir = tmp_path / "run"
    tests = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # who may be meant to outlive a terminal
    with (tmp_path / "errors").open("w") as errors:
        process = WarmPopen(
            command(config, run_dir), stdout=errors, stderr=errors, text=True, env=environment(), start_new_session=True
        )
    signal.signal(signal.SIGHUP, tests)
    wait_for_step(run_dir, 2, process)
    os.killpg(process.pid, signal.SIGHUP)
    os.kill(process.pid, signal.SIGHUP)
    assert process.wait(timeout=120) == 130, (tmp_path / "errors").read_text()
    stopped = summary(run_dir)
    assert stopped["status"] == "stopped" and stopped["balanced"]
    assert stopped["ledger"]["batched"] == 0 and "died" not in stopped["events"]
    assert left_behind(run_dir) == []


def test_a_launch_killed_with_its_supervisor_leaves_no_process_and_replays(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 400},
        checkpoint={"save_interval": 4, "save_hf": False},
        topology=RECORDING,
    )
    run_dir = tmp_path / "run"
    kill_at_step(config, run_dir, 7)
    before = {step: [g.group_id for g in groups] for step, groups in trained_groups(run_dir).items()}
    last = max(before)

    result = launch(config, run_dir, "--set", f"run.num_steps={last + 3}", env=recording_environment())
    assert result.returncode == 0, result.stderr
    after = {step: [g.group_id for g in groups] for step, groups in trained_groups(run_dir).items()}
    assert {step: after[step] for step in before} == before  # replayed steps trained on the very same groups
    ids = [group_id for groups in after.values() for group_id in groups]
    assert len(ids) == len(set(ids)) == (last + 3) * 8
    found = summary(run_dir)
    assert found["balanced"] and found["steps"] == last + 3 and found["ledger"]["dropped"] == {}
    assert [line["step"] for line in metrics(run_dir)] == list(range(1, last + 4))  # replayed ones are there once
    # no prompt is skipped or repeated, and the lag is right from the first step on
    assert trained_prompts(run_dir) == first_prompts(config, run_dir, (last + 3) * 8)
    assert all(least >= 0 and greatest <= 2 for least, greatest in lags(run_dir).values())


def test_two_data_parallel_ranks_train_each_their_share(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": 3},
        learner={"lr": 1e-3, "num_ranks": 2},
        staleness={"max_lag": 1},
        topology=RECORDING,
    )
    result = launch(config, tmp_path / "run", env=recording_environment())
    assert result.returncode == 0, result.stderr
    for groups in trained_groups(tmp_path / "run").values():
        assert len({group.group_id for group in groups}) == 8
    assert sorted(path.name for path in (tmp_path / "run" / "trained").iterdir()) == [
        f"{step:04d}-{rank}" for step in (1, 2, 3) for rank in (0, 1)
    ]
    assert summary(tmp_path / "run")["ledger"]["trained"] == 24


REWARDS = """
async def raises(sample):
    raise ValueError("no such unit")

async def hangs(sample):
    while True:
        pass

def sometimes(sample):
    if int(sample.group_id.split("-")[1]) % 8 == 0:
        raise ValueError("an unlucky prompt")
    return 0.5 + 0.1 * sample.index
"""


def line_of(text: str, part: str) -> str:
    return str(1 + text.partition(part)[0].count("\n"))


@pytest.mark.parametrize(
    ("name", "reason"), [("raises", "reward_error: .*no such unit"), ("hangs", "reward_timeout: ")]
)
def test_a_reward_function_that_always_fails_ends_the_run_with_its_reason(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    config = write_config(
        tmp_path,
        reward={"rm_type": f"my_rewards.{name}", "timeout_s": 0.2},
        rollout=TINY["rollout"] | {"rollout_batch_size": 2, "n_samples_per_prompt": 2},
    )
    result = launch(config, tmp_path / "run")
    assert result.returncode == 1
    last_line = result.stderr.strip().splitlines()[-1]
    assert "by the same cause: " in last_line
    assert re.search(reason, last_line), last_line
    found = summary(tmp_path / "run")
    if name == "raises":  # known with the first attempt at four groups; nobody waits for their others
        assert last_line.endswith(
            "no such unit (my_rewards.py:LINE in raises)".replace("LINE", line_of(REWARDS, "no such unit"))
        )
        output = result.stdout + result.stderr
        assert output.count(f'File "{tmp_path / "my_rewards.py"}", line ') == 1
        assert len(output.splitlines()) < 60
        assert "reward_error: reward_error" not in output
        assert "groups in a row failed" in last_line
        dropped = sum(found["ledger"]["dropped"].values())  # until the supervisor had heard of the fourth
        assert dropped <= 6 and found["ledger"]["dealt"] <= 6 + dropped  # each drop makes room for one
    else:  # it may pass: four groups are given up after all their attempts
        assert "all dropped" in last_line
        assert found["ledger"]["dropped"] == {"reward_timeout": sum(found["ledger"]["dropped"].values())}
    assert found["balanced"]
    assert left_behind(tmp_path / "run") == []


def test_a_failing_group_is_a_recorded_drop_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    config = write_config(tmp_path, reward={"rm_type": "my_rewards.sometimes"})
    result = launch(config, tmp_path / "run")
    assert result.returncode == 0, result.stderr
    found = summary(tmp_path / "run")
    assert found["ledger"]["trained"] == 4 * 8 and found["ledger"]["dropped"]["reward_error"] > 0 and found["balanced"]


def clear_error(config: Path, run_dir: Path, *extra: str, code: int, env: dict[str, str] | None = None) -> str:
    """The one line that a bad launch ends with."""
    result = launch(config, run_dir, *extra, env=env)
    assert result.returncode == code, (result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    assert left_behind(run_dir) == []
    return result.stderr.strip().splitlines()[-1]


def test_a_malformed_prompt_line_is_named_before_anything_starts(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"input": "1>2>", "label": "11"}\n{"input": \n')
    config = write_config(tmp_path, data={"prompt_data": str(prompts)})
    assert "prompts.jsonl:2" in clear_error(config, tmp_path / "run", code=2)


def test_ids_outside_the_vocabulary_are_named_before_anything_starts(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"input": [3, 99], "label": "11"}\n')
    config = write_config(tmp_path, data={"prompt_data": str(prompts)})
    line = clear_error(config, tmp_path / "run", code=2)
    assert "99" in line and "prompts.jsonl:1" in line


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = write_config(tmp_path, router={"port": port})
        line = clear_error(config, tmp_path / "run", code=1)
    assert str(port) in line and "listens there" in line


def test_no_redis_is_one_clear_line(tmp_path: Path) -> None:
    config = write_config(tmp_path, bus={"url": f"unix://{tmp_path}/nothing.sock"})
    assert "nothing.sock" in clear_error(config, tmp_path / "run", code=3)


def test_a_run_directory_in_use_is_refused(tmp_path: Path) -> None:
    config = write_config(tmp_path, run=TINY["run"] | {"num_steps": 400})
    run_dir = tmp_path / "run"
    process = begin(config, run_dir)
    wait_for_step(run_dir, 1, process)
    second = launch(config, run_dir)
    assert second.returncode == 2 and "in use by a launch that is alive" in second.stderr
    assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_topology_that_names_no_class_is_one_clear_line(tmp_path: Path) -> None:
    config = write_config(tmp_path, topology={"dealer": "actors.dealer.Deeler"})
    line = clear_error(config, tmp_path / "run", code=1)
    assert "dealer" in line and "'actors.dealer.Deeler'" in line
