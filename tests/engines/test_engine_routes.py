"""The experts that the embedded engine returns: transformers' choice, of the pass that gave the log-prob, for whoever asks."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_support import CONTEXT, EXPERTS, TOP_K, VOCAB, hf_routes, make_checkpoint, make_scheduler, request, run
from safetensors.torch import load_file

from miles_async.engines.embedded.protocol import expand, parse
from miles_async.engines.embedded.request import EngineRequest
from miles_async.engines.embedded.routes import base64_of
from miles_async.engines.embedded.sampling_params import RequestError, RequestLimits


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("mixture"), "qwen3_moe")


@pytest.fixture(scope="module")
def other_mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("other"), "qwen3_moe", seed=1)


def routes(one: EngineRequest) -> list[Any]:
    assert one.routes is not None
    assert one.routes.shape == (len(one.item.prompt) + len(one.output) - 1, 2, TOP_K) and one.routes.max() < EXPERTS
    return one.routes.tolist()


def test_routes_are_those_of_transformers_for_prompts_and_responses_that_join_and_leave(mixture: Path) -> None:
    rng = random.Random(3)
    prompts = [[rng.randrange(VOCAB) for _ in range(n)] for n in (1, 2, 9, 9, 40)]
    prompts[3] = prompts[2]  # a prompt that two requests share is computed once
    scheduler = make_scheduler(mixture, max_running=3)
    lengths = (12, 3, 20, 5, 9)
    asked = [
        request(prompt, max_new_tokens=n, sampling_seed=i, routes_from=0)
        for i, (prompt, n) in enumerate(zip(prompts, lengths, strict=True))
    ]
    unasked = request([7, 8], max_new_tokens=15)
    for one in run(scheduler, [*asked[:2], unasked, *asked[2:]]):
        if one is not unasked:
            assert routes(one) == hf_routes(mixture, one.item.prompt + one.output)
    assert unasked.routes is None


def test_a_retraction_replaces_no_route(mixture: Path, other_mixture: Path) -> None:
    """A token's log-prob and the route in front of it are of one model; what comes later is the new one's."""
    scheduler = make_scheduler(mixture)
    asked = [request([i, 4, 8], max_new_tokens=18 + i, sampling_seed=i, routes_from=0) for i in range(3)]
    scheduler.submit(asked)
    for _ in range(7):
        scheduler.step()
    scheduler.pause("retract")
    before = [routes(one) for one in asked]
    scheduler.model.load(load_file(other_mixture / "model.safetensors").items(), complete=True)
    scheduler.set_version("1")
    scheduler.resume()
    while not scheduler.idle:
        scheduler.step()
    for one, kept in zip(asked, before, strict=True):
        tokens, old = one.item.prompt + one.output, len(one.item.prompt) + 7 - 1
        new = hf_routes(other_mixture, tokens)
        assert kept == hf_routes(mixture, tokens)[:old] == routes(one)[:old] != new[:old]
        assert routes(one)[old:] == new[old:]


def test_rows_that_give_way_to_each_other_keep_their_routes(mixture: Path) -> None:
    def asked() -> list[EngineRequest]:
        return [request([i, 7], max_new_tokens=60, sampling_seed=i, routes_from=0) for i in range(8)]

    tight = run(make_scheduler(mixture, max_tokens=150), asked())
    assert any(one.retractions for one in tight)
    for one, free in zip(tight, run(make_scheduler(mixture), asked()), strict=True):
        assert (one.output, routes(one)) == (free.output, routes(free))


def test_an_aborted_request_has_the_routes_of_what_it_has(mixture: Path) -> None:
    scheduler = make_scheduler(mixture, max_running=1)
    running, waiting = (request([5, 6], max_new_tokens=50, routes_from=0) for _ in range(2))
    scheduler.submit([running, waiting])
    for _ in range(4):
        scheduler.step()
    scheduler.abort([running, waiting])
    assert routes(running) == hf_routes(mixture, [5, 6, *running.output]) and len(running.output) == 4
    assert waiting.routes is None


def test_log_probs_are_the_same_whether_or_not_routes_are_asked_for(mixture: Path) -> None:
    with_routes, without = (
        run(make_scheduler(mixture), [request([1, 2, 3], max_new_tokens=20, sampling_seed=4, routes_from=start)])[0]
        for start in (0, -1)
    )
    assert with_routes.output == without.output
    assert with_routes.logprobs == pytest.approx(without.logprobs, abs=1e-6)


def test_a_prompt_of_one_token_beside_a_long_one_has_its_own_routes(mixture: Path) -> None:
    """Nothing of it is computed before the pass that samples."""
    asked = [request(prompt, max_new_tokens=4, routes_from=0) for prompt in ([9], range(50), [9])]
    for one in run(make_scheduler(mixture), asked):
        assert routes(one) == hf_routes(mixture, one.item.prompt + one.output)


def test_the_memory_of_requests_that_have_ended_is_given_back_with_the_cache(mixture: Path) -> None:
    scheduler = make_scheduler(mixture)
    run(scheduler, [request([5], max_new_tokens=90, routes_from=0)])
    assert scheduler.rows.routes.store.size
    assert scheduler.flush() and not scheduler.rows.routes.store.size
    run(scheduler, again := [request([5, 6], max_new_tokens=3, routes_from=0)])
    assert routes(again[0]) == hf_routes(mixture, [5, 6, *again[0].output])


def test_the_answer_has_them_as_sglang_writes_them() -> None:
    found = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    assert base64_of(found, 1) == base64_of(found[1:].astype(np.int32), 0)
    assert len(base64_of(found, 0)) == 24 * 4 * 4 / 3 and base64_of(found, 4) == ""


@pytest.mark.parametrize(
    ("asked", "has_experts", "start"),
    [
        ({}, True, -1),
        ({"return_routed_experts": False, "routed_experts_start_len": 1}, True, -1),
        ({"return_routed_experts": True}, True, 0),
        ({"return_routed_experts": True, "routed_experts_start_len": 3}, True, 3),
        ({"return_routed_experts": True}, False, -1),
    ],
)
def test_they_are_asked_for_of_a_mixture_only_and_from_a_place_in_the_prompt(
    asked: dict[str, Any], has_experts: bool, start: int
) -> None:
    limits = RequestLimits(VOCAB, CONTEXT, True, has_experts)
    parsed = parse(json.dumps({"input_ids": [[1, 2, 3]] * 2, **asked}).encode())
    assert [item.routes_from for item in expand(parsed, [[1, 2, 3]] * 2, limits, lambda: "r")] == [start] * 2


@pytest.mark.parametrize("start", [-1, 4])
def test_a_place_that_is_not_in_the_prompt_is_refused(start: int) -> None:
    body = {"input_ids": [1, 2, 3], "return_routed_experts": True, "routed_experts_start_len": start}
    with pytest.raises(RequestError, match=rf"routed_experts_start_len={start} must be in \[0, 3\]"):
        expand(parse(json.dumps(body).encode()), [[1, 2, 3]], RequestLimits(VOCAB, CONTEXT, True, True), lambda: "r")
