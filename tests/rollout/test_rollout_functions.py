"""Whole groups from functions that make one rollout, also of the user: what is lost, what is scored, what is refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from generate_answers import Decoder, answer

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack, unpack
from bus.messages import Sample, Ticket
from miles_async.config import rules
from miles_async.config.schema import Algorithm, ConfigError, Data, Model, Rollout, Router, RunConfig, Staleness
from miles_async.engines.client import EngineError
from miles_async.hooks.hook import HookError
from miles_async.rewards import Graded, RewardError, RewardSample
from miles_async.rollout import per_sample, single_turn
from miles_async.rollout.failures import RolloutError, check_samples, reason_of
from miles_async.rollout.generate import AbortedError, AnswerError
from miles_async.rollout.interface import RolloutContext
from miles_async.rollout.registry import rollout_function
from miles_async.rollout.scoring import score
from miles_async.router import kinds

TICKET = Ticket(group_id="0-7-0", prompt_tokens=pack([5, 6], TOKENS), sampling_seed=40, prompt="p", label="l")

FUNCTIONS = """
import asyncio
from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack
from bus.messages import Sample

def made(token, **fields):
    return Sample(index=0, tokens=pack([token], TOKENS), logprobs=pack([0.0], LOGPROBS), loss_mask=pack([1], MASK),
                  versions=pack([0], VERSIONS), reward=0.0, finish_reason="stop", **fields)

async def branches(ticket, index, context):
    return [made(10 * index + branch) for branch in range(index + 1)]

async def unlucky(ticket, index, context):
    if index == 1:
        raise OSError("the sandbox is gone")
    if index == 2:
        return []
    return [made(index)]

async def always(ticket, index, context):
    raise OSError(f"the sandbox of {index} is gone")

async def together(ticket, index, context):
    barrier = await context.resource("barrier", opened)
    await barrier.wait()
    return [made(index)]

class opened:
    async def __aenter__(self):
        return asyncio.Barrier(3)
    async def __aexit__(self, *error):
        pass

async def not_samples(ticket, context):
    return "text"
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    path = tmp_path / "my_rollouts.py"
    path.write_text(FUNCTIONS)
    return path


@contextlib.asynccontextmanager
async def context(
    ask: Any = None, events: list[dict[str, Any]] | None = None, **rollout: Any
) -> AsyncIterator[RolloutContext]:
    async def tell(kind: str, **data: Any) -> None:
        assert events is not None and kind == "sample_lost"
        events.append(data)

    config = RunConfig(
        model=Model(hf_checkpoint="none"),
        data=Data(prompt_data="none"),
        rollout=Rollout(**{"n_samples_per_prompt": 3} | rollout),
    )
    async with contextlib.AsyncExitStack() as stack:
        yield RolloutContext(config, Decoder(), ask, stack, tell)  # type: ignore[arg-type]


def tokens(samples: Sequence[Sample]) -> list[list[int]]:
    return [unpack(sample.tokens, TOKENS).tolist() for sample in samples]


async def test_one_request_for_a_group_and_one_for_each_sample_ask_for_the_same() -> None:
    asked: dict[str, dict[str, Any]] = {}

    async def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
        for rid, ids, params in zip(body["rid"], body["input_ids"], body["sampling_params"], strict=True):
            assert asked.setdefault(rid, {"ids": ids, "params": params}) == {"ids": ids, "params": params}
        return [answer(rid, [int(rid.split(".")[1])]) for rid in body["rid"]]

    async with context(ask) as found:
        group = await single_turn.rollout(TICKET, found)
        count = len(asked)
        samples = await per_sample.rollout(TICKET, found)
    assert count == len(asked) == 3
    assert [msgspec.structs.replace(sample, rollout_index=-1) for sample in samples] == group
    assert [(sample.index, sample.rollout_index) for sample in samples] == [(0, 0), (1, 1), (2, 2)]


async def test_the_branches_of_rollouts_are_numbered_through_and_know_their_rollout(functions: Path) -> None:
    async with context(generate_function=f"{functions}:branches") as found:
        samples = await per_sample.rollout(TICKET, found)
    assert tokens(samples) == [[0], [10], [11], [20], [21], [22]]
    assert [(s.index, s.rollout_index) for s in samples] == [(0, 0), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]


