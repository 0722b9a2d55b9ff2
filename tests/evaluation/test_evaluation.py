"""Evaluation without a run: pass@k, metrics, what applies to a dataset, kept snapshots, the record, one dataset's result."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from evaluations import EVAL, MINIMAL, snapshot
from hypothesis import given
from hypothesis import strategies as st

from actors.runtime.plan import eval_engine_names, specs, topology
from bus.messages import Sample
from miles_async.cli.load import parse
from miles_async.config.schema import ConfigError, Eval, RunConfig
from miles_async.config.toml import dump
from miles_async.data import DataError, Prompt
from miles_async.engines.client import EngineError
from miles_async.evaluation.datasets import Dataset, load_datasets
from miles_async.evaluation.metrics import EvalSample, dataset_metrics, pass_at_k
from miles_async.evaluation.pins import pin, pin_path, pins_in, unpin
from miles_async.evaluation.point import Evaluation, LostError, Result, ResultError, VersionError
from miles_async.evaluation.record import EvalRecord
from miles_async.evaluation.settings import SEED_SPACE, dataset_config, is_due, seed_of
from miles_async.models.builtin import make_model
from miles_async.rewards import Grader
from miles_async.runs.points import POINTS_FILE, Point
from miles_async.text.tokenizer import Tokenizer
from miles_async.weights.place import pins_kept
from miles_async.weights.snapshot import WEIGHTS_FILE, SnapshotError, prune


def config(*overrides: str, text: str = EVAL) -> RunConfig:
    return parse(MINIMAL + text, overrides)


# pass@k


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 1, 1 / 4),
        (4, 1, 2, 1 / 2),
        (4, 2, 2, 5 / 6),  # one of six pairs holds no right one
        (10, 3, 5, 1 - 21 / 252),
        (5, 0, 4, 0.0),
        (5, 5, 1, 1.0),
        (5, 3, 3, 1.0 - 0.0),  # only two wrong ones: any three hold a right one
        (1, 1, 1, 1.0),
    ],
)
def test_pass_at_k_by_hand(n: int, c: int, k: int, expected: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-15)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_mean_over_all_choices_of_k(right: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(right)))
    choices = [any(chosen) for chosen in itertools.combinations(right, k)]
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(sum(choices) / len(choices), abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_pass_at_k_of_samples_that_there_are_not_is_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="there are no such samples"):
        pass_at_k(n, c, k)


# the metrics of a dataset


def graded(reward: float | None, *, rollout: int = 0, length: int = 3, finish: str = "stop") -> EvalSample:
    return EvalSample(
        prompt_index=0,
        sample_index=rollout,
        rollout_index=rollout,
        prompt="",
        response="",
        label=None,
        reward=reward,
        finish_reason=finish,
        response_len=length,
    )


def test_the_metrics_of_a_dataset_by_hand() -> None:
    one = [graded(1.0, rollout=0), graded(0.5, rollout=1), graded(0.0, rollout=2), graded(1.0, rollout=3)]
    other = [
        graded(None, rollout=0),
        graded(1.0, rollout=1, length=8, finish="length"),
        *(graded(0.0, rollout=i) for i in (2, 3)),
    ]
    found = dataset_metrics("d", [one, other])
    assert found.pop("d") == pytest.approx((2.5 + 1.0) / 8)  # what could not be graded counts 0
    assert found.pop("d-none_reward_ratio") == found.pop("d-truncated_ratio") == 1 / 8
    assert found.pop("d/response_len/mean") == pytest.approx((7 * 3 + 8) / 8)
    assert found == pytest.approx({"d-pass@1": 3 / 8, "d-pass@2": (5 / 6 + 1 / 2) / 2, "d-pass@4": 1.0})


def test_the_branches_of_a_rollout_count_once_and_a_prompt_with_too_few_says_nothing_of_pass_at_k() -> None:
    branches = [graded(1.0, rollout=0), graded(1.0, rollout=0), graded(0.0, rollout=1)]
    found = dataset_metrics("d", [branches, [graded(0.0)]])
    assert found["d"] == pytest.approx((1 + 0 + 0) / 3)
    assert found["d-pass@1"] == pytest.approx((1 / 2 + 0) / 2)
    assert found["d-pass@2"] == 1.0  # of the first prompt alone
    assert "d-pass@4" not in found
    with pytest.raises(ValueError, match="no sample"):
        dataset_metrics("d", [])


# configuration


def test_a_dataset_has_its_own_keys_over_those_of_eval_over_those_of_training() -> None:
    text = EVAL.replace("eval_interval = 4", "eval_interval = 4\neval_top_p = 0.5\neval_temperature = 0.7\n") + (
        'temperature = 0.0\nrm_type = "random"\nlabel_key = ""\nstop = []\nn_samples_per_eval_prompt = 3\n'
    )
    made = dataset_config(config('rollout.rollout_stop=["x"]', "rollout.rollout_top_k=9", text=text), "seen")
    rollout = made.rollout
    assert (rollout.rollout_temperature, rollout.rollout_top_p, rollout.rollout_top_k) == (0.0, 0.5, 9)
    assert (rollout.n_samples_per_prompt, rollout.rollout_stop) == (3, [])
    assert (made.reward.rm_type, made.data.label_key, made.data.prompt_data) == ("random", None, "builtin:repeat")
    plain = dataset_config(config(), "seen")
    assert plain.rollout == msgspec.structs.replace(config().rollout, n_samples_per_prompt=1)
    taught = config("algorithm.loss_type=sft_loss", "rollout.rollout_function=sft", "algorithm.correction=none")
    assert dataset_config(taught, "seen").rollout.rollout_function == "single_turn"  # a policy is evaluated by sampling
    assert plain.data.label_key == config().data.label_key and plain.reward == config().reward


def test_a_configuration_with_datasets_is_written_and_read_back_equal() -> None:
    made = config("eval.datasets.seen.temperature=0.5", "eval.datasets.other-1.prompt_data=builtin:repeat9@[:5]")
    assert list(made.eval.datasets) == ["seen", "other-1"]
    assert parse(dump(made)) == made


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("eval.datasets=3", ["eval.datasets = 3", "[eval.datasets.NAME]"]),
        ("eval.datasets.seen.temprature=1", ["eval.datasets.seen.temprature", "eval.datasets.NAME.temperature"]),
        ("eval.datasets.seen.temperature=-1", ["eval.datasets.seen.temperature = -1", ">= 0"]),
        ("eval.datasets.new.temperature=1", ["eval.datasets.new.prompt_data is missing"]),
        ("eval.datasets.a/b.prompt_data=x", ["a/b", "is no name"]),
        ("eval.datasets.version.prompt_data=builtin:repeat", ["eval.datasets.version", "eval/version"]),
        ("eval.datasets.seen.prompt_data=nowhere.jsonl", ["eval.datasets.seen.prompt_data", "no such file"]),
        ("eval.datasets.seen.prompt_data=builtin:repaet", ["eval.datasets.seen.prompt_data", "builtin:repeat"]),
        ("eval.datasets.seen.rm_type=graded_mach", ["eval.datasets.seen.rm_type", "graded_match"]),
        ("eval.eval_interval=0", ["eval.eval_interval = 0", ">= 1"]),
        ("weights.update_interval=3", ["eval.eval_interval = 4", "weights.update_interval = 3"]),
        ("eval.eval_function=math.sqrt", ["eval.eval_function", "dataset, generate, grade"]),
        ("eval.eval_log_function=os.getcwd", ["eval.eval_log_function", "version, results"]),
        ("eval.eval_function=no.such.thing", ["eval.eval_function", "no module"]),
    ],
)
def test_a_wrong_evaluation_is_one_clear_line(override: str, parts: Sequence[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config(override)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_an_evaluation_that_could_make_no_point_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval.eval_interval = 4 needs a dataset: a table \[eval.datasets.NAME\]"):
        config(text="[eval]\neval_interval = 4\n")
    external = ("engine.kind=external", 'engine.urls=["http://h:1", "http://h:2"]')
    with pytest.raises(ConfigError, match=r"eval.urls is empty"):
        config(*external)
    with pytest.raises(ConfigError, match=r"eval.urls: http://h:2 is in engine.urls too"):
        config(*external, 'eval.urls=["http://h:2/"]')
    assert len(eval_engine_names(config(*external, 'eval.urls=["http://h:3"]'))) == 1


def test_a_run_without_an_interval_has_no_evaluator() -> None:
    with_points = config()
    without = msgspec.structs.replace(with_points, eval=Eval())
    assert "evaluator" not in topology(without) and not eval_engine_names(without)
    names = {spec.name: spec.path for spec in specs(with_points, Path(), "", "", "run", 1)}
    assert names["evaluator"] == "actors.evaluator.Evaluator"
    assert names["eval_engine-0"] == "actors.eval_engine.EvalEngine"
    assert pins_kept(without.eval) == 0 and not is_due(without.eval, 0)


def test_versions_that_are_due() -> None:
    assert [v for v in range(10) if is_due(config().eval, v)] == [0, 4, 8]
    assert [v for v in range(10) if is_due(config("eval.skip_eval_before_train=true").eval, v)] == [4, 8]


@given(st.integers(0, 2**40), st.text(max_size=9), st.integers(0, 10**7), st.integers(1, 1024))
def test_seeds_are_the_same_in_every_run_and_fit(run_seed: int, name: str, index: int, n: int) -> None:
    seed = seed_of(run_seed, name, index, n)
    assert seed == seed_of(run_seed, name, index, n) and seed >= 0 and seed + n <= SEED_SPACE
    assert seed != seed_of(run_seed, name, index + 1, n) and seed != seed_of(run_seed, name + "x", index, n)


def test_a_wrong_line_of_a_dataset_names_dataset_and_line(tmp_path: Path, digits_model: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"input": "1>1>", "label": "1"}\n{"input": "1>1>"}\n')
    with pytest.raises(DataError, match=r"eval.datasets.seen: .*d.jsonl:2: no key \"label\""):
        load_datasets(config(f"eval.datasets.seen.prompt_data={file}"), Tokenizer(digits_model))


# kept snapshots


def test_a_kept_snapshot_outlives_the_learners_and_is_no_copy(tmp_path: Path) -> None:
    source = snapshot(tmp_path, 4)
    inode = (source / WEIGHTS_FILE).stat().st_ino
    kept = pin(source, keep=3)
    snapshot(tmp_path, 5), snapshot(tmp_path, 6)
    prune(tmp_path, 2)
    assert not source.exists()
    assert (kept / WEIGHTS_FILE).read_bytes() == bytes([4]) * 10 and (kept / WEIGHTS_FILE).stat().st_ino == inode
    assert pin(source, keep=3) == kept  # found, though the snapshot is gone
    unpin(kept)
    assert pins_in(tmp_path) == []
    with pytest.raises(SnapshotError, match="cannot keep"):
        pin(source, keep=3)


def test_what_nobody_takes_away_is_bounded(tmp_path: Path) -> None:
    for version in range(6):
        os.utime(pin(snapshot(tmp_path, version), keep=2), (version, version))
    assert {path.name for path in pins_in(tmp_path)} == {"eval-i0001-v00000004", "eval-i0001-v00000005"}


def test_half_a_snapshot_is_not_kept(tmp_path: Path) -> None:
    source = snapshot(tmp_path, 1)
    (source / WEIGHTS_FILE).unlink()
    with pytest.raises(SnapshotError, match=f"no {WEIGHTS_FILE}"):
        pin(source, keep=2)
    assert not pin_path(source).exists() and sorted(path.name for path in tmp_path.iterdir()) == [source.name]


# the record


def test_the_record_is_read_back_and_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    record = EvalRecord(tmp_path)
    record.add(Point(0, 1, "made", 1.0, {"d": 0.5}))
    record.add(Point(4, 1, "busy", 2.0, cause="why"))
    record.add_samples(0, {"d": Result({"d": 0.5}, [graded(0.5)])})
    assert json.loads((tmp_path / "d-0.jsonl").read_text())["reward"] == 0.5
    with (tmp_path / POINTS_FILE).open("ab") as file:
        file.write(b'{"version": 8, "incarn')
    again = EvalRecord(tmp_path)
    assert {version: point.outcome for version, point in again.points.items()} == {0: "made", 4: "busy"}
    again.add(Point(8, 1, "made", 3.0))
    assert [json.loads(line)["version"] for line in (tmp_path / POINTS_FILE).read_text().splitlines()] == [0, 4, 8]


# one dataset at one version, from an engine that this test is


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
    (found,) = load_datasets(config("eval.datasets.seen.prompt_data=builtin:repeat@[:8]", *overrides), tokenizer)
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
