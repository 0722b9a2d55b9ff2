"""From an engine's answer to a sample: its own tokens, the version that sampled each, a seed for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bus.codec import TOKENS, VERSIONS, pack, unpack
from bus.messages import Ticket
from miles_async.config import Rollout
from miles_async.rollout.generate import AbortedError, AnswerError, generate_group, to_sample, token_versions


class Decoder:
    """Stands in for a tokenizer."""

    def decode(self, tokens: list[int], skip_special_tokens: bool = False) -> str:
        return " ".join(map(str, tokens))


def answer(rid: str, tokens: list[int], finish: str = "stop", **meta: Any) -> dict[str, Any]:
    spans = [{"version": "4", "start": 0, "end": len(tokens)}]
    logprobs = [[-0.5, token, None] for token in tokens]
    fields = {"id": rid, "finish_reason": {"type": finish}, "output_token_logprobs": logprobs, "weight_versions": spans}
    return {"output_ids": tokens, "meta_info": fields | meta}


def test_each_token_has_the_version_of_its_span_across_an_update() -> None:
    spans = [{"version": "3", "start": 0, "end": 2}, {"version": "5", "start": 2, "end": 5}]
    assert token_versions({"weight_versions": spans}, 5).tolist() == [3, 3, 5, 5, 5]


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
    wrong = answer("r", [1, 2]) | {"output_ids": [1, 3]}
    with pytest.raises(AnswerError, match="differ"):
        to_sample(0, wrong, Decoder())  # type: ignore[arg-type]


async def test_each_sample_of_a_group_has_a_seed_of_its_own_also_when_it_is_made_again() -> None:
    ticket = Ticket(group_id="0-7-0", prompt_tokens=pack([5, 6], TOKENS), sampling_seed=40)
    asked: list[dict[str, Any]] = []

    async def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
        asked.append(body)
        seeds = [params["sampling_seed"] for params in body["sampling_params"]]
        aborts = len(asked) == 1
        return [
            answer(rid, [seed], "abort" if aborts and seed == 41 else "stop")
            for rid, seed in zip(body["rid"], seeds, strict=True)
        ]

    samples = await generate_group(ticket, Rollout(n_samples_per_prompt=3), ask, Decoder())  # type: ignore[arg-type]
    assert [unpack(sample.tokens, TOKENS).tolist() for sample in samples] == [[40], [41], [42]]
    assert [unpack(sample.versions, VERSIONS).tolist() for sample in samples] == [[4], [4], [4]]
    assert [len(body["rid"]) for body in asked] == [3, 1]
    assert len({rid for body in asked for rid in body["rid"]}) == 4
    assert np.all(unpack(samples[0].loss_mask, np.dtype("u1")) == 1)


async def test_a_sample_that_is_always_aborted_ends_the_attempt() -> None:
    async def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
        return [answer(rid, [], "abort") for rid in body["rid"]]

    ticket = Ticket(group_id="0-7-0", prompt_tokens=pack([5], TOKENS), sampling_seed=1)
    with pytest.raises(AbortedError, match="0-7-0"):
        await generate_group(ticket, Rollout(n_samples_per_prompt=1), ask, Decoder())  # type: ignore[arg-type]
