"""POST /generate: what comes back for what was asked."""

from __future__ import annotations

from typing import Any

import pytest

from contract.checkpoint import EOS_ID, greedy_tokens, log_probs, prompt_that_ends, text_of, word
from contract.client import PROMPT, Engine, sampled
from contract.differences import differs

TOLERANCE = 1e-4  # log-probs, float32 against float32
GREEDY = {"temperature": 0.0, "ignore_eos": True}


async def test_the_two_models_differ_by_far_more_than_the_tolerance(engine: Engine) -> None:
    tokens = greedy_tokens(engine.model, PROMPT, 8)
    a, b = log_probs(engine.model, PROMPT, tokens), log_probs(engine.other, PROMPT, tokens)
    assert min(abs(x - y) for x, y in zip(a, b, strict=True)) > 100 * TOLERANCE


async def test_one_request_gives_one_answer_with_all_its_fields(engine: Engine) -> None:
    # greedy: a sample may hold a special token, which the text leaves out
    answer = await engine.generate(rid="one", sampling_params={**GREEDY, "max_new_tokens": 7})
    meta = answer["meta_info"]
    assert len(answer["output_ids"]) == 7
    assert answer["text"].strip() == text_of(answer["output_ids"])
    assert meta["id"] == "one"
    assert meta["prompt_tokens"] == len(PROMPT)
    assert meta["completion_tokens"] == 7
    assert meta["cached_tokens"] >= 0
    assert meta["finish_reason"] == {"type": "length", "length": 7}
    assert meta["weight_version"] == Engine.VERSION
    assert meta["weight_versions"] == [{"version": Engine.VERSION, "start": 0, "end": 7}]
    assert meta["num_retractions"] == 0
    assert meta["e2e_latency"] > 0
    assert "output_token_logprobs" not in meta


async def test_temperature_zero_is_the_argmax(engine: Engine) -> None:
    answer = await engine.generate(sampling_params={**GREEDY, "max_new_tokens": 24})
    assert answer["output_ids"] == greedy_tokens(engine.model, PROMPT, 24)


async def test_top_k_of_one_is_the_argmax(engine: Engine) -> None:
    answer = await engine.generate(
        sampling_params={"temperature": 1.5, "top_k": 1, "max_new_tokens": 16, "ignore_eos": True}
    )
    assert answer["output_ids"] == greedy_tokens(engine.model, PROMPT, 16)


async def test_a_tiny_top_p_is_the_argmax(engine: Engine) -> None:
    answer = await engine.generate(
        sampling_params={"temperature": 1.0, "top_p": 1e-6, "max_new_tokens": 16, "ignore_eos": True}
    )
    assert answer["output_ids"] == greedy_tokens(engine.model, PROMPT, 16)


@pytest.mark.parametrize(
    ("sampling", "scored_at"),
    [
        ({"temperature": 1.0}, 1.0),
        ({"temperature": 0.6}, 0.6),
        ({"temperature": 1.7}, 1.7),
        ({"temperature": 0.0}, 1.0),
        ({"temperature": 0.8, "top_k": 5}, 0.8),
        ({"temperature": 1.0, "top_p": 0.5}, 1.0),
    ],
)
async def test_log_probs_are_those_of_the_model_after_temperature_only(
    engine: Engine, sampling: dict[str, float], scored_at: float
) -> None:
    answer = await engine.generate(
        sampling_params={"max_new_tokens": 32, "ignore_eos": True, **sampling}, return_logprob=True
    )
    expected = log_probs(engine.model, PROMPT, answer["output_ids"], scored_at)
    assert sampled(answer) == pytest.approx(expected, abs=TOLERANCE)
    assert all(entry[2] is None for entry in answer["meta_info"]["output_token_logprobs"])


async def test_prompt_log_probs_come_on_request(engine: Engine) -> None:
    answer = await engine.generate(
        sampling_params={**GREEDY, "max_new_tokens": 2}, return_logprob=True, logprob_start_len=0
    )
    first, *rest = answer["meta_info"]["input_token_logprobs"]
    assert first[:2] == [None, PROMPT[0]]
    assert [entry[1] for entry in rest] == list(PROMPT[1:])
    expected = log_probs(engine.model, PROMPT[:1], PROMPT[1:])
    assert [entry[0] for entry in rest] == pytest.approx(expected, abs=TOLERANCE)


