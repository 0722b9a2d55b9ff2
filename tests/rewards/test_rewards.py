"""Rewards: what the built-ins are worth, and that no grader can take more down than its own call."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from miles_async.config.schema import Reward
from miles_async.rewards import (
    Grader,
    RewardConfigError,
    RewardError,
    RewardSample,
    check_reward,
    resolve_reward,
    resolve_reward_path,
)

USER_REWARDS = """
import asyncio, os, re, time, sys
import helper

calls = 0

async def good(sample):
    await asyncio.sleep(0)
    return len(sample.response) + sample.metadata.get("bonus", 0) + sum(sample.tokens)

def by_command(sample):
    global calls
    calls += 1
    print("to stdout, which is not the wire")
    match sample.response:
        case "hang": time.sleep(3600)
        case "hold the interpreter": re.match(r"(a+)+$", "a" * 60 + "b")
        case "die": os._exit(3)
        case "crash": os.kill(os.getpid(), 11)
        case "raise": raise ValueError("two\\nlines")
        case "exit": sys.exit("enough")
        case "text": return "1.0"
        case "none": return None
        case "nan": return float("nan")
        case "pid": return os.getpid()
        case "calls": return calls
    return helper.ONE

async def blocks(sample):
    time.sleep(3600)

def two(sample, other): return 1.0
def optional(sample, other=1): return 1.0
NUMBER = 3
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("ONE = 1\n")
    path = tmp_path / "user_rewards.py"
    path.write_text(USER_REWARDS)
    return path


@pytest.fixture
async def grader(module: Path) -> AsyncIterator[Grader]:
    async with grader_of(f"{module}:by_command", timeout_s=1.0) as grader:
        yield grader


def grader_of(rm_type: str, max_tasks: int = 2000, start_timeout_s: float = 120.0, **keys: Any) -> Grader:
    return Grader(Reward(rm_type=rm_type, **keys), max_tasks=max_tasks, start_timeout_s=start_timeout_s)


def sample(response: str, label: str | None = "", finish_reason: str = "stop", **fields: object) -> RewardSample:
    return RewardSample(prompt="", response=response, label=label, finish_reason=finish_reason, **fields)  # type: ignore[arg-type]


def my_children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "miles_async.rewards.grading_process" in " ".join(p.cmdline())]


@pytest.mark.parametrize(
    ("response", "finish_reason", "expected"),
    [
        ("777", "stop", 1.0),
        ("777", "length", 3 / 4),  # right so far, but it did not stop
        ("77", "stop", 2 / 4),  # the end of sequence stands where a 7 belongs
        ("7777", "stop", 3 / 5),
        ("7777777777", "length", 3 / 10),
        ("7_7", "stop", 3 / 4),
        ("", "stop", 0.0),
        ("", "length", 0.0),
    ],
)
def test_graded_match_counts_positions_and_the_stop(response: str, finish_reason: str, expected: float) -> None:
    assert resolve_reward("graded_match")(sample(response, "777", finish_reason)) == pytest.approx(expected)


async def test_graded_match_is_full_only_for_the_label_and_a_stop() -> None:
    async with grader_of("graded_match") as grader:
        assert await grader.grade(sample("", "")) == 1.0
        assert await grader.grade(sample("7", "7")) == 1.0
        assert my_children() == []  # cheap: no process
        with pytest.raises(RewardError, match="the prompt has no label") as caught:
            await grader.grade(sample("7", None))
        assert caught.value.reason == "reward_error"


def test_exact_match_ignores_white_space_around() -> None:
    exact = resolve_reward("exact_match")
    assert exact(sample(" 4\n", "4")) == 1.0
    assert exact(sample("4.", "4")) == 0.0


async def test_math_compares_mathematics() -> None:
    async with grader_of("math", timeout_s=60) as grader:
        cases = [
            (r"so the answer is \boxed{\frac{1}{2}}.", "0.5", 1.0),
            (r"so $x = \frac{2}{4}$", r"\frac{1}{2}", 1.0),
            ("The answer is 1,234", "1234", 1.0),
            (r"\boxed{7}", r"\boxed{8}", 0.0),
            ("no idea", "8", 0.0),
            ("", "8", 0.0),
        ]
        assert [await grader.grade(sample(response, label)) for response, label, _ in cases] == [c[2] for c in cases]
        with pytest.raises(
            RewardError, match=r"reward_error: ValueError: the label .* is not a mathematical expression"
        ):
            await grader.grade(sample("8", ""))