async def test_a_rollout_that_fails_costs_itself_and_is_on_record(functions: Path) -> None:
    events: list[dict[str, Any]] = []
    async with context(events=events, generate_function=f"{functions}:unlucky") as found:
        samples = await per_sample.rollout(TICKET, found)
    assert [(sample.index, sample.rollout_index) for sample in samples] == [(0, 0)]
    assert [(event["group"], event["rollout"], event["reason"]) for event in events] == [
        ("0-7-0", 1, "rollout_error"),
        ("0-7-0", 2, "rollout_error"),
    ]
    assert [event["detail"] for event in events] == [
        "OSError: the sandbox is gone",
        "rollout.generate_function: no sample",
    ]


async def test_where_every_rollout_fails_the_attempt_fails_with_the_first_cause(functions: Path) -> None:
    async with context(events=[], generate_function=f"{functions}:always") as found:
        with pytest.raises(OSError, match="the sandbox of 0 is gone"):
            await per_sample.rollout(TICKET, found)


async def test_rollouts_of_a_group_run_at_once_and_open_what_they_share_once(functions: Path) -> None:
    async with context(generate_function=f"{functions}:together") as found, asyncio.timeout(10):
        assert tokens(await per_sample.rollout(TICKET, found)) == [[0], [1], [2]]


async def test_a_resource_is_opened_once_closed_at_the_end_and_opened_again_after_a_failure() -> None:
    log: list[str] = []

    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[int]:
        log.append("open")
        await asyncio.sleep(0)
        if len(log) == 1:
            raise OSError("the port is taken")
        yield len(log)
        log.append("close")

    async with context() as found:
        first = await asyncio.gather(*(found.resource("server", opened) for _ in range(3)), return_exceptions=True)
        assert isinstance(first[0], OSError) and first[1:] == [2, 2]
        assert await found.resource("server", opened) == 2
        assert await found.resource("other", opened) == 3
    assert log == ["open", "open", "open", "close", "close"]


async def test_a_generate_function_of_the_users_own_is_called_for_each_sample(functions: Path) -> None:
    async with context() as found:
        assert rollout_function(found.config) is single_turn.rollout
    async with context(request_per_sample=True) as found:
        assert rollout_function(found.config) is per_sample.rollout
    async with context(generate_function=f"{functions}:branches") as found:
        assert rollout_function(found.config) is per_sample.rollout
    async with context(rollout_function=f"{functions}:not_samples") as found:
        function = rollout_function(found.config)
        with pytest.raises(RolloutError, match="a list of samples is expected, not 'text'"):
            check_samples(await function(TICKET, found))
    async with context(generate_function=f"{functions}:not_samples") as found:
        with pytest.raises(HookError, match=r"it must take \(ticket, index, context\)"):
            await per_sample.rollout(TICKET, found)


def sample(index: int, **fields: Any) -> Sample:
    whole: dict[str, Any] = {
        "tokens": pack([1, 2], TOKENS),
        "logprobs": pack([0, 0], LOGPROBS),
        "loss_mask": pack([1, 1], MASK),
        "versions": pack([0, 0], VERSIONS),
        "reward": 0.0,
        "finish_reason": "stop",
        "text": f"text {index}",
    }
    return Sample(index=index, **whole | fields)


@pytest.mark.parametrize("missing", ["tokens", "logprobs", "loss_mask", "versions"])
def test_a_sample_whose_columns_differ_is_refused_by_the_worker_and_not_by_the_learner(missing: str) -> None:
    check_samples([sample(0)])
    with pytest.raises(RolloutError, match=r"sample 3: .* tokens, logprobs, loss_mask and versions"):
        check_samples([sample(0), sample(3, **{missing: b"\0"})])
    with pytest.raises(RolloutError, match="sample 0: 0, 0, 0, 0 tokens"):
        check_samples([sample(0, tokens=b"", logprobs=b"", loss_mask=b"", versions=b"")])


