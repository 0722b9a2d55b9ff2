"""Whole runs in which something hangs: each says so by itself, names the culprit and goes on when the wedge is lifted, or
ends with exit code 1 where ``run.watchdog_exit`` tells it to.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from launching import (
    TINY,
    begin,
    environment,
    events,
    launch,
    left_behind,
    metrics,
    pid_of,
    summary,
    wait_until,
    write_config,
)

WATCHDOG_S = 6.0
MORE_STEPS = 3
STEPS = 4000


def last_step(run_dir: Path) -> int:
    record = run_dir / "metrics.jsonl"
    return max((line["step"] for line in metrics(run_dir)), default=0) if record.exists() else 0


def wait_for_more(run_dir: Path, process: subprocess.Popen[str]) -> None:
    goal = last_step(run_dir) + MORE_STEPS
    wait_until(lambda: last_step(run_dir) >= goal, f"step {goal}", process)


def stalled(run_dir: Path, process: subprocess.Popen[str]) -> str:
    """The diagnosis of the next stall, which does not come before the watchdog's time."""
    before = len(events(run_dir, "stalled"))
    wait_until(lambda: len(events(run_dir, "stalled")) > before, f"stall {before + 1}", process)
    told = events(run_dir, "stalled")[before]["data"]
    assert told["seconds"] >= WATCHDOG_S
    return told["diagnosis"]


def lifted(run_dir: Path, process: subprocess.Popen[str], number: int) -> None:
    wait_until(lambda: len(events(run_dir, "moving_again")) >= number, f"recovery {number}", process)
    wait_for_more(run_dir, process)


def fork_server_of(process: subprocess.Popen[str]) -> int:
    names = {child.pid: " ".join(child.cmdline()) for child in psutil.Process(process.pid).children()}
    return next(pid for pid, name in names.items() if name.strip() == "miles-async fork server")


def status(run_dir: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    ask = [sys.executable, "-m", "miles_async.cli.app", "status", str(run_dir), *extra]
    return subprocess.run(ask, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def running() -> Iterator[list[subprocess.Popen[str]]]:
    """Launches that end with the test, also where it fails."""
    found: list[subprocess.Popen[str]] = []
    yield found
    for process in found:
        process.kill()
        process.wait()


def test_what_is_stopped_or_hangs_is_named_with_everybody_who_waits_for_it_and_the_run_recovers(
    tmp_path: Path, running: list[subprocess.Popen[str]]
) -> None:
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": STEPS, "watchdog_s": WATCHDOG_S},
        engine={"num_engines": 1},
        topology={"engine": "hanging_engine.HangingEngine"},
    )
    run_dir = tmp_path / "run"
    running.append(process := begin(config, run_dir))
    wait_for_more(run_dir, process)
    stopped = r"is stopped \(SIGSTOP\)"
    others = "broadcaster, dealer, learner-0, rollout-0, rollout-1"
    expected = {
        # everybody waits for it, or for somebody who does
        "learner-0": rf"learner-0 \(pid PID\) {stopped}; broadcaster, dealer, rollout-0, rollout-1 wait for it",
        # the router only if it has requests there, or has found out
        "engine-0": rf"engine-0 \(pid PID\) {stopped}; {others}(, router)? wait for it",
        "redis": rf"redis \(pid PID\) has not answered for \d+ s; it {stopped}",
    }
    pids = {name: pid_of(run_dir, name) for name in expected}
    for number, (name, sentence) in enumerate(expected.items(), 1):
        os.kill(pids[name], signal.SIGSTOP)
        said = sentence.replace("PID", str(pids[name]))
        assert re.fullmatch(said, found := stalled(run_dir, process)), found
        if name == "learner-0":
            told = json.loads(status(run_dir, "--json").stdout)
            assert re.fullmatch(said, told["diagnosis"]), told["diagnosis"]
            assert {wait["who"] for wait in told["waits"]} == {"broadcaster", "dealer", "rollout-0", "rollout-1"}
        if name == "redis":
            asked = status(run_dir)
            assert asked.returncode == 3 and asked.stderr.count("\n") == 1
            assert re.search(said, asked.stderr) and "for redis" in asked.stdout
        os.kill(pids[name], signal.SIGCONT)
        lifted(run_dir, process, number)

    (run_dir / "hang").touch()
    found = stalled(run_dir, process)
    assert re.fullmatch(r"engine-0: \d+ requests in flight, no token for \d+ s", found), found
    (run_dir / "hang").unlink()
    lifted(run_dir, process, len(expected) + 1)

    os.kill(fork_server_of(process), signal.SIGSTOP)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert events(run_dir, "restarted") == []
    found = summary(run_dir)
    assert found["balanced"] and found["ledger"]["dropped"] == {}
    assert left_behind(run_dir) == []


def test_a_reward_that_hangs_ends_the_run_with_its_name_where_the_run_is_told_to_end(tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text(
        "import asyncio\n\n\nasync def hangs(sample):\n    await asyncio.Event().wait()\n"
    )
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"watchdog_s": WATCHDOG_S, "watchdog_exit": True},
        reward={"rm_type": "my_rewards.hangs", "timeout_s": 600.0},
    )
    run_dir = tmp_path / "run"
    result = launch(config, run_dir, env=environment(PYTHONPATH=str(tmp_path)))
    assert result.returncode == 1
    said = r"miles-async: nothing moved for \d+ s: rollout-\d: the reward function has not answered for \d+ s"
    assert re.fullmatch(said, result.stderr.strip().splitlines()[-1]), result.stderr
    assert summary(run_dir)["status"] == "failed" and summary(run_dir)["balanced"]
    assert left_behind(run_dir) == []


def test_a_silent_actor_is_replaced_and_a_stopped_redis_ends_the_run_where_it_is_told_to_end(
    tmp_path: Path, running: list[subprocess.Popen[str]]
) -> None:
    config = write_config(
        tmp_path,
        run=TINY["run"]
        | {"num_steps": STEPS, "watchdog_s": WATCHDOG_S, "watchdog_exit": True, "heartbeat_timeout_s": 2.0},
    )
    run_dir = tmp_path / "run"
    running.append(process := begin(config, run_dir))
    wait_for_more(run_dir, process)
    os.kill(pid_of(run_dir, "dealer"), signal.SIGSTOP)
    wait_until(lambda: events(run_dir, "restarted") != [], "restart of the dealer", process)
    [restart] = events(run_dir, "restarted")
    assert re.fullmatch(r"dealer: silent for \d+ s", restart["data"]["cause"]), restart
    wait_for_more(run_dir, process)

    pid = pid_of(run_dir, "redis")
    os.kill(fork_server_of(process), signal.SIGSTOP)
    os.kill(pid, signal.SIGSTOP)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    said = rf"miles-async: nothing moved for \d+ s: redis \(pid {pid}\) has not answered for \d+ s; it is stopped \(SIGSTOP\)"
    assert re.fullmatch(said, err.strip().splitlines()[-1]), err
    assert left_behind(run_dir) == []