async def test_a_function_of_the_user_sees_the_whole_sample(module: Path) -> None:
    async with grader_of(f"{module}:good", num_processes=2) as grader:
        rewards = await asyncio.gather(
            *(grader.grade(sample("ab", tokens=[i], metadata={"bonus": 0.5})) for i in range(20))
        )
    assert rewards == [2.5 + i for i in range(20)]


@pytest.mark.parametrize("response", ["hang", "hold the interpreter"])
async def test_a_hanging_call_costs_that_call_and_its_process(grader: Grader, response: str) -> None:
    before = await grader.grade(sample("pid"))
    with pytest.raises(RewardError, match=r"by_command gave no reward within 1 s") as caught:
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
        ("exit", "reward_error: the grading process ended with exit status 1"),
        ("text", "reward_error: TypeError: a reward must be a number, not str"),
        ("none", "reward_error: TypeError: a reward must be a number, not NoneType"),
        ("nan", "reward_error: ValueError: a reward must be finite, not nan"),
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
    assert len(my_children()) == 2
    await grader.close()
    await grader.close()
    assert my_children() == []


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("raise RuntimeError('not today')", "failed: RuntimeError: not today"),
        ("import time; time.sleep(3600)", "its process was not ready after 2 s"),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused_at_start(module: Path, text: str, expected: str) -> None:
    module.write_text(text)
    with pytest.raises(RewardConfigError, match=expected):
        asyncio.run(grader_of(f"{module}:good", start_timeout_s=2).start())
    assert my_children() == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "graded_mach",
            'there is no such built-in; did you mean "graded_match"?; one of graded_match, exact_match',
        ),
        ("absent.score", 'there is no module "absent"'),
        ("bus.absent.score", 'there is no module "bus.absent"'),
        ("bus.codec.encod", 'has no function "encod"; did you mean "encode"?'),
        ("{module}:goood", 'has no function "goood"; did you mean "good"?'),
        ("{module}:NUMBER", 'has no function "NUMBER"'),
        ("{module}:two", "it must take (sample), but is (sample, other)"),
        ("absent.py:good", "there is no file absent.py"),
    ],
)
def test_a_wrong_path_or_signature_is_refused_in_one_line(module: Path, name: str, expected: str) -> None:
    with pytest.raises(RewardConfigError) as caught:
        check_reward(name.format(module=module))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    check_reward(f"{module}:optional")


def test_a_dotted_path_may_lie_beside_the_toml_file(module: Path) -> None:
    base = module.parent
    assert resolve_reward_path("user_rewards.good", base) == f"{module}:good"
    assert resolve_reward_path("user_rewards.py:good", base) == f"{module}:good"
    assert resolve_reward_path("bus.codec.encode", base) == "bus.codec.encode"
    assert resolve_reward_path("graded_match", base) == "graded_match"


async def test_reasoning_gym_rewards_come_from_its_own_scorers(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    script = Path(__file__).parents[2] / "examples" / "reasoning_gym_prompts.py"
    command = [sys.executable, script, "--size", "2", "--out", tmp_path / "prompts.jsonl"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: ASYNC221  nothing else runs here
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    async with grader_of(f"{script}:score") as grader:
        for row in rows:
            fields = {"prompt": row["input"], "label": row["label"], "metadata": row["metadata"]}
            assert await grader.grade(RewardSample(response=row["label"], **fields)) == 1.0
            assert await grader.grade(RewardSample(response=f"so <answer>{row['label']}</answer>", **fields)) == 1.0
            assert await grader.grade(RewardSample(response="@", **fields)) < 0.5


def test_a_file_without_a_function_is_asked_for_one(tmp_path: Path) -> None:
    with pytest.raises(RewardConfigError, match=r'which function of the file\? "nested/mine\.py:FUNCTION"'):
        check_reward("nested/mine.py")