def test_every_failure_has_a_word_to_count_it_by() -> None:
    found = [
        reason_of(EngineError("e0", "/generate", "too long", 400)),
        reason_of(AnswerError("two\nlines")),
        reason_of(AbortedError("x")),
        reason_of(RewardError("reward_timeout", "late")),
        reason_of(ZeroDivisionError("in a tool")),
    ]
    assert [reason for reason, _ in found] == [
        "generate_error", "generate_error", "aborted", "reward_timeout", "rollout_error",
    ]  # fmt: skip
    assert found[1][1] == "two lines" and found[4][1] == "ZeroDivisionError: in a tool"


class Judge:
    """Grades by the response's text; ``None`` is a grader that dies."""

    def __init__(self, **grades: float | None) -> None:
        self.grades, self.asked = grades, list[RewardSample]()

    async def score(self, samples: Sequence[RewardSample]) -> list[Graded | RewardError]:
        self.asked += samples
        found = [self.grades[s.response.replace(" ", "")] for s in samples]
        return [RewardError("reward_error", "it died") if g is None else Graded(g, {"match": g}) for g in found]


async def test_a_grader_that_dies_costs_the_one_sample(functions: Path) -> None:
    judge = Judge(text0=0.25, text1=None, text2=1.0)
    scored, lost = await score(TICKET, [sample(0), sample(1), sample(2)], judge)
    assert [(s.index, s.reward, s.reward_parts) for s in scored] == [
        (0, 0.25, {"match": 0.25}),
        (2, 1.0, {"match": 1.0}),
    ]
    assert [(number, error.reason) for number, error in lost] == [(1, "reward_error")]
    asked = judge.asked[0]
    assert (asked.prompt, asked.label, asked.tokens, asked.group_id, asked.index) == ("p", "l", [1, 2], "0-7-0", 0)


async def test_where_no_sample_can_be_graded_the_attempt_fails_with_the_first_cause() -> None:
    with pytest.raises(RewardError, match="it died"):
        await score(TICKET, [sample(0), sample(1)], Judge(text0=None, text1=None))


async def test_the_branches_of_a_rollout_are_graded_once_and_share_the_reward_or_the_loss() -> None:
    branches = [sample(0, rollout_index=0), sample(1, rollout_index=0), sample(2, rollout_index=1)]
    judge = Judge(text1=0.5, text2=None)
    scored, lost = await score(TICKET, branches, judge)
    assert [(s.index, s.reward) for s in scored] == [(0, 0.5), (1, 0.5)]
    assert [s.response for s in judge.asked] == ["text 1", "text 2"] and [number for number, _ in lost] == [1]


async def test_what_its_function_has_scored_is_not_graded_again() -> None:
    judge = Judge(text1=0.5)
    own = sample(0, reward=0.75, reward_parts={"won": 1.0})
    scored, lost = await score(TICKET, [own, sample(1)], judge)
    assert scored[0] == own and scored[1].reward == 0.5 and not lost and len(judge.asked) == 1
    assert (await score(TICKET, [own], judge))[0] == [own]


@pytest.mark.parametrize(
    ("rollout", "says"),
    [
        ({"over_sampling_batch_size": 3}, "rollout.over_sampling_batch_size = 3 must be at least"),
        ({"generate_function": "multi_turn"}, "rollout.execute_tool_function is missing"),
        (
            {"partial_rollout": False, "mask_offpolicy_in_partial_rollout": True},
            "mask_offpolicy_in_partial_rollout = true needs rollout.partial_rollout = true",
        ),
    ],
)
def test_settings_that_could_not_work_together_are_refused(rollout: dict[str, Any], says: str) -> None:
    config = RunConfig(
        model=Model(hf_checkpoint="none"),
        data=Data(prompt_data="none"),
        rollout=Rollout(rollout_batch_size=4, **rollout),
        staleness=Staleness(max_lag=0),
    )
    with pytest.raises(ConfigError, match=says):
        rules.check(config)


def test_a_limit_that_follows_the_load_needs_a_router_that_says_it() -> None:
    config = RunConfig(
        model=Model(hf_checkpoint="none"),
        data=Data(prompt_data="none"),
        rollout=Rollout(adaptive_in_flight=True),
        algorithm=Algorithm(correction="behaviour"),
    )
    kinds.check(config)
    with pytest.raises(ConfigError, match=r'adaptive_in_flight = true needs router.kind = "builtin": "sglang"'):
        kinds.check(msgspec.structs.replace(config, router=Router(kind="sglang")))
