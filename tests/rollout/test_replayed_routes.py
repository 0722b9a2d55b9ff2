"""Routes on their way from answers into a sample: each of the pass that gave the log-prob behind it, or not trained on."""

from __future__ import annotations

import asyncio
import base64
import random
from typing import Any

import numpy as np
import pytest
from generate_answers import Decoder, answer
from hypothesis import given
from hypothesis import strategies as st

from bus.codec import LOGPROBS, MASK, TOKENS, pack, unpack
from bus.messages import Sample, Ticket
from miles_async.config.schema import Rollout
from miles_async.groups.routes import RouteShape
from miles_async.rollout.bounds import Bounds
from miles_async.rollout.generate import AbortedError, AnswerError, Turn, complete, generate_group
from miles_async.rollout.routes import read_routes, unpaired
from miles_async.rollout.trajectory import Trajectory
from miles_async.rollout.unpaired import UnpairedShare

SHAPE = RouteShape(layers=2, top_k=3, experts=1000)
BOUNDS = Bounds(routes=SHAPE)


class Passes:
    """An engine whose routes and log-probs name the pass that they are of.

    ``rng`` decides when it computes a sequence again (with new weights, or for room), when it aborts, and how much it samples.
    keeps: it returns the routes of the first pass that computed a token, as the embedded engine; else of the last. in_place:
    it goes on with new weights without computing anything again.
    """

    def __init__(self, rng: random.Random, *, keeps: bool, in_place: bool = False) -> None:
        self.rng, self.keeps, self.in_place = rng, keeps, in_place
        self.number = self.version = 0

    async def ask(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            self.one(ids, params["max_new_tokens"], body["routed_experts_start_len"])
            for ids, params in zip(body["input_ids"], body["sampling_params"], strict=True)
        ]

    def one(self, ids: list[int], room: int, start: int) -> dict[str, Any]:
        self.number += 1
        routes = [self.number] * len(ids)
        logprobs, versions, retractions = [], [], 0
        size = self.rng.randint(1, min(8, room))
        for place in range(size):
            what = self.rng.choice(["go on"] * 6 + ["update", "no room"]) if place else "go on"
            self.version += what == "update"
            if what == "no room" or (what == "update" and not self.in_place):
                self.number, retractions = self.number + 1, retractions + 1
                if not self.keeps:
                    routes = [self.number] * len(routes)
                routes[-1] = self.number  # of the newest token, which no pass has read before
            logprobs.append(-float(self.number))
            versions.append(self.version)
            routes.append(self.number)
        rows = np.array(routes[start:-1], "<i4").repeat(SHAPE.layers * SHAPE.top_k)
        meta = {
            "output_token_logprobs": [[value, 7, None] for value in logprobs],
            "weight_versions": [{"version": v, "start": i, "end": i + 1} for i, v in enumerate(versions)],
            "num_retractions": retractions,
            "routed_experts": base64.b64encode(rows.tobytes()).decode(),
        } | ({"routed_experts_kept": True} if self.keeps else {})
        finish = "length" if size == room else self.rng.choice(["stop", "abort"])
        return answer("r", [7] * size, finish, **meta)


def check(sample: Sample, prompt: int) -> int:
    """That each token that is trained on has a log-prob of the pass that the row in front of it is of. Returns how many."""
    rows = SHAPE.unpack(sample.routes)[:, 0, 0].tolist()
    logprobs, mask = unpack(sample.logprobs, LOGPROBS).tolist(), unpack(sample.loss_mask, MASK).tolist()
    assert len(rows) == prompt + len(mask) - 1
    trained = [place for place, kept in enumerate(mask) if kept]
    assert all(rows[prompt + place - 1] == -logprobs[place] for place in trained)
    return len(trained)


@pytest.mark.parametrize(("keeps", "in_place"), [(True, False), (False, False), (False, True)])
def test_a_token_that_is_trained_on_has_the_route_of_its_log_probs_pass(keeps: bool, in_place: bool) -> None:
    """Through aborts, turns, what the environment adds, updates and retractions."""
    trained = whole = 0
    bounds = Bounds(routes=SHAPE, updates_retract=not in_place)

    @given(st.integers(0, 2**32 - 1))
    def every(seed: int) -> None:
        nonlocal trained, whole
        rng = random.Random(seed)
        engine, turns = Passes(rng, keeps=keeps, in_place=in_place), rng.randint(1, 4)
        trajectory = Trajectory(range(rng.randint(1, 4)))
        config = Rollout(rollout_max_response_len=30)

        async def play() -> None:
            for _ in range(turns):
                if BOUNDS.room(trajectory, config) < 4:
                    return
                await complete([Turn(trajectory, rid="r", seed=1)], config, engine.ask, bounds)
                if rng.random() < 0.7:
                    trajectory.observed([9] * rng.randint(1, 3))

        asyncio.run(play())
        trained += check(trajectory.sample(0, "stop", Decoder()), len(trajectory.prompt))  # type: ignore[arg-type]
        whole += sum(token == 7 for token in trajectory.tokens)

    every()
    assert trained == whole if keeps else 0.2 * whole < trained < whole


def test_sequences_of_one_request_that_know_different_numbers_of_rows_get_each_its_own() -> None:
    engine = Passes(random.Random(2), keeps=True)
    trajectories = [Trajectory([1, 2]), Trajectory([1, 2, 3, 4])]
    config = Rollout(rollout_max_response_len=40)
    for asked in (trajectories[:1], trajectories, trajectories[1:], trajectories):
        turns = [Turn(one, rid=str(i), seed=1) for i, one in enumerate(asked)]
        asyncio.run(complete(turns, config, engine.ask, BOUNDS))
    for one in trajectories:
        assert check(one.sample(0, "stop", Decoder()), len(one.prompt)) == len(one.tokens)  # type: ignore[arg-type]


