"""Weight updates: what is served afterwards, what running requests report, and that a failed one changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from safetensors.torch import load_file

from contract.checkpoint import log_probs
from contract.client import LONG, PROMPT, Engine, sampled
from contract.trainer import Trainer, joined
from miles_async.rollout.generate import own_cache

TOLERANCE = 1e-4
FORMATS: list[Literal["flattened_bucket"] | None] = [None, "flattened_bucket"]
EIGHT = {"max_new_tokens": 8, "ignore_eos": True}


async def served(engine: Engine, model: Path, version: str) -> None:
    """Check that ``engine`` serves ``model`` under the name ``version``."""
    assert await engine.weight_version() == version
    answer = await engine.generate(sampling_params=EIGHT, return_logprob=True)
    assert answer["meta_info"]["weight_version"] == version
    assert answer["meta_info"]["weight_versions"] == [{"version": version, "start": 0, "end": 8}]
    assert sampled(answer) == pytest.approx(log_probs(model, PROMPT, answer["output_ids"]), abs=TOLERANCE)


def spans_match_their_models(answer: dict[str, Any], models: dict[str, Path]) -> None:
    """Check that the version spans cover the response, in this order, and the log-probs of each are its model's."""
    tokens, reported, spans = answer["output_ids"], sampled(answer), answer["meta_info"]["weight_versions"]
    assert [span["version"] for span in spans] == list(models)
    assert [span["start"] for span in spans] == [0, *(span["end"] for span in spans[:-1])]
    assert spans[-1]["end"] == len(tokens)
    for span in spans:
        part = slice(span["start"], span["end"])
        assert span["end"] > span["start"]
        expected = log_probs(models[span["version"]], PROMPT, tokens)[part]
        assert reported[part] == pytest.approx(expected, abs=TOLERANCE), span


async def test_the_checker_tells_models_apart_and_is_repeatable(engine: Engine) -> None:
    before = await engine.checksums()
    assert before == await engine.checksums()
    await engine.ok("/update_weights_from_disk", model_path=str(engine.other), weight_version="1")
    after = await engine.checksums()
    assert before.keys() == after.keys()
    norms = {name for name in before if "norm" in name}  # all ones in both models
    assert {name for name in before if before[name] == after[name]} <= norms


@pytest.mark.parametrize("load_format", FORMATS)
async def test_broadcast_weights_are_served_bit_for_bit(
    engine: Engine, load_format: Literal["flattened_bucket"] | None
) -> None:
    await engine.ok("/update_weights_from_disk", model_path=str(engine.other), weight_version="1")
    from_disk = await engine.checksums()
    await engine.ok("/update_weights_from_disk", model_path=str(engine.model), weight_version="2")
    async with joined(engine) as trainer:
        await engine.ok("/begin_weight_update")
        answer = await trainer.send(load_file(engine.other / "model.safetensors"), "3", load_format=load_format)
        assert (answer.status, answer.body["success"]) == (200, True), answer
        await engine.ok("/end_weight_update")
    assert await engine.checksums() == from_disk
    await served(engine, engine.other, "3")


async def test_an_update_may_come_in_several_buckets_and_through_one_group_many_times(engine: Engine) -> None:
    async with joined(engine) as trainer:
        for model, version in ((engine.other, "1"), (engine.model, "2")):
            tensors = list(load_file(model / "model.safetensors").items())
            await engine.ok("/begin_weight_update")
            for part in (tensors[:7], tensors[7:]):
                answer = await trainer.send(dict(part), version, load_format="flattened_bucket")
                assert answer.status == 200, answer
            await engine.ok("/end_weight_update")
            await served(engine, model, version)


async def test_a_group_can_be_left_and_formed_again(engine: Engine) -> None:
    for version in ("1", "2"):
        async with joined(engine) as trainer:
            await engine.ok("/begin_weight_update")
            answer = await trainer.send(
                load_file(engine.other / "model.safetensors"), version, load_format="flattened_bucket"
            )
            assert answer.status == 200, answer
            await engine.ok("/end_weight_update")
        assert await engine.weight_version() == version
    assert (await engine.post("/destroy_weights_update_group", group_name=trainer.group)).status == 400


async def test_a_broadcast_outside_a_session_is_refused(engine: Engine) -> None:
    before = await engine.checksums()
    answer = await engine.post(
        "/update_weights_from_distributed",
        names=["model.norm.weight"],
        dtypes=["float32"],
        shapes=[[64]],
        group_name="absent",
        weight_version="1",
    )
    assert answer.status == 400, answer
    assert await engine.checksums() == before
    assert await engine.weight_version() == Engine.VERSION


