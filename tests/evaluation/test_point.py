"""One dataset at one version, from an engine that the test is: all is generated and graded, a failure costs what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from evaluations import eval_config

from bus.messages import Sample
from miles_async.data import Prompt
from miles_async.engines.client import EngineError
from miles_async.evaluation.datasets import Dataset, load_datasets
from miles_async.evaluation.point import Evaluation, LostError, Result, ResultError, VersionError
from miles_async.models.builtin import make_model
from miles_async.rewards import Grader
from miles_async.text.tokenizer import Tokenizer


class Engine:
    """Answers every prompt with its label; ``version`` of every token."""

    def __init__(self, tokenizer: Tokenizer, version: int = 4) -> None:
        self.tokenizer, self.version, self.open, self.most = tokenizer, version, 0, 0
        self.seeds: list[int] = []

    async def __call__(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        self.seeds += [params["sampling_seed"] for params in body["sampling_params"]]
        return [self.answer(ids) for ids in body["input_ids"]]

    def answer(self, ids: list[int]) -> dict[str, Any]:
        digit, count = self.tokenizer.decode(ids).split(">")[:2]
        tokens = [*self.tokenizer.encode(digit * int(count)), 1]
        spans = [{"start": 0, "end": len(tokens), "version": str(self.version)}]
        meta = {"id": "x", "finish_reason": {"type": "stop"}, "weight_versions": spans}
        return {"output_ids": tokens, "meta_info": meta | {"output_token_logprobs": [(0.0, t, None) for t in tokens]}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("model")
    make_model("builtin:digits", directory, seed=1)
    return Tokenizer(directory)


def dataset(tokenizer: Tokenizer, *overrides: str) -> Dataset:
    (found,) = load_datasets(eval_config("eval.datasets.seen.prompt_data=builtin:repeat@[:8]", *overrides), tokenizer)
    return found


async def evaluated(data: Dataset, tokenizer: Tokenizer, ask: Any, function: Any = None, version: int = 4) -> Result:
    async with Grader(data.config.reward) as grader:
        return await Evaluation(data, version, ask, tokenizer, grader).run(function)


async def test_all_prompts_are_generated_and_graded_with_seeds_of_their_own(tokenizer: Tokenizer) -> None:
    engine = Engine(tokenizer)
    data = dataset(tokenizer, "eval.n_samples_per_eval_prompt=4")
    result = await evaluated(data, tokenizer, engine)
    assert result.metrics["seen"] == result.metrics["seen-pass@1"] == result.metrics["seen-pass@4"] == 1.0
    assert [(s.prompt_index, s.sample_index) for s in result.samples] == [(p, i) for p in range(8) for i in range(4)]
    assert result.samples[0].response == result.samples[0].label == "0"
    assert len(set(engine.seeds)) == 8 * 4
    again = Engine(tokenizer)
    await evaluated(data, tokenizer, again)
    assert again.seeds == engine.seeds


async def test_a_token_of_another_version_refuses_the_point(tokenizer: Tokenizer) -> None:
    with pytest.raises(VersionError, match="seen, prompt 0, sample 0: 2 of 2 tokens are of version 4, not of 5"):
        await evaluated(dataset(tokenizer), tokenizer, Engine(tokenizer), version=5)


async def test_what_a_function_of_the_users_loses_counts_and_costs_no_other(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    (tmp_path / "mine.py").write_text(
        "from miles_async.rollout.single_turn import generate as single\n"
        "async def generate(ticket, index, context):\n"
        "    if ticket.prompt.startswith('0>2') or index == 1:\n"
        "        raise ValueError('no such tool')\n"
        "    return await single(ticket, index, context)\n"
        "def reward(sample):\n"
        "    return 1 / (len(sample.response) - 3)\n"
    )
    data = dataset(
        tokenizer,
        "eval.n_samples_per_eval_prompt=2",
        f"rollout.generate_function={tmp_path}/mine.py:generate",
        f"eval.datasets.seen.rm_type={tmp_path}/mine.py:reward",
    )
    result = await evaluated(data, tokenizer, Engine(tokenizer))
    assert len(result.samples) == 8 * 2
    errors = {(s.prompt_index, s.rollout_index): s.error for s in result.samples if s.error}
    assert len(errors) == 8 + 1 + 1  # a half of every prompt, a whole one, and a grading of three digits
    assert "no such tool" in errors[1, 0] and "no such tool" in errors[3, 1] and "ZeroDivision" in errors[2, 0]
    assert result.metrics["seen-none_reward_ratio"] == 10 / 16


async def test_an_engines_failure_ends_the_attempt_also_where_a_function_has_it(tokenizer: Tokenizer) -> None:
    async def dead(body: dict[str, Any]) -> list[dict[str, Any]]:
        raise EngineError("eval_engine-0", "/generate", "gone")

    with pytest.raises(EngineError, match="gone"):
        await evaluated(dataset(tokenizer), tokenizer, dead)
    engine = Engine(tokenizer)

    async def half(body: dict[str, Any]) -> list[dict[str, Any]]:
        return await (dead if body["rid"][0].split(".")[-2] == "1" else engine)(body)

    per_sample = dataset(tokenizer, "eval.n_samples_per_eval_prompt=2", "rollout.rollout_function=per_sample")
    with pytest.raises(LostError, match="gone"):
        await evaluated(per_sample, tokenizer, half)


async def test_no_more_prompts_are_open_at_once_than_allowed(tokenizer: Tokenizer) -> None:
    import asyncio

    engine, now, most = Engine(tokenizer), 0, 0

    async def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        await asyncio.sleep(0.001)
        now -= 1
        return await engine(body)

    await evaluated(dataset(tokenizer, "eval.max_in_flight=3"), tokenizer, ask)
    assert most == 3


async def test_a_function_of_the_users_makes_the_metrics_and_the_record_has_what_it_graded(
    tokenizer: Tokenizer,
) -> None:
    async def first_two(data: Dataset, generate: Any, grade: Any) -> dict[str, float]:
        rewards: list[float] = []
        for prompt in data.prompts[:2]:
            samples: list[Sample] = await generate(prompt)
            rewards += await grade(prompt, samples)
        return {data.name: min(rewards), f"{data.name}/asked": len(rewards)}

    result = await evaluated(dataset(tokenizer), tokenizer, Engine(tokenizer), first_two)
    assert result.metrics == {"seen": 1.0, "seen/asked": 2.0}
    assert [sample.prompt_index for sample in result.samples] == [0, 1]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "not NoneType"),
        ({}, "not 0 of them"),
        ({"reward": 1.0}, "'reward': its names begin with seen"),
        ({"seen-x": float("nan")}, "seen-x = nan: expected a finite number"),
        ({"seen": "1"}, "expected a finite number"),
        ({"seen-" + "x" * 200: 1.0}, "at most 150 characters"),
    ],
)
async def test_what_are_no_metrics_of_the_dataset_is_refused(tokenizer: Tokenizer, found: Any, message: str) -> None:
    async def function(data: Dataset, generate: Any, grade: Any) -> Any:
        return found

    with pytest.raises(ResultError, match=message):
        await evaluated(dataset(tokenizer), tokenizer, Engine(tokenizer), function)


SCORED = """
import msgspec
import numpy as np
from miles_async.rollout import single_turn