@given(
    spans=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    retractions=st.integers(0, 6),
    updates_retract=st.booleans(),
)
def test_what_came_before_the_last_computation_is_unpaired_and_all_of_it_where_that_cannot_be_told(
    spans: list[int], retractions: int, updates_retract: bool
) -> None:
    versions = [version for version, size in enumerate(spans) for _ in range(size)]
    located = updates_retract and retractions == len(spans) - 1
    expected = 0 if not retractions else len(versions) - spans[-1] if located else len(versions)
    assert unpaired(versions, retractions, updates_retract=updates_retract) == expected


async def generated(script: list[dict[str, Any]]) -> Sample:
    async def ask(_: dict[str, Any]) -> list[dict[str, Any]]:
        return [script.pop(0)]

    ticket = Ticket(group_id="0-7-0", prompt_tokens=pack([5, 6], TOKENS), sampling_seed=40)
    config = Rollout(n_samples_per_prompt=1, rollout_max_response_len=9)
    (sample,) = await generate_group(ticket, config, ask, Decoder(), BOUNDS)  # type: ignore[arg-type]
    return sample


def routed(tokens: list[int], rows: int, expert: int = 1, finish: str = "stop") -> dict[str, Any]:
    numbers = np.full(rows * SHAPE.layers * SHAPE.top_k, expert, "<i4")
    return answer("r", tokens, finish, routed_experts=base64.b64encode(numbers.tobytes()).decode())


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (answer("r", [1, 2]), "no routed_experts in the answer, .* --enable-return-routed-experts"),
        (answer("r", [1, 2], routed_experts="???"), "no base64 of int32"),
        (answer("r", [1, 2], routed_experts=7), "no base64 of int32"),
        (routed([1, 2], 2), "12 numbers, 3 x 2 x 3 were expected"),
        (routed([1, 2], 4), "24 numbers, 3 x 2 x 3 were expected"),
        (routed([1, 2], 3, SHAPE.experts), r"not in 0..999"),
        (routed([1, 2], 3, -1), r"not in 0..999"),
    ],
)
async def test_an_answer_without_its_experts_is_refused_with_the_cause(broken: dict[str, Any], why: str) -> None:
    with pytest.raises(AnswerError, match=f"^r: .*{why}") as caught:
        await generated([broken])
    assert "\n" not in str(caught.value)


async def test_an_abort_without_routes_is_gone_on_from_behind_the_tokens_that_have_them() -> None:
    """SGLang has none of a sequence that was waiting to be computed again."""
    sample = await generated([routed([1], 2, finish="abort"), answer("r", [2, 3], "abort"), routed([4], 1)])
    assert unpack(sample.tokens, TOKENS).tolist() == [1, 4]
    assert len(sample.routes) == 3 * SHAPE.row_bytes
    with pytest.raises(AbortedError):
        await generated([answer("r", [2, 3], "abort")] * 9)


async def test_nobody_asks_for_routes_where_they_are_not_replayed() -> None:
    asked: list[dict[str, Any]] = []

    async def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
        asked.append(body)
        return [answer("r", [1])]

    trajectory = Trajectory([1])
    await complete([Turn(trajectory, rid="r", seed=1)], Rollout(), ask)
    assert not [name for body in asked for name in body if "routed" in name]
    assert trajectory.sample(0, "stop", Decoder()).routes == b""  # type: ignore[arg-type]


def test_a_trajectory_that_was_cut_is_the_one_that_it_was() -> None:
    trajectory = Trajectory([1, 2])
    trajectory.sampled([3], [-1.0], [0], [b"a", b"b"])
    before = trajectory.first(1)
    trajectory.observed([4])
    trajectory.sampled([5, 6], [-1.0] * 2, [0] * 2, [b"c", b"d", b"e"], unpaired=1)
    assert trajectory.mask == [1, 0, 0, 1] and trajectory.routes == [b"a", b"b", b"c", b"d", b"e"]
    assert vars(trajectory.first(1)) == vars(before) and trajectory.first(3).routes == [b"a", b"b", b"c", b"d"]
    trajectory.cut(0)
    assert vars(trajectory) == vars(Trajectory([1, 2]))


def test_rows_are_read_from_where_they_were_asked_for_and_those_that_are_known_are_left_out() -> None:
    numbers = np.arange(5 * 6, dtype="<i4")
    meta = {"routed_experts": base64.b64encode(numbers.tobytes()).decode()}
    rows = read_routes(meta, SHAPE, start=2, rows=7, known=4)
    assert [SHAPE.unpack(row).ravel().tolist() for row in rows] == numbers.reshape(5, 6)[2:].tolist()


def test_the_share_of_tokens_that_are_left_out_is_reported_once() -> None:
    share = UnpairedShare(updates_retract=True)
    spans = [{"version": "1", "start": 0, "end": 1}, {"version": "2", "start": 1, "end": 4}]
    share.count([answer("r", [1] * 4, weight_versions=spans, num_retractions=1), answer("s", [1] * 4), {"odd": 1}])
    share.count("odd")
    assert share.report() == {"rollout/unpaired_routes": 1 / 8}
    assert share.report() == {}