async def test_sessions_do_not_nest(engine: Engine) -> None:
    await engine.ok("/begin_weight_update")
    assert (await engine.post("/begin_weight_update")).status == 400
    await engine.ok("/end_weight_update")
    assert (await engine.post("/end_weight_update")).status == 400


Update = Callable[[Engine, Trainer], Awaitable[None]]


async def by_broadcast(engine: Engine, trainer: Trainer) -> None:
    await engine.ok("/begin_weight_update")
    tensors = load_file(engine.other / "model.safetensors")
    answer = await trainer.send(tensors, "1", load_format="flattened_bucket")
    assert answer.status == 200, answer
    await engine.ok("/end_weight_update")


async def by_disk(engine: Engine, _: Trainer) -> None:
    await engine.ok("/update_weights_from_disk", model_path=str(engine.other), weight_version="1")


@pytest.mark.parametrize("update", [by_broadcast, by_disk])
async def test_a_retracted_request_goes_on_under_the_new_weights_exactly(engine: Engine, update: Update) -> None:
    async with joined(engine) as trainer:
        running = [engine.watch(LONG) for _ in range(3)]
        await asyncio.gather(*(watched.until_tokens(10) for watched in running))
        await engine.ok("/pause_generation", mode="retract")
        held = await asyncio.gather(*(watched.until_still() for watched in running))
        await update(engine, trainer)
        await engine.ok("/continue_generation")
        await asyncio.gather(*(watched.until_tokens(n + 20) for n, watched in zip(held, running, strict=True)))
    await engine.ok("/abort_request", abort_all=True)
    for n, watched in zip(held, running, strict=True):
        answer = await watched.finished()
        spans_match_their_models(answer, {Engine.VERSION: engine.model, "1": engine.other})
        assert answer["meta_info"]["weight_version"] == "1"
        assert answer["meta_info"]["num_retractions"] == 1
        assert answer["meta_info"]["weight_versions"][0]["end"] == n


async def test_requests_held_in_place_keep_their_cache_and_still_report_both_versions(engine: Engine) -> None:
    async with joined(engine) as trainer:
        watched = engine.watch(LONG)
        await watched.until_tokens(10)
        await engine.ok("/pause_generation", mode="in_place")
        held = await watched.until_still()
        await engine.ok("/begin_weight_update")
        tensors = load_file(engine.other / "model.safetensors")
        answer = await trainer.send(tensors, "1", load_format="flattened_bucket", flush_cache=False)
        assert answer.status == 200, answer
        await engine.ok("/end_weight_update")
        await engine.ok("/continue_generation")
        await watched.until_tokens(held + 20)
    await engine.ok("/abort_request", abort_all=True)
    finished = await watched.finished()
    first, second = finished["meta_info"]["weight_versions"]
    assert (first["version"], second["version"]) == (Engine.VERSION, "1")
    assert (first["start"], first["end"], second["start"]) == (0, held, held)
    assert second["end"] == len(finished["output_ids"])
    old = slice(0, first["end"])
    expected = log_probs(engine.model, PROMPT, finished["output_ids"])
    assert sampled(finished)[old] == pytest.approx(expected[old], abs=TOLERANCE)
    assert finished["meta_info"]["num_retractions"] == 0


async def test_an_update_in_place_that_should_flush_changes_the_weights_and_says_no(engine: Engine) -> None:
    async with joined(engine) as trainer:
        watched = engine.watch(LONG)
        await watched.until_tokens(10)
        await engine.ok("/pause_generation", mode="in_place")
        held = await watched.until_still()
        await engine.ok("/begin_weight_update")
        tensors = load_file(engine.other / "model.safetensors")
        answer = await trainer.send(tensors, "1", load_format="flattened_bucket", flush_cache=True)
        assert (answer.status, answer.body["success"]) == (400, False), answer
        await engine.ok("/end_weight_update")
        assert await engine.weight_version() == Engine.VERSION  # it does not say so
        await engine.ok("/continue_generation")
        await watched.until_tokens(held + 5)
    await engine.ok("/abort_request", abort_all=True)
    finished = await watched.finished()
    assert [span["version"] for span in finished["meta_info"]["weight_versions"]] == [
        Engine.VERSION,
        "1",
    ]  # but its tokens do
    await engine.ok("/update_weights_from_disk", model_path=str(engine.model), weight_version="2")


async def test_an_update_may_abort_what_runs(engine: Engine) -> None:
    watched = engine.watch(LONG)
    await watched.until_tokens(5)
    path = str(engine.other)
    await engine.ok("/update_weights_from_disk", model_path=path, weight_version="1", abort_all_requests=True)
    answer = await watched.finished()
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    spans_match_their_models(answer, {Engine.VERSION: engine.model})
    await served(engine, engine.other, "1")