async def scored(ticket, index, context):
    (sample,) = await single_turn.generate(ticket, index, context)
    reward = [np.float32(0.5), float("nan"), 1.0, 1.0][index]
    part = [np.float64(2.0), 1.0, float("inf"), "a"][index]
    return [msgspec.structs.replace(sample, reward=reward, reward_parts={"own": part})]
"""


async def test_a_reward_that_a_generate_function_gives_is_a_plain_finite_number_or_none(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(SCORED)
    wanted = (f"rollout.generate_function={tmp_path}/mine.py:scored", "eval.n_samples_per_eval_prompt=4")
    result = await evaluated(dataset(tokenizer, *wanted), tokenizer, Engine(tokenizer))
    lines = {sample.rollout_index: sample for sample in result.samples if sample.prompt_index == 0}
    assert (type(lines[0].reward), lines[0].reward, lines[0].reward_parts) == (float, 0.5, {"own": 2.0})
    assert [lines[i].reward for i in (1, 2, 3)] == [None, None, None] and lines[1].reward_parts == {}
    assert "reward must be finite, not nan" in lines[1].error and "own must be finite, not inf" in lines[2].error
    assert "the part 'own' of the reward must be a number, not str" in lines[3].error
    assert result.metrics["seen"] == 0.125 and result.metrics["seen-none_reward_ratio"] == 0.75


def test_a_dataset_is_what_the_documentation_of_the_hook_says(tokenizer: Tokenizer) -> None:
    data = dataset(tokenizer)
    assert (data.name, data.n_samples, len(data.prompts)) == ("seen", 1, 8) and isinstance(data.prompts[0], Prompt)
