"""Weight updates in the middle of samples, in every pause mode, lose no token: a real engine, over HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from embedded_engines import EngineProcess, snapshot_of
from engine_support import TOLERANCE, hf_logprobs

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack, unpack
from bus.messages import Sample, Ticket
from miles_async.config.schema import Rollout
from miles_async.engines.client import EngineClient
from miles_async.rollout.generate import generate_group
from miles_async.text.tokenizer import Tokenizer

SAMPLES = 4
LIMIT = 1200
DEADLINE_S = 60.0


class Log:
    """What an engine was asked and what it sampled, for each sample."""

    def __init__(self, client: EngineClient) -> None:
        self.client = client
        self.pieces: dict[int, list[tuple[dict[str, Any], dict[str, Any]]]] = {i: [] for i in range(SAMPLES)}

    async def ask(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        answers: Any = await self.client.generate(body)
        for place, (rid, answer) in enumerate(zip(body["rid"], answers, strict=True)):
            asked = {key: body[key][place] for key in ("input_ids", "sampling_params")}
            self.pieces[int(rid.split(".")[1])].append((asked, answer))
        return answers


async def generated(session: aiohttp.ClientSession, url: str) -> int:
    """Tokens that the engine has sampled since it began."""
    async with session.get(url + "/v1/loads") as response:
        return (await response.json())["loads"][0]["num_generated_tokens"]


async def update_in_the_middle(
    session: aiohttp.ClientSession, client: EngineClient, path: Path, version: int, mode: str = "abort"
) -> None:
    """As the broadcaster does it with ``pause_mode = mode``, once the engine is at work."""
    before = await generated(session, client.url)
    while await generated(session, client.url) < before + 8 * SAMPLES:
        pass
    await client.pause(mode)
    await client.update_from_disk(str(path), version=str(version), flush_cache=mode != "in_place", timeout=30)
    await client.resume()


async def group_across_an_update(
    engine: EngineProcess, words: Path, tmp_path: Path, **rollout: Any
) -> tuple[Log, list[Sample], int]:
    """A group that is generated while its engine is updated to the version that comes with it.

    Made again where the machine was so slow that no sample has tokens of both versions.
    """
    tokenizer = Tokenizer(words)
    ticket = Ticket(group_id="0-0-0", prompt_tokens=pack(tokenizer.encode("Once "), TOKENS), sampling_seed=11)
    config = Rollout(n_samples_per_prompt=SAMPLES, rollout_max_response_len=LIMIT, **rollout)
    async with aiohttp.ClientSession() as session, asyncio.timeout(DEADLINE_S):
        while True:
            log = Log(EngineClient(engine.url, session))
            version = int((await log.client.model_info())["weight_version"]) + 1
            update = update_in_the_middle(session, log.client, snapshot_of(words, tmp_path, version), version)
            samples, _ = await asyncio.gather(generate_group(ticket, config, log.ask, tokenizer), update)
            if any(crosses(sample, version) for sample in samples):
                return log, samples, version


def crosses(sample: Sample, version: int) -> bool:
    return set(unpack(sample.versions, VERSIONS).tolist()) == {version - 1, version}


async def test_an_update_that_aborts_loses_no_token_and_every_token_knows_its_version(
    engine: EngineProcess, words: Path, tmp_path: Path
) -> None:
    log, samples, _ = await group_across_an_update(engine, words, tmp_path)
    for sample in samples:
        tokens, versions = unpack(sample.tokens, TOKENS).tolist(), unpack(sample.versions, VERSIONS).tolist()
        pieces = log.pieces[sample.index]
        prompt = pieces[0][0]["input_ids"]
        assert tokens == [token for _, answer in pieces for token in answer["output_ids"]]
        logprobs = [entry[0] for _, answer in pieces for entry in answer["meta_info"]["output_token_logprobs"]]
        assert unpack(sample.logprobs, LOGPROBS).tolist() == pytest.approx(logprobs, rel=1e-6)
        assert unpack(sample.loss_mask, MASK).tolist() == [1] * len(tokens) and len(tokens) <= LIMIT
        spans = [
            (int(span["version"]), span["end"] - span["start"])
            for _, answer in pieces
            for span in answer["meta_info"]["weight_versions"]
        ]
        assert versions == [version for version, length in spans for _ in range(length)]
        done = 0
        for asked, answer in pieces:
            assert asked["input_ids"] == prompt + tokens[:done]
            assert asked["sampling_params"]["max_new_tokens"] == LIMIT - done
            done += len(answer["output_ids"])
        assert sample.finish_reason == pieces[-1][1]["meta_info"]["finish_reason"]["type"] != "abort"


async def test_what_the_old_weights_sampled_is_not_trained_on_where_the_run_says_so(
    engine: EngineProcess, words: Path, tmp_path: Path
) -> None:
    log, samples, version = await group_across_an_update(
        engine, words, tmp_path, mask_offpolicy_in_partial_rollout=True
    )
    for sample in [sample for sample in samples if crosses(sample, version)]:
        last = len(log.pieces[sample.index][-1][1]["output_ids"])
        mask = unpack(sample.loss_mask, MASK).tolist()
        assert mask == [0] * (len(mask) - last) + [1] * last
        assert unpack(sample.versions, VERSIONS)[-last:].tolist() == [version] * last


@pytest.mark.parametrize("mode", ["retract", "in_place", "abort"])
async def test_a_long_sample_crosses_two_updates_and_every_token_has_the_version_that_sampled_it(
    engine: EngineProcess, words: Path, tmp_path: Path, mode: str
) -> None:
    tokenizer = Tokenizer(words)
    ticket = Ticket(group_id="0-0-0", prompt_tokens=pack(tokenizer.encode("Once "), TOKENS), sampling_seed=23)
    async with aiohttp.ClientSession() as session, asyncio.timeout(DEADLINE_S):
        log = Log(EngineClient(engine.url, session))
        first = int((await log.client.model_info())["weight_version"])
        weights = {v: snapshot_of(words, tmp_path / str(v), v) if v else words for v in range(first, first + 3)}
        config = Rollout(n_samples_per_prompt=SAMPLES, rollout_max_response_len=LIMIT // 2)
        making = asyncio.create_task(generate_group(ticket, config, log.ask, tokenizer))
        for version in (first + 1, first + 2):
            await update_in_the_middle(session, log.client, weights[version], version, mode)
        samples = await making
    versions = [unpack(sample.versions, VERSIONS).tolist() for sample in samples]
    assert all(found == sorted(found) for found in versions)
    place = next(i for i, found in enumerate(versions) if set(found) == set(weights))
    aborts = [piece[1]["meta_info"]["finish_reason"]["type"] for piece in log.pieces[place]].count("abort")
    assert aborts == (2 if mode == "abort" else 0)
    if mode != "in_place":  # which goes on with what the old weights have cached
        tokens, reported = (
            unpack(data, kind).tolist()
            for data, kind in ((samples[place].tokens, TOKENS), (samples[place].logprobs, LOGPROBS))
        )
        prompt = unpack(ticket.prompt_tokens, TOKENS).tolist()
        exact = {version: hf_logprobs(path, prompt, tokens) for version, path in weights.items()}
        assert reported == pytest.approx([exact[v][i] for i, v in enumerate(versions[place])], abs=TOLERANCE)
        wrong = [abs(exact[first][i] - reported[i]) for i, v in enumerate(versions[place]) if v > first]
        assert max(wrong) > 10 * TOLERANCE
