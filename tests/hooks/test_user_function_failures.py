"""A function of the user's that fails: what it costs, what is said of it, and when it ends the run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bus.messages import Event, Transition
from miles_async.config.schema import Data, Model, Rollout, RunConfig
from miles_async.filters.apply import FilterError, GroupFilters
from miles_async.hooks.daemon_thread import in_thread
from miles_async.monitor.announce import Announcer
from miles_async.monitor.give_up import BATCHES_OF_REFUSALS, GiveUp
from miles_async.rewards import RewardError
from miles_async.rollout.failures import cause_of, lost, reason_of
from miles_async.rollout.first_failures import FirstFailures, OwnCancellation, contained

BATCH = 8


def failed(
    group: int, reason: str = "reward_error", detail: str = "ZeroDivisionError: {} / 0 (mine.py:3 in score)"
) -> Transition:
    return Transition(kind="failed", group_ids=(f"0-{group}-0",), reason=reason, detail=detail.format(group))


def dropped(
    group: int, reason: str = "reward_error", detail: str = "ZeroDivisionError: {} / 0 (mine.py:3 in score)"
) -> Transition:
    return Transition(
        kind="dropped", group_ids=(f"0-{group}-0",), reason=reason, detail=detail.format(group), lengths=(3, 4)
    )


PUBLISHED = Transition(kind="published", group_ids=("0-99-0",))


def verdict(*transitions: Transition, filtered: bool = False) -> str:
    judge = GiveUp(BATCH, filtered)
    for transition in transitions:
        judge.add(transition)
    return judge.verdict


# --- when it is the end


def test_a_cause_that_a_whole_batch_has_met_and_nothing_got_past_is_the_end_of_the_run() -> None:
    assert verdict(*[failed(i) for i in range(BATCH - 1)]) == ""
    assert (
        verdict(*[failed(0) for _ in range(10)], *[failed(i) for i in range(BATCH - 1)]) == ""
    )  # groups, not attempts
    assert verdict(*[failed(i) for i in range(BATCH)]) == (
        "8 groups in a row failed by the same cause: reward_error: ZeroDivisionError: 7 / 0 (mine.py:3 in score)"
    )
    others = [failed(i, detail=f"OSError: {i} (mine.py:{i} in score)") for i in range(BATCH)]
    assert verdict(*others) == ""  # a cause for each


def test_what_worked_before_is_given_up_only_with_a_batch_of_groups_after_all_their_attempts() -> None:
    assert verdict(PUBLISHED, *[failed(i) for i in range(50)]) == ""
    assert (
        verdict(PUBLISHED, *[dropped(i) for i in range(BATCH - 1)], PUBLISHED, *[dropped(i) for i in range(BATCH - 1)])
        == ""
    )
    assert verdict(PUBLISHED, *[dropped(i) for i in range(BATCH)]).startswith("8 groups in a row were all dropped")


@pytest.mark.parametrize("reason", ["generate_error", "reward_timeout", "aborted", "worker_died"])
def test_what_may_pass_is_given_up_only_after_all_attempts(reason: str) -> None:
    assert verdict(*[failed(i, reason, "away") for i in range(50)]) == ""
    assert "away" in verdict(*[dropped(i, reason, "away") for i in range(BATCH)])


def test_refusals_of_a_filter_are_no_failures_and_have_a_patience_of_their_own() -> None:
    refusals = [dropped(i, "zero_std", "rewards 1, 1") for i in range(20 * BATCH)]
    judge = GiveUp(BATCH, filtered=True)
    for transition in [*refusals, *[failed(i) for i in range(BATCH)]]:
        judge.add(transition)
    counts = {"ready": 0, "batched": 0, "trained": 0, "dropped": 0}
    assert judge.look(counts) == ""  # the functions have worked: these failures may pass
    many = BATCHES_OF_REFUSALS * BATCH - 1
    assert judge.look(counts | {"dropped": many, "dropped:zero_std": many}) == ""
    assert judge.look(counts | {"dropped": many + 1, "dropped:zero_std": many + 1}).startswith("the last 320 groups")
    errors = GiveUp(BATCH, filtered=True)
    errors.look(counts)
    assert errors.look(counts | {"dropped": 32, "dropped:reward_error": 32}).startswith("the last 32 groups")


# --- what is said


def test_a_cause_is_said_once_with_its_place_and_never_doubled() -> None:
    error = RewardError("reward_error", "ZeroDivisionError: division by zero", "mine.py:3 in score", "the traceback")
    assert reason_of(error) == ("reward_error", "ZeroDivisionError: division by zero")
    reason, detail = cause_of(error)
    assert (reason, detail) == ("reward_error", "ZeroDivisionError: division by zero (mine.py:3 in score)")
    firsts = FirstFailures()
    assert firsts.news(error, reason, detail) == {"reason": reason, "cause": detail, "traceback": "the traceback"}
    assert firsts.news(error, reason, detail.replace("division", "another division")) is None
    assert "traceback" not in lost(error, firsts)
    assert lost(error, FirstFailures())["traceback"] == "the traceback"
    long = RewardError("reward_error", "x" * 1000, "mine.py:3 in score")
    assert cause_of(long)[1].endswith("x (mine.py:3 in score)")
    assert len(cause_of(long)[1]) == 400


def test_the_terminal_has_the_traceback_once_and_counts_the_rest() -> None:
    announcer = Announcer()

    def event(kind: str, actor: str = "supervisor", **data: Any) -> Event:
        return Event(actor=actor, kind=kind, time=0.0, data=data)

    cause = "ZeroDivisionError: division by zero (mine.py:3 in score)"
    said = [
        announcer.text(
            event("failure", f"rollout-{i}", reason="reward_error", cause=cause, traceback="File mine.py\n1 / 0")
        )
        for i in range(3)
    ]
    assert said == [f"rollout-0: reward_error: {cause}\n    File mine.py\n    1 / 0", "", ""]
    letters = [
        announcer.text(
            event(
                "dead_letter",
                group=f"0-{i}-0",
                reason="reward_error",
                causes=(f"rollout-0/1: reward_error: {cause}",) * 3,
                prompt="many\nlines " * 100,
            )
        )
        for i in range(100)
    ]
    assert [i for i, text in enumerate(letters) if text] == [0, 9, 99]
    assert letters[0].startswith(f"group 0-0-0 is given up after 3 attempts: reward_error: {cause}; prompt 'many")
    assert letters[0].count("ZeroDivisionError") == 1
    assert all("\n" not in text and len(text) < 300 for text in letters)
    assert letters[99] == f"100 groups are given up by that cause: reward_error: {cause}"


def test_the_users_line_is_found_however_often_its_error_was_wrapped() -> None:
    with pytest.raises(RuntimeError) as wrapped:
        try:
            with contained():
                exec(compile("def f():\n    raise SystemExit(1)\nf()", "/somewhere/mine.py", "exec"), {})
        except OwnCancellation as error:
            error.__traceback__ = None  # as where nothing but our own frames lies between
            raise RuntimeError("the agent failed") from error
    wrapped.value.__traceback__ = None
    assert cause_of(wrapped.value)[1].endswith("(mine.py:2 in f)")


# --- what it may raise


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_what_would_end_a_task_or_a_process_is_a_failure_of_the_function_that_raised_it(
    error: type[BaseException],
) -> None:
    with pytest.raises(OwnCancellation, match=f"{error.__name__}: mine") as caught, contained():
        raise error("mine")
    assert reason_of(caught.value)[0] == "rollout_error"


async def test_the_end_of_the_very_task_goes_through() -> None:
    async def waits() -> None:
        with contained():
            await asyncio.Event().wait()

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await waits()


@pytest.mark.parametrize("error", [StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError])
async def test_whatever_a_function_raises_in_a_thread_arrives_where_it_is_waited_for(
    error: type[BaseException],
) -> None:
    def function() -> None:
        raise error("mine")

    with pytest.raises((RuntimeError, RecursionError), match="mine"):
        await asyncio.wait_for(in_thread(function), 10)


FILTERS = """
class Mute(Exception):
    def __str__(self): raise RuntimeError