async def test_a_batch_is_answered_in_order_each_with_its_own_sampling(engine: Engine) -> None:
    prompts = [[5, 6], [7, 8, 9, 10], [11]]
    answers = await engine.ok(
        "/generate",
        input_ids=prompts,
        rid=["b0", "b1", "b2"],
        sampling_params=[{**GREEDY, "max_new_tokens": n} for n in (3, 9, 5)],
        return_logprob=True,
    )
    assert [answer["meta_info"]["id"] for answer in answers] == ["b0", "b1", "b2"]
    for prompt, length, answer in zip(prompts, (3, 9, 5), answers, strict=True):
        assert answer["output_ids"] == greedy_tokens(engine.model, prompt, length)
        expected = log_probs(engine.model, prompt, answer["output_ids"])
        assert sampled(answer) == pytest.approx(expected, abs=TOLERANCE)


async def test_one_dictionary_of_sampling_parameters_serves_a_whole_batch(engine: Engine) -> None:
    answers = await engine.ok("/generate", input_ids=[[5, 6], [7, 8]], sampling_params={**GREEDY, "max_new_tokens": 4})
    assert [len(answer["output_ids"]) for answer in answers] == [4, 4]


async def test_n_gives_so_many_answers_to_one_prompt(engine: Engine) -> None:
    answers = await engine.generate(
        sampling_params={"n": 3, "temperature": 1.0, "max_new_tokens": 20, "ignore_eos": True}, return_logprob=True
    )
    assert len(answers) == 3
    assert len({tuple(answer["output_ids"]) for answer in answers}) == 3
    assert len({answer["meta_info"]["id"] for answer in answers}) == 3
    for answer in answers:
        assert sampled(answer) == pytest.approx(log_probs(engine.model, PROMPT, answer["output_ids"]), abs=TOLERANCE)


async def test_a_text_prompt_is_tokenized(engine: Engine) -> None:
    sampling = {**GREEDY, "max_new_tokens": 6}
    answer = await engine.ok("/generate", text=text_of(PROMPT), sampling_params=sampling)
    assert answer["meta_info"]["prompt_tokens"] == len(PROMPT)
    assert answer["output_ids"] == greedy_tokens(engine.model, PROMPT, 6)


async def test_a_stream_grows_and_ends_with_done(engine: Engine) -> None:
    watched = engine.watch(12, sampling_params={**GREEDY, "max_new_tokens": 12})
    last = await watched.finished()
    assert watched.done_line
    assert last["output_ids"] == greedy_tokens(engine.model, PROMPT, 12)
    assert last["text"].strip() == text_of(last["output_ids"])
    assert last["meta_info"]["id"] == watched.rid
    assert last["meta_info"]["finish_reason"] == {"type": "length", "length": 12}
    assert last["meta_info"]["weight_versions"] == [{"version": Engine.VERSION, "start": 0, "end": 12}]
    assert sampled(last) == pytest.approx(log_probs(engine.model, PROMPT, last["output_ids"]), abs=TOLERANCE)
    assert len(watched.chunks) > 1
    for earlier, later in zip(watched.chunks, watched.chunks[1:], strict=False):
        assert later["output_ids"][: len(earlier["output_ids"])] == earlier["output_ids"]
        assert earlier["meta_info"]["finish_reason"] is None


@pytest.mark.parametrize("trim", [True, False])
async def test_a_stop_string_ends_the_response(engine: Engine, trim: bool) -> None:
    tokens = greedy_tokens(engine.model, PROMPT, 12)
    stop = word(tokens[8])
    assert tokens[8] not in tokens[:8]
    answer = await engine.generate(
        sampling_params={**GREEDY, "max_new_tokens": 12, "stop": [stop], "no_stop_trim": not trim}
    )
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    assert answer["output_ids"] == tokens[:9]
    assert answer["text"].strip() == text_of(tokens[: 8 if trim else 9])


async def test_a_stop_token_ends_the_response_and_is_part_of_it(engine: Engine) -> None:
    tokens = greedy_tokens(engine.model, PROMPT, 12)
    assert tokens[6] not in tokens[:6]
    answer = await engine.generate(
        sampling_params={"temperature": 0.0, "max_new_tokens": 12, "stop_token_ids": [tokens[6]]}, return_logprob=True
    )
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": tokens[6]}
    assert answer["output_ids"] == tokens[:7]
    assert sampled(answer) == pytest.approx(log_probs(engine.model, PROMPT, tokens[:7]), abs=TOLERANCE)


async def test_the_end_token_ends_the_response_unless_ignored(engine: Engine) -> None:
    prompt = prompt_that_ends(engine.model)
    ended = await engine.generate(prompt, sampling_params={"temperature": 0.0, "max_new_tokens": 4})
    assert ended["output_ids"] == [EOS_ID]
    assert ended["meta_info"]["finish_reason"] == {"type": "stop", "matched": EOS_ID}
    assert ended["text"] == ""
    ignored = await engine.generate(prompt, sampling_params={**GREEDY, "max_new_tokens": 4})
    assert ignored["output_ids"] == greedy_tokens(engine.model, prompt, 4)
    assert ignored["meta_info"]["finish_reason"] == {"type": "length", "length": 4}


