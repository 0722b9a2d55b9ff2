"""What a reward function may do to its grading process: nothing of it reaches another call, and nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from miles_async.config.schema import Reward
from miles_async.rewards import Grader, RewardError, RewardSample
from miles_async.rewards.graded import numbers

REWARDS = """
import asyncio, os, subprocess, sys, time

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no text")

def start(command, path):
    process = subprocess.Popen(["sleep", command], start_new_session="own" in path)
    with open(path, "a") as file:
        file.write(f"{process.pid}\\n")

def by_command(sample):
    word, _, rest = sample.response.partition(" ")
    match word:
        case "value": return float(rest)
        case "input": return len(input())
        case "cat": return len(subprocess.run(["cat"], capture_output=True, timeout=20).stdout)
        case "print":
            print("\\ud83d", flush=True)
            os.write(1, b"\\x05\\x00\\x00\\x00junk!")
            sys.stdout.buffer.write(b"\\xff" * 100)
            return 5.0
        case "fork":
            os.fork()  # and the child goes on
            return 6.0
        case "fork_and_exit":
            if (child := os.fork()) == 0:
                sys.exit(9)
            return float(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        case "starts":
            start("3000", rest)
            return 7.0
        case "starts_and_hangs":
            start("3001", rest)
            if os.fork() == 0:
                os.setsid()
                start("3002", rest + "own")
                time.sleep(3000)
            time.sleep(3000)
        case "mute": raise Mute
        case "surrogate": raise ValueError("half of it: \\ud83d")
        case "long": raise ValueError("x" * 5_000_000)
        case "exit": sys.exit("bye")
        case "keyboard": raise KeyboardInterrupt("mine")
        case "canceled": raise asyncio.CancelledError("mine")
        case "generator": raise GeneratorExit("mine")
        case "stop": raise StopIteration("mine")
        case "deep": return by_command(sample)
        case "part": return {"\\ud83d": 1.0}

async def later(sample):
    await asyncio.sleep(0)
    return by_command(sample)
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "commanded.py"
    path.write_text(REWARDS)
    return path


@pytest.fixture(params=["by_command", "later"])
async def grader(module: Path, request: pytest.FixtureRequest) -> AsyncIterator[Grader]:
    async with Grader(Reward(rm_type=f"{module}:{request.param}", timeout_s=30.0)) as grader:
        yield grader


def sample(response: str) -> RewardSample:
    return RewardSample(prompt="", response=response)


def started(*files: Path) -> list[psutil.Process]:
    found = []
    for line in "".join(file.read_text() for file in files if file.exists()).split():
        try:
            found.append(psutil.Process(int(line)))
        except psutil.NoSuchProcess:
            continue
    return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]


def until_gone(*files: Path) -> None:
    deadline = time.monotonic() + 20
    while left := started(*files):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


async def test_what_a_reward_reads_is_empty_and_what_it_prints_or_forks_reaches_no_other_call(grader: Grader) -> None:
    with pytest.raises(RewardError, match="EOFError"):
        await grader.grade(sample("input"))
    assert await grader.grade(sample("cat")) == 0.0
    assert await grader.grade(sample("print")) == 5.0
    for value in range(3):
        assert await grader.grade(sample("fork")) == 6.0
        assert await grader.grade(sample(f"value {value}")) == value
    assert await grader.grade(sample("fork_and_exit")) == 9.0


@pytest.mark.parametrize("function", ["by_command", "later"])
async def test_an_exception_of_any_kind_is_the_answer_to_its_own_call_and_ends_no_process(
    module: Path, function: str
) -> None:
    expected = {
        "mute": "Mute: (its text cannot be had: RuntimeError)",
        "surrogate": r"ValueError: half of it: \ud83d",
        "long": "ValueError: xxx",
        "exit": "SystemExit: bye",
        "keyboard": "KeyboardInterrupt: mine",
        "canceled": "CancelledError: mine",
        "generator": "GeneratorExit: mine",
        "stop": "StopIteration: mine" if function == "by_command" else "RuntimeError: coroutine raised StopIteration",
        "deep": "RecursionError: maximum recursion depth exceeded",
        "part": f"commanded.py:{function}: the name of a part",
    }
    async with Grader(Reward(rm_type=f"{module}:{function}", timeout_s=30.0)) as grader:
        grades = [(await grader.score([sample(word)]))[0] for word in expected]
        process = grader._pool._places[0]._process
        assert await grader.grade(sample("value 4")) == 4.0
        assert grader._pool._places[0]._process is process
    for grade, text in zip(grades, expected.values(), strict=True):
        assert isinstance(grade, RewardError)
        assert grade.detail.startswith(text)
        assert len(grade.detail) < 3000
        grade.detail.encode()
        if "part" not in text:
            assert grade.place.startswith("commanded.py:")
            assert f'"{module}", line' in grade.trace
            assert "miles_async" not in grade.trace


async def test_what_a_reward_has_started_ends_with_its_deadline_whatever_session_it_is_in(
    module: Path, tmp_path: Path
) -> None:
    pids, own = tmp_path / "pids", tmp_path / "pidsown"
    async with Grader(Reward(rm_type=f"{module}:by_command", timeout_s=1.0)) as grader:
        with pytest.raises(RewardError, match="gave no reward within 1 s"):
            await grader.grade(sample(f"starts_and_hangs {pids}"))
        assert len(pids.read_text().split() + own.read_text().split()) == 2
        assert started(pids, own) == []
        # what a call leaves running without harm (a sandbox for the next ones) ends with the grader
        assert await grader.grade(sample(f"starts {pids}")) == 7.0
        assert len(started(pids)) == 1
    assert started(pids, own) == []


@pytest.mark.parametrize("whom", ["the worker", "its guard"])
def test_what_a_reward_has_started_ends_with_a_killed_worker(module: Path, tmp_path: Path, whom: str) -> None:
    pids, own = tmp_path / "pids", tmp_path / "pidsown"
    code = """if True:
        import asyncio, sys
        from miles_async.config.schema import Reward
        from miles_async.rewards import Grader, RewardSample
        async def main():
            grader = Grader(Reward(rm_type=sys.argv[1], timeout_s=600))
            await grader.start()
            await grader.grade(RewardSample(prompt="", response="starts " + sys.argv[2]))
            print(grader._pool._places[0]._process.pid, flush=True)
            await grader.grade(RewardSample(prompt="", response="starts_and_hangs " + sys.argv[2]))
        asyncio.run(main())
    """
    worker = subprocess.Popen(
        [sys.executable, "-c", code, f"{module}:by_command", str(pids)], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    guard = int(worker.stdout.readline())
    deadline = time.monotonic() + 20
    while len(started(pids)) < 2 or not started(own):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker.kill() if whom == "the worker" else os.kill(guard, signal.SIGTERM)
    until_gone(pids, own)
    worker.kill()
    worker.communicate()
    guard_file = tmp_path / "guard"
    guard_file.write_text(str(guard))
    until_gone(guard_file)


def test_the_name_of_a_part_is_one_that_a_metric_can_have() -> None:
    assert numbers({"length": 1}) == {"length": 1.0}
    for name in ("x" * 101, "\ud83d"):
        with pytest.raises(ValueError, match="the name of a part has at most 100 characters"):
            numbers({name: 1.0})