class Shy:
    def __repr__(self): raise RuntimeError

def none(samples): return None
def text(samples): return "yes"
def shy(samples): return Shy()
async def awaited(samples): return True
def exits(samples): raise SystemExit("enough")
def stops(samples): raise StopIteration("enough")
def interrupts(samples): raise KeyboardInterrupt("enough")
def mute(samples): raise Mute
def deep(samples): return deep(samples)
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("none", "returned None, not"),
        ("text", "returned 'yes', not"),
        ("shy", "returned a Shy, not"),
        ("exits", "SystemExit: enough"),
        ("stops", "StopIteration: enough"),
        ("interrupts", "KeyboardInterrupt: enough"),
        ("mute", "Mute: (its text cannot be had: RuntimeError)"),
        ("deep", "RecursionError: maximum recursion depth"),
    ],
)
def test_a_filter_that_raises_or_returns_what_it_may_not_is_one_line_with_its_key(
    tmp_path: Path, name: str, says: str
) -> None:
    path = tmp_path / "filters.py"
    path.write_text(FILTERS)
    rollout = Rollout(dynamic_sampling_filter=f"{path}:{name}")
    config = RunConfig(model=Model(hf_checkpoint="x"), data=Data(prompt_data="x"), rollout=rollout)
    with pytest.raises(FilterError) as caught:
        GroupFilters(config).refusal([])
    reason, detail = cause_of(caught.value)
    assert reason == "filter_error"
    assert f"rollout.dynamic_sampling_filter{'' if 'returned' in says else ':'} {says}" in detail
    assert "\n" not in detail
    if "returned" not in says:
        assert (
            f"(filters.py:{15 if name == 'deep' else detail.rpartition(':')[2].partition(' ')[0]} in {name})" in detail
        )
        assert caught.value.trace.startswith(f'  File "{path}"')
