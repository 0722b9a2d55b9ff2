"""From an engine's answer to a sample: its own tokens, the version of each, a seed for each, nothing lost to an abort."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from generate_answers import Decoder, answer
from hypothesis import given
from hypothesis import strategies as st

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack, unpack
from bus.messages import Sample, Ticket
from miles_async.config.schema import Rollout
from miles_async.rollout.bounds import Bounds
from miles_async.rollout.generate import (
    MAX_ABORTS,
    SEED_SPACE,
    AbortedError,
    AnswerError,
    OutdatedError,
    continuation_seed,
    generate_group,
    read_answer,
    token_versions,
)
from miles_async.rollout.trajectory import Trajectory

TICKET = Ticket(group_id="0-7-0", prompt_tokens=pack([5, 6], TOKENS), sampling_seed=40)


class Engine:
    """Answers by ``script``: for each seed of the run, its answers in order. Keeps what it was asked."""

    def __init__(self, script: dict[int, list[dict[str, Any]]]) -> None:
        self.script, self.asked = script, list[dict[str, Any]]()

    async def ask(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        self.asked.append(body)
        return [self.script[int(rid.split(".")[1])].pop(0) for rid in body["rid"]]


async def made(engine: Engine, **config: Any) -> list[Sample]:
    rollout = Rollout(n_samples_per_prompt=len(engine.script), **config)
    return await generate_group(TICKET, rollout, engine.ask, Decoder())  # type: ignore[arg-type]


def test_each_token_has_the_version_of_its_span_across_an_update() -> None:
    spans = [{"version": "3", "start": 0, "end": 2}, {"version": "5", "start": 2, "end": 5}]
    assert token_versions({"weight_versions": spans}, 5) == [3, 3, 5, 5, 5]


@pytest.mark.parametrize(
    "spans",
    [
        None,  # a server that knows only the newest version
        [],
        [{"version": "3", "start": 0, "end": 2}],
        [{"version": "3", "start": 0, "end": 2}, {"version": "4", "start": 3, "end": 4}],
    ],
)
def test_a_token_whose_version_is_not_known_is_refused(spans: Any) -> None:
    with pytest.raises(AnswerError, match="a token without a weight version"):
        token_versions({"id": "r", "weight_version": "9", "weight_versions": spans}, 4)


def test_tokens_that_differ_from_those_of_the_log_probs_are_refused() -> None:
    with pytest.raises(AnswerError, match="differ"):
        read_answer(answer("r", [1, 2]) | {"output_ids": [1, 3]})


@pytest.mark.parametrize("finish", [None, {}, {"type": "bored"}, "stop"])
def test_an_end_of_no_known_kind_is_refused(finish: Any) -> None:
    with pytest.raises(AnswerError):
        read_answer(answer("r", [1], finish_reason=finish))


async def test_each_sample_of_a_group_has_a_seed_of_its_own_also_when_it_is_made_again() -> None:
    engine = Engine({0: [answer("", [9])], 1: [answer("", [], "abort"), answer("", [8])], 2: [answer("", [7])]})
    samples = await made(engine)
    assert [unpack(sample.tokens, TOKENS).tolist() for sample in samples] == [[9], [8], [7]]
    assert [sample.index for sample in samples] == [0, 1, 2]
    seeds = [[params["sampling_seed"] for params in body["sampling_params"]] for body in engine.asked]
    assert seeds == [[40, 41, 42], [41]]
    assert [body["rid"] for body in engine.asked] == [["0-7-0.0.0", "0-7-0.1.0", "0-7-0.2.0"], ["0-7-0.1.1"]]
    assert all(body["input_ids"] == [[5, 6]] * len(body["rid"]) for body in engine.asked)
    assert np.all(unpack(samples[0].loss_mask, MASK) == 1)


async def test_an_aborted_sample_goes_on_from_the_tokens_it_has() -> None:
    first = answer("", [1, 2, 3], "abort", version=4)
    second = answer("", [], "abort", version=5)
    third = answer("", [4, 5], "stop", version=6)
    engine = Engine({0: [first, second, third]})
    (sample,) = await made(engine, rollout_max_response_len=8)
    assert unpack(sample.tokens, TOKENS).tolist() == [1, 2, 3, 4, 5]
    assert unpack(sample.versions, VERSIONS).tolist() == [4, 4, 4, 6, 6]
    assert unpack(sample.logprobs, LOGPROBS).tolist() == [-0.5] * 5
    assert unpack(sample.loss_mask, MASK).tolist() == [1] * 5
    assert sample.finish_reason == "stop" and sample.text == "1 2 3 4 5"
    assert [body["input_ids"] for body in engine.asked] == [[[5, 6]], [[5, 6, 1, 2, 3]], [[5, 6, 1, 2, 3]]]
    asked = [body["sampling_params"][0] for body in engine.asked]
    assert [params["max_new_tokens"] for params in asked] == [8, 5, 5]
    assert [params["sampling_seed"] for params in asked] == [40, continuation_seed(40, 3), continuation_seed(40, 3)]
    assert continuation_seed(40, 3) != 40


async def test_a_sample_with_a_token_that_no_step_can_train_is_not_asked_for_again() -> None:
    crossing = answer("", [1, 2, 3], "abort", weight_versions=spans((3, 1), (6, 2)))
    seen = list[int]()

    def outdated(oldest: int) -> bool:
        seen.append(oldest)
        return oldest <= 3

    bounds = Bounds(outdated=outdated)
    engine = Engine({0: [answer("", [9], version=5)], 1: [crossing, answer("", [4])]})
    with pytest.raises(OutdatedError, match=r"sample 0-7-0\.1 has a token of version 3"):
        await generate_group(TICKET, Rollout(n_samples_per_prompt=2), engine.ask, Decoder(), bounds)  # type: ignore[arg-type]
    assert len(engine.asked) == 1 and seen == [3]  # a sample that has ended is not asked about
    engine = Engine({0: [answer("", [1, 2], "abort", version=4), answer("", [3], version=8)]})
    (sample,) = await generate_group(TICKET, Rollout(n_samples_per_prompt=1), engine.ask, Decoder(), bounds)  # type: ignore[arg-type]
    assert unpack(sample.versions, VERSIONS).tolist() == [4, 4, 8]


def spans(*counted: tuple[int, int]) -> list[dict[str, Any]]:
    """As an engine tells them of (version, tokens), ..."""
    ends = [sum(count for _, count in counted[: place + 1]) for place in range(len(counted))]
    return [
        {"version": str(version), "start": end - count, "end": end}
        for (version, count), end in zip(counted, ends, strict=True)
    ]


async def test_what_was_sampled_before_the_last_abort_is_masked_where_the_run_says_so() -> None:
    script = [answer("", [1, 2], "abort"), answer("", [3], "abort"), answer("", [], "abort"), answer("", [4, 5])]
    (sample,) = await made(Engine({0: script}), mask_offpolicy_in_partial_rollout=True)
    assert unpack(sample.tokens, TOKENS).tolist() == [1, 2, 3, 4, 5]
    assert unpack(sample.loss_mask, MASK).tolist() == [0, 0, 0, 1, 1]


async def test_without_partial_rollouts_an_aborted_sample_is_generated_anew_with_its_own_seed() -> None:
    engine = Engine({0: [answer("", [1, 2], "abort"), answer("", [3])]})
    (sample,) = await made(engine, partial_rollout=False)
    assert unpack(sample.tokens, TOKENS).tolist() == [3]
    assert [body["sampling_params"][0]["sampling_seed"] for body in engine.asked] == [40, 40]
    assert [body["input_ids"] for body in engine.asked] == [[[5, 6]], [[5, 6]]]


async def test_an_aborted_sample_that_is_full_has_ended() -> None:
    (sample,) = await made(Engine({0: [answer("", [1, 2, 3], "abort")]}), rollout_max_response_len=3)
    assert sample.finish_reason == "length"


@pytest.mark.parametrize(
    "broken",
    [
        {"finish_reason": {"type": "abort", "message": "no finite probabilities", "status_code": 500}},
        {"output_token_logprobs": [[-0.5, 1, None], [float("nan"), 2, None]]},
    ],
)
async def test_nothing_is_kept_of_weights_that_have_diverged(broken: dict[str, Any]) -> None:
    engine = Engine({0: [answer("", [1, 2], "abort", **broken), answer("", [3])]})
    (sample,) = await made(engine)
    assert unpack(sample.tokens, TOKENS).tolist() == [3]


async def test_a_sample_that_is_always_aborted_without_a_token_more_ends_the_attempt() -> None:
    engine = Engine({0: [answer("", [], "abort")] * MAX_ABORTS})
    with pytest.raises(AbortedError, match="0-7-0"):
        await made(engine)
    aborts = [answer("", [], "abort")] * (MAX_ABORTS - 1)
    progress = [*aborts, answer("", [1], "abort"), *aborts, answer("", [2])]
    (sample,) = await made(Engine({0: progress}))  # a token each time it is allowed to: it gets there
    assert unpack(sample.tokens, TOKENS).tolist() == [1, 2]


@given(
    pieces=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=6),
    limit=st.integers(1, 12),
)
async def test_however_often_it_is_broken_off_a_response_is_its_pieces_in_order(
    pieces: list[tuple[int, int]], limit: int
) -> None:
    """An engine that is asked for less gives less: what it samples is what the sample holds, with its versions."""
    log: list[tuple[int, int]] = []
    left = list(pieces)

    async def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
        room = body["sampling_params"][0]["max_new_tokens"]
        assert room >= 1 and body["input_ids"][0] == [5, 6, *(token for token, _ in log)]
        size, version = left.pop(0) if left else (1, 9)
        tokens = list(range(len(log), len(log) + min(size, room)))
        log.extend((token, version) for token in tokens)
        finish = "length" if len(tokens) == room else "abort" if left else "stop"
        return [answer("", tokens, finish, version)]

    config = Rollout(n_samples_per_prompt=1, rollout_max_response_len=limit)
    with contextlib.suppress(AbortedError):
        (sample,) = await generate_group(TICKET, config, ask, Decoder())  # type: ignore[arg-type]
        assert unpack(sample.tokens, TOKENS).tolist() == [token for token, _ in log]
        assert unpack(sample.versions, VERSIONS).tolist() == [version for _, version in log]
        assert len(log) <= limit


@given(seed=st.integers(0, SEED_SPACE - 1), tokens=st.integers(0, 10**6))
def test_a_seed_of_a_continuation_is_one_that_engines_take_and_the_samples_own_only_at_its_start(
    seed: int, tokens: int
) -> None:
    found = continuation_seed(seed, tokens)
    assert 0 <= found < SEED_SPACE and found == continuation_seed(seed, tokens)
    assert (found == seed) == (tokens == 0)


def test_the_seeds_of_the_continuations_of_a_run_are_all_different() -> None:
    seeds = [continuation_seed(seed, tokens) for seed in range(300) for tokens in range(100)]
    assert len(set(seeds)) >= len(seeds) - 2  # of 2**31: two of these may meet


@given(
    parts=st.lists(
        st.tuples(st.booleans(), st.lists(st.integers(0, 99), min_size=1, max_size=4), st.integers(0, 9)), max_size=6
    )
)
def test_a_trajectory_is_what_was_appended_and_trains_what_the_policy_wrote(
    parts: list[tuple[bool, list[int], int]],
) -> None:
    trajectory = Trajectory([1])
    trajectory.sampled([2], [-0.25], [3])
    expected = [(2, -0.25, 1, 3)]
    for observed, tokens, version in parts:
        if observed:
            trajectory.observed(tokens)
            expected += [(token, 0.0, 0, expected[-1][3]) for token in tokens]
        else:
            trajectory.sampled(tokens, [-0.5] * len(tokens), [version] * len(tokens))
            expected += [(token, -0.5, 1, version) for token in tokens]
    sample = trajectory.sample(0, "stop", Decoder())  # type: ignore[arg-type]
    columns = [
        unpack(getattr(sample, name), dtype).tolist()
        for name, dtype in (("tokens", TOKENS), ("logprobs", LOGPROBS), ("loss_mask", MASK), ("versions", VERSIONS))
    ]
    assert list(zip(*columns, strict=True)) == expected
    assert trajectory.input_ids == [1, *columns[0]]


def test_the_environment_does_not_speak_first() -> None:
    with pytest.raises(ValueError, match="belongs into the prompt"):
        Trajectory([1]).observed([2])
