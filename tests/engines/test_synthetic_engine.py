"""The synthetic engine keeps the contract's rows that need no model, ends its requests by the stated clock, misbehaves as told.

The rows are tests of ``tests/contract/``, which run against it too (``contract/synthetic.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from contract.client import PROMPT, Engine, sampled

from benchmarks.lib.synthetic.batch import EOS, Batch, Latency, Lengths, logprob_of
from benchmarks.lib.synthetic_engine import LIE, SyntheticEngine
from miles_async.engines.embedded.protocol import Item
from miles_async.engines.embedded.request import EngineRequest
from miles_async.engines.embedded.sampling_params import Sampling

QUICK = Latency(step_s=0.0005, step_request_s=0.0, prefill_token_s=0.0)


@pytest.fixture
async def synthetic() -> AsyncIterator[SyntheticEngine]:
    made = SyntheticEngine(latency=QUICK, vocab_size=512, context_length=4096)
    await made.start()
    yield made
    if made.alive:
        made.die()


@pytest.fixture
async def engine(synthetic: SyntheticEngine) -> AsyncIterator[Engine]:
    async with aiohttp.ClientSession() as session:
        yield Engine("synthetic", synthetic.url, Path("synthetic"), Path("other"), session)


async def test_n_answers_differ_and_come_in_order(engine: Engine) -> None:
    answers = await engine.generate(sampling_params={"n": 3, "max_new_tokens": 20, "ignore_eos": True})
    assert len({tuple(answer["output_ids"]) for answer in answers}) == 3


async def test_the_seed_alone_decides_tokens_and_length(engine: Engine) -> None:
    sampling = [{"sampling_seed": seed, "max_new_tokens": 3000} for seed in range(8)]
    together = await engine.ok("/generate", input_ids=[list(PROMPT)] * 8, sampling_params=sampling)
    apart = [await engine.generate(sampling_params=one) for one in sampling[:3]]
    assert [answer["output_ids"] for answer in apart] == [answer["output_ids"] for answer in together[:3]]
    for seed, answer in enumerate(together):
        assert len(answer["output_ids"]) == Lengths().draw(seed)
        assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": EOS}
        assert answer["output_ids"].index(EOS) == len(answer["output_ids"]) - 1


@pytest.mark.parametrize("mode", ["retract", "in_place"])
@pytest.mark.parametrize("way", ["distributed", "disk"])
async def test_spans_and_log_probs_name_the_weights_over_an_update(
    engine: Engine, synthetic: SyntheticEngine, mode: str, way: str
) -> None:
    watched = engine.watch(400)
    await watched.until_tokens(10)
    await engine.ok("/pause_generation", mode=mode)
    flush = mode == "retract"
    if way == "disk":
        await engine.ok("/update_weights_from_disk", model_path="other", weight_version="1", flush_cache=flush)
    else:
        await engine.ok(
            "/init_weights_update_group", master_address="127.0.0.1", master_port=1, rank_offset=1, world_size=2
        )
        await engine.ok("/begin_weight_update")
        tensors = {"names": ["a"], "dtypes": ["float32"], "shapes": [[1]]}
        await engine.ok("/update_weights_from_distributed", **tensors, weight_version="1", flush_cache=flush)
        await engine.ok("/end_weight_update")
    await engine.ok("/continue_generation")
    answer = await watched.finished()
    old, new = answer["meta_info"]["weight_versions"]
    assert (old["version"], old["start"], new["version"], new["end"]) == ("0", 0, "1", 400)
    assert old["end"] == new["start"] >= 10
    expected = [logprob_of("0")] * old["end"] + [logprob_of("1")] * (400 - old["end"])
    assert sampled(answer) == expected
    assert answer["meta_info"]["num_retractions"] == (1 if mode == "retract" else 0)
    assert [version for _, version in synthetic.served] == ["0", "1"]


async def test_an_update_without_a_pause_waits_for_what_runs(engine: Engine) -> None:
    watched = engine.watch(100)
    await watched.until_tokens(1)
    await engine.ok("/update_weights_from_disk", model_path="other", weight_version="1")
    assert [span["version"] for span in (await watched.finished())["meta_info"]["weight_versions"]] == ["0"]
    assert await engine.weight_version() == "1"


def request(length: int, seed: int = 0, prompt: int = 10) -> EngineRequest:
    sampling = Sampling(length, 1.0, False, 1.0, -1, 0.0, (), frozenset(), True, seed, True, False)
    return EngineRequest(Item(f"r{seed}", [5] * prompt, sampling, True, -1), seed, frozenset(), stream=False)


def ends_at(batch: Batch) -> dict[str, float]:
    """When each request ends, the clock driven by the batch's own next events."""
    ends: dict[str, float] = {}
    while (at := batch.next_event()) is not None:
        ends |= {request.item.rid: at for request in batch.advance(at).finished}
    return ends