async def test_the_same_seed_gives_the_same_tokens_whatever_else_runs(engine: Engine) -> None:
    if differs(engine, "sampling_seed makes a response repeatable"):
        return
    seeds = [11, 12, 13, 14]
    sampling = [{"sampling_seed": s, "temperature": 1.0, "max_new_tokens": 24, "ignore_eos": True} for s in seeds]
    together = await engine.ok("/generate", input_ids=[list(PROMPT)] * 4, sampling_params=sampling)
    apart = [await engine.generate(sampling_params=one) for one in reversed(sampling)]
    assert [answer["output_ids"] for answer in together] == [answer["output_ids"] for answer in reversed(apart)]
    assert len({tuple(answer["output_ids"]) for answer in together}) == len(seeds)


async def test_a_known_prefix_is_taken_from_the_cache(engine: Engine) -> None:
    prompt = [*range(100, 150)]
    await engine.generate(prompt, sampling_params={**GREEDY, "max_new_tokens": 1})
    answer = await engine.generate(prompt, sampling_params={**GREEDY, "max_new_tokens": 1})
    cached = answer["meta_info"]["cached_tokens"]
    assert cached == 0 if differs(engine, "known prefixes are cached") else cached > 0


async def test_put_is_as_good_as_post(engine: Engine) -> None:
    body = {"input_ids": list(PROMPT), "sampling_params": {**GREEDY, "max_new_tokens": 2}}
    answer = await engine.call("PUT", "/generate", body)
    assert answer.status == 200
    assert answer.body["output_ids"] == greedy_tokens(engine.model, PROMPT, 2)


async def test_a_text_can_be_scored_without_generating(engine: Engine) -> None:
    answer = await engine.generate(
        sampling_params={"temperature": 1.0, "max_new_tokens": 0}, return_logprob=True, logprob_start_len=0
    )
    entries = answer["meta_info"]["input_token_logprobs"]
    assert [entry[1] for entry in entries] == list(PROMPT)
    expected = log_probs(engine.model, PROMPT[:1], PROMPT[1:])
    assert [entry[0] for entry in entries[1:]] == pytest.approx(expected, abs=TOLERANCE)


async def test_a_bias_is_added_to_the_logits(engine: Engine) -> None:
    answer = await engine.generate(sampling_params={**GREEDY, "max_new_tokens": 3, "logit_bias": {"77": 1000.0}})
    assert answer["output_ids"] == [77, 77, 77]


async def test_ignoring_the_end_token_ignores_stop_tokens_too(engine: Engine) -> None:
    tokens = greedy_tokens(engine.model, PROMPT, 6)
    answer = await engine.generate(sampling_params={**GREEDY, "max_new_tokens": 6, "stop_token_ids": [tokens[1]]})
    assert answer["output_ids"] == tokens


async def test_routed_experts_of_a_dense_model_are_left_out(engine: Engine) -> None:
    answer = await engine.generate(sampling_params={**GREEDY, "max_new_tokens": 1}, return_routed_experts=True)
    assert answer["meta_info"].get("routed_experts") is None


@pytest.mark.parametrize(
    "fields", [{"top_logprobs_num": 2}, {"token_ids_logprob": [5]}, {"return_text_in_logprobs": True}]
)
async def test_further_log_probs_come_or_are_refused_but_never_missing(engine: Engine, fields: dict[str, Any]) -> None:
    sampling = {**GREEDY, "max_new_tokens": 2}
    body = {"input_ids": list(PROMPT), "sampling_params": sampling, "return_logprob": True, **fields}
    answer = await engine.call("POST", "/generate", body)
    if differs(engine, "log-probs of other tokens, and texts beside them"):
        assert answer.status == 400
        assert next(iter(fields)) in str(answer.body)
        return
    meta = answer.body["meta_info"]
    assert (
        meta.get("output_top_logprobs") or meta.get("output_token_ids_logprobs") or meta["output_token_logprobs"][0][2]
    )


async def test_a_namespace_of_its_own_keeps_a_prefix_out_of_the_cache(engine: Engine) -> None:
    prompt = [*range(200, 250)]
    for key, again in (("a", False), ("a", True), ("b", False)):
        answer = await engine.generate(prompt, sampling_params={**GREEDY, "max_new_tokens": 1}, extra_key=key)
        cached = answer["meta_info"]["cached_tokens"]
        assert (cached > 0) == (again and not differs(engine, "known prefixes are cached")), key
