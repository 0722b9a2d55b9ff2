"""No reward function takes down more than its own call: its process hangs, dies or is killed, and the next call is answered."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from grading import grader_of, grading_processes, sample
from reward_modules import misbehaving

from miles_async.rewards import (
    Grader,
    RewardError,
)


@pytest.fixture
def module(tmp_path: Path) -> Path:
    return misbehaving(tmp_path)


@pytest.fixture
async def grader(module: Path) -> AsyncIterator[Grader]:
    async with grader_of(f"{module}:by_command", timeout_s=60.0) as grader:
        yield grader


async def test_a_function_of_the_user_sees_the_whole_sample(module: Path) -> None:
    async with grader_of(f"{module}:good", num_processes=2) as grader:
        rewards = await asyncio.gather(
            *(grader.grade(sample("ab", tokens=[i], metadata={"bonus": 0.5})) for i in range(20))
        )
    assert rewards == [2.5 + i for i in range(20)]


@pytest.mark.parametrize("response", ["hang", "hold the interpreter"])
async def test_a_hanging_call_costs_that_call_and_its_process(module: Path, response: str) -> None:
    async with grader_of(f"{module}:by_command", timeout_s=3.0) as grader:
        before = await grader.grade(sample("pid"))
        with pytest.raises(RewardError, match=r"by_command gave no reward within 3 s") as caught:
            await grader.grade(sample(response))
        assert caught.value.reason == "reward_timeout"
        assert not psutil.pid_exists(int(before))
        assert await grader.grade(sample("fine")) == 1.0


async def test_an_async_function_that_blocks_does_not_block_the_loop(module: Path) -> None:
    async with grader_of(f"{module}:blocks", timeout_s=0.5) as grader:
        call = asyncio.create_task(grader.grade(sample("x")))
        turns = 0
        while not call.done():
            await asyncio.sleep(0.01)
            turns += 1
        assert turns > 10
        with pytest.raises(RewardError, match="reward_timeout"):
            await call


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("die", "reward_error: the grading process ended with exit status 3"),
        ("crash", "reward_error: the grading process ended by signal 11"),
        ("raise", "reward_error: ValueError: two lines"),
        ("exit", "reward_error: SystemExit: enough"),
        ("text", "reward_error: user_rewards.py:by_command: a reward must be a number, not str"),
        ("none", "reward_error: user_rewards.py:by_command: a reward must be a number, not NoneType"),
        ("nan", "reward_error: user_rewards.py:by_command: a reward must be finite, not nan"),
    ],
)
async def test_a_failing_call_says_why_and_the_next_one_works(grader: Grader, response: str, expected: str) -> None:
    with pytest.raises(RewardError) as caught:
        await grader.grade(sample(response))
    assert (str(caught.value), caught.value.reason) == (expected, "reward_error")
    assert await grader.grade(sample("fine")) == 1.0


async def test_a_process_killed_between_calls_is_replaced(grader: Grader) -> None:
    pid = int(await grader.grade(sample("pid")))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RewardError, match="ended by signal 9"):
        await grader.grade(sample("fine"))
    assert await grader.grade(sample("fine")) == 1.0


async def test_a_cancelled_call_does_not_answer_the_next_one(module: Path) -> None:
    async with grader_of(f"{module}:by_command", timeout_s=30) as grader:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(grader.grade(sample("hang")), 0.3)
        assert await grader.grade(sample("fine")) == 1.0


async def test_a_process_is_renewed_after_max_tasks(module: Path) -> None:
    async with grader_of(f"{module}:by_command", max_tasks=2) as grader:
        assert [await grader.grade(sample("calls")) for _ in range(5)] == [1, 2, 1, 2, 1]


async def test_nothing_outlives_close(module: Path) -> None:
    grader = grader_of(f"{module}:by_command", num_processes=2)
    await grader.start()
    assert len(grading_processes()) == 2
    await grader.close()
    await grader.close()
    assert grading_processes() == []


def test_a_killed_worker_leaves_no_grading_process(module: Path) -> None:
    code = """if True:
        import asyncio, sys
        from miles_async.config.schema import Reward
        from miles_async.rewards import Grader, RewardSample
        async def main():
            grader = Grader(Reward(rm_type=sys.argv[1], timeout_s=600))
            await grader.start()
            print(int(await grader.grade(RewardSample(prompt="", response="pid"))), flush=True)
            await grader.grade(RewardSample(prompt="", response="hold the interpreter"))
        asyncio.run(main())
    """
    worker = subprocess.Popen([sys.executable, "-c", code, f"{module}:by_command"], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    child = psutil.Process(int(worker.stdout.readline()))
    worker.kill()
    worker.communicate()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