def test_requests_end_when_the_stated_latency_model_says() -> None:
    latency = Latency(step_s=1.0, step_request_s=0.5, prefill_token_s=0.1)
    batch = Batch(latency, Lengths(), vocab=100, max_running=2, version="0")
    batch.advance(100.0)
    batch.submit([request(2, 1), request(4, 2), request(1, 3)])
    # both are prefilled (2 x 10 tokens), two steps of two; the third joins in the first one's place (10 tokens); a step of
    # two ends it; the last step is of one
    first = 100 + 2.0 + 2 * 2.0
    third = first + 1.0 + 2.0
    assert ends_at(batch) == pytest.approx({"r1": first, "r3": third, "r2": third + 1.5})
    assert batch.generated_tokens == 7


def test_the_clock_stands_still_in_a_pause_and_goes_slower_when_told() -> None:
    batch = Batch(Latency(1.0, 0.0, 0.0), Lengths(), vocab=100, max_running=2, version="0")
    batch.submit([request(10)])
    batch.advance(4.0)
    batch.pause("in_place")
    assert batch.next_event() is None
    batch.advance(50.0)
    batch.resume()
    batch.slowdown = 3.0
    assert ends_at(batch) == pytest.approx({"r0": 50 + 6 * 3.0})


def test_however_the_clock_is_read_the_same_happens() -> None:
    """Reading it at every step, or only at events, gives the same ends and tokens."""
    outcomes = []
    for tick in (None, 0.25):
        batch = Batch(Latency(0.25, 0.0, 0.0), Lengths(), vocab=100, max_running=3, version="0")
        batch.submit(requests := [request(5 + 3 * seed, seed) for seed in range(7)])
        now, ends = 0.0, {}
        while not batch.idle:
            at = batch.next_event() if tick is None else now + tick
            assert at is not None
            now = at
            ends |= {done.item.rid: now for done in batch.advance(now).finished}
        outcomes.append((ends, [done.output for done in requests], batch.generated_tokens))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("how", ["hung", "stuck"])
async def test_a_hung_engine_takes_requests_and_answers_once_it_is_well(
    engine: Engine, synthetic: SyntheticEngine, how: Any
) -> None:
    await synthetic.misbehave(how)
    task = asyncio.create_task(engine.generate(sampling_params={"max_new_tokens": 3}))
    info = asyncio.create_task(engine.weight_version())
    done, _ = await asyncio.wait({task, info}, timeout=0.3)
    assert done == ({info} if how == "stuck" else set())
    await synthetic.misbehave(None)
    assert len((await task)["output_ids"]) == 3
    assert await info == "0"


async def test_a_liar_reports_another_version_and_samples_with_the_true_one(
    engine: Engine, synthetic: SyntheticEngine
) -> None:
    await synthetic.misbehave("lying")
    await engine.ok("/update_weights_from_disk", model_path="other", weight_version="1")
    assert await engine.weight_version() == LIE
    answer = await engine.generate(sampling_params={"max_new_tokens": 3}, return_logprob=True)
    assert [span["version"] for span in answer["meta_info"]["weight_versions"]] == [LIE]
    assert set(sampled(answer)) == {logprob_of("1")}
    await synthetic.misbehave(None)
    assert await engine.weight_version() == "1"


async def test_garbage_is_no_http_or_no_json(engine: Engine, synthetic: SyntheticEngine) -> None:
    await synthetic.misbehave("no_json")
    answer = await engine.post("/generate", input_ids=[5])
    assert answer.status == 200 and isinstance(answer.body, str)
    await synthetic.misbehave("no_http")
    with pytest.raises(aiohttp.ClientError):
        await engine.post("/generate", input_ids=[5])
    await synthetic.misbehave(None)
    await engine.generate(sampling_params={"max_new_tokens": 3})


async def test_an_engine_that_dies_forgets_all_and_comes_back_at_the_same_place(
    engine: Engine, synthetic: SyntheticEngine
) -> None:
    await engine.ok("/update_weights_from_disk", model_path="other", weight_version="1")
    await engine.generate(rid="before", sampling_params={"max_new_tokens": 3})
    watched = engine.watch(4000)
    await watched.until_tokens(1)
    synthetic.die()
    with pytest.raises(aiohttp.ClientError):
        await watched.finished()
    with pytest.raises(aiohttp.ClientConnectorError):
        await engine.weight_version()
    await synthetic.start()
    assert await engine.weight_version() == "0"
    await engine.generate(rid="after", sampling_params={"max_new_tokens": 3})
    assert [answer.rid for answer in synthetic.answered] == ["before", "after"]
