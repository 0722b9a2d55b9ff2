"""return_routed_experts: which experts come back, from where on, and what becomes of them when a sequence is computed again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from contract.checkpoint import EXPERTS, LAYERS, TOP_K, experts_chosen, log_probs
from contract.client import LONG, PROMPT, Engine, sampled
from contract.differences import differs
from miles_async.groups.routes import RouteShape
from miles_async.rollout.generate import token_versions
from miles_async.rollout.routes import has_routes, read_routes, unpaired_in

SHAPE = RouteShape(LAYERS, TOP_K, EXPERTS)
TOLERANCE = 1e-4


def experts_in(answer: dict[str, Any], start: int = 0) -> list[list[list[int]]]:
    """The experts of an answer's tokens but the last, from ``start`` on, in ascending order: the kernels' own differs."""
    rows = len(PROMPT) + len(answer["output_ids"]) - 1
    packed = read_routes(answer["meta_info"], SHAPE, start, rows, start)
    return [[sorted(layer) for layer in SHAPE.unpack(row)[0].tolist()] for row in packed]


async def test_a_server_says_that_it_returns_experts(mixture_engine: Engine) -> None:
    info = await mixture_engine.call("GET", "/server_info")
    assert info.body["enable_return_routed_experts"] is True


@pytest.mark.parametrize("start", [0, 3])
async def test_experts_are_those_of_transformers_router_from_where_they_are_asked_for(
    mixture_engine: Engine, start: int
) -> None:
    answers = await mixture_engine.ok(
        "/generate",
        input_ids=[list(PROMPT)] * 2,
        sampling_params={"max_new_tokens": 9, "ignore_eos": True},
        return_logprob=True,
        return_routed_experts=True,
        routed_experts_start_len=start,
    )
    for answer in answers:
        expected = log_probs(mixture_engine.model, PROMPT, answer["output_ids"])
        assert sampled(answer) == pytest.approx(expected, abs=TOLERANCE)
        whole = experts_chosen(mixture_engine.model, [*PROMPT, *answer["output_ids"]])
        assert experts_in(answer, start) == whole[start:]
        assert unpaired_in(answer["meta_info"], token_versions(answer["meta_info"], 9), updates_retract=True) == 0
    unasked = await mixture_engine.generate(sampling_params={"max_new_tokens": 2})
    assert not has_routes(unasked["meta_info"])


async def test_an_aborted_answer_has_the_experts_of_what_it_has(mixture_engine: Engine) -> None:
    watched = mixture_engine.watch(LONG, return_routed_experts=True)
    await watched.until_tokens(20)
    await mixture_engine.ok("/abort_request", rid=watched.rid)
    answer = await watched.finished()
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    assert experts_in(answer) == experts_chosen(mixture_engine.model, [*PROMPT, *answer["output_ids"]])


async def test_of_a_retracted_answer_the_tokens_of_another_pass_than_its_experts_are_known(
    mixture_engine: Engine,
) -> None:
    watched = mixture_engine.watch(400, return_routed_experts=True)
    await watched.until_tokens(20)
    await mixture_engine.ok("/pause_generation", mode="retract")
    await mixture_engine.ok("/update_weights_from_disk", model_path=str(mixture_engine.other), weight_version="1")
    await mixture_engine.ok("/continue_generation")
    answer = await asyncio.wait_for(watched.finished(), 60)
    meta, tokens = answer["meta_info"], [*PROMPT, *answer["output_ids"]]
    (old, _) = meta["weight_versions"]
    split, found = len(PROMPT) + old["end"] - 1, experts_in(answer)
    by_old, by_new = (experts_chosen(path, tokens) for path in (mixture_engine.model, mixture_engine.other))
    assert found[split:] == by_new[split:] and by_old[:split] != by_new[:split]
    again = differs(mixture_engine, "routes are of the pass that gave the log-prob, through a retraction")
    assert found[:split] == (by_new if again else by_old)[:split]
    versions = token_versions(meta, len(answer["output_ids"]))
    assert unpaired_in(meta, versions, updates_retract=True) == (old["end"] if again else 0)
    await mixture_engine.ok("/update_weights_from_disk", model_path=str(mixture_engine.model), weight_version="0")