async def test_an_update_without_a_pause_waits_for_what_runs(engine: Engine) -> None:
    watched = engine.watch(150)
    await watched.until_tokens(1)
    await engine.ok("/update_weights_from_disk", model_path=str(engine.other), weight_version="1")
    answer = await watched.finished()
    spans_match_their_models(answer, {Engine.VERSION: engine.model})
    assert len(answer["output_ids"]) == 150
    await served(engine, engine.other, "1")


async def test_an_update_from_disk_is_served_and_named(engine: Engine) -> None:
    body = await engine.ok("/update_weights_from_disk", model_path=str(engine.other), weight_version="1")
    assert body["success"]
    assert (await engine.call("GET", "/model_info")).body["model_path"] == str(engine.other)
    await served(engine, engine.other, "1")


async def test_a_bad_path_is_refused_and_the_old_weights_stay(engine: Engine, tmp_path: Path) -> None:
    before = await engine.checksums()
    for path in (tmp_path / "missing", tmp_path):
        answer = await engine.post("/update_weights_from_disk", model_path=str(path), weight_version="1")
        assert (answer.status, answer.body["success"]) == (400, False), answer
    assert await engine.checksums() == before
    await served(engine, engine.model, Engine.VERSION)


async def test_a_prefix_from_before_an_update_is_not_reused(engine: Engine) -> None:
    await engine.generate(sampling_params=EIGHT)
    await engine.ok("/update_weights_from_disk", model_path=str(engine.other), weight_version="1")
    answer = await engine.generate(sampling_params=EIGHT)
    assert answer["meta_info"]["cached_tokens"] == 0


@pytest.mark.parametrize("mode", ["retract", "abort", "in_place"])
async def test_a_known_prompt_is_answered_by_the_new_weights_alone_after_an_update_in_any_pause_mode(
    engine: Engine, mode: str
) -> None:
    known = list(range(5, 69))
    alone = {"sampling_params": EIGHT, "return_logprob": True}
    await engine.generate(known, **alone)  # its prefix is in the cache from now on, where there is one
    async with joined(engine) as trainer:
        watched = engine.watch(LONG, input_ids=known)
        await watched.until_tokens(5)
        await engine.ok("/pause_generation", mode=mode)
        await watched.until_still()
        await engine.ok("/begin_weight_update")
        tensors = load_file(engine.other / "model.safetensors")
        answer = await trainer.send(tensors, "1", load_format="flattened_bucket", flush_cache=mode != "in_place")
        assert answer.status == 200, answer
        await engine.ok("/end_weight_update")
        await engine.ok("/continue_generation")
        # what cannot be flushed under a request that keeps its cache is fenced off: rollout.generate.own_cache
        body = {"input_ids": known, **alone}
        answer = await engine.ok("/generate", **(own_cache(body) if mode == "in_place" else body))
    assert answer["meta_info"]["weight_versions"] == [{"version": "1", "start": 0, "end": 8}]
    assert sampled(answer) == pytest.approx(log_probs(engine.other, known, answer["output_ids"]), abs=TOLERANCE)


async def test_the_version_as_a_namespace_keeps_old_prefixes_out_without_a_flush(engine: Engine) -> None:
    prompt = [*range(100, 160)]
    await engine.generate(prompt, sampling_params=EIGHT, extra_key="0")
    path = str(engine.other)
    await engine.ok("/update_weights_from_disk", model_path=path, weight_version="1", flush_cache=False)
    answer = await engine.generate(prompt, sampling_params=EIGHT, return_logprob=True, extra_key="1")
    assert answer["meta_info"]["cached_tokens"] == 0
    assert sampled(answer) == pytest.approx(log_probs(engine.other, prompt, answer["output_ids"]), abs=TOLERANCE)
    await engine.ok("/flush_cache")


async def test_server_info_keeps_the_version_of_the_start(engine: Engine) -> None:
    await engine.ok("/update_weight_version", new_version="1")
    assert (await engine.call("GET", "/server_info")).body["weight_version"] == Engine.VERSION
    assert await engine.weight_version() == "1"


async def test_the_version_can_be_renamed_while_requests_run(engine: Engine) -> None:
    watched = engine.watch(LONG)
    await watched.until_tokens(1)
    body = await engine.ok("/update_weight_version", new_version="renamed", abort_all_requests=False)
    assert (body["success"], body["new_version"]) == (True, "renamed")
    assert await engine.weight_version() == "renamed"
    await watched.until_tokens(watched.n_tokens + 5)
    await engine.ok("/update_weight_version", new_version="again")  # the default aborts
    assert (await watched.finished())["meta_info"]["finish_reason"]["type"] == "abort"
    await served(engine, engine.model, "again")
