"""The configuration of an evaluation: what applies to a dataset, which versions are due, and what is refused in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from evaluations import EVAL, eval_config
from hypothesis import given
from hypothesis import strategies as st

from actors.runtime.plan import eval_engine_names, specs, topology
from miles_async.cli.load import parse
from miles_async.config.schema import ConfigError, Eval
from miles_async.config.toml import dump
from miles_async.data import DataError
from miles_async.evaluation.datasets import load_datasets
from miles_async.evaluation.settings import SEED_SPACE, dataset_config, is_due, seed_of
from miles_async.text.tokenizer import Tokenizer
from miles_async.weights.place import pins_kept


def test_a_dataset_has_its_own_keys_over_those_of_eval_over_those_of_training() -> None:
    text = EVAL.replace("eval_interval = 4", "eval_interval = 4\neval_top_p = 0.5\neval_temperature = 0.7\n") + (
        'temperature = 0.0\nrm_type = "random"\nlabel_key = ""\nstop = []\nn_samples_per_eval_prompt = 3\n'
    )
    made = dataset_config(eval_config('rollout.rollout_stop=["x"]', "rollout.rollout_top_k=9", text=text), "seen")
    rollout = made.rollout
    assert (rollout.rollout_temperature, rollout.rollout_top_p, rollout.rollout_top_k) == (0.0, 0.5, 9)
    assert (rollout.n_samples_per_prompt, rollout.rollout_stop) == (3, [])
    assert (made.reward.rm_type, made.data.label_key, made.data.prompt_data) == ("random", None, "builtin:repeat")
    plain = dataset_config(eval_config(), "seen")
    assert plain.rollout == msgspec.structs.replace(eval_config().rollout, n_samples_per_prompt=1)
    taught = eval_config("algorithm.loss_type=sft_loss", "rollout.rollout_function=sft", "algorithm.correction=none")
    assert dataset_config(taught, "seen").rollout.rollout_function == "single_turn"  # a policy is evaluated by sampling
    assert plain.data.label_key == eval_config().data.label_key and plain.reward == eval_config().reward


def test_a_configuration_with_datasets_is_written_and_read_back_equal() -> None:
    made = eval_config("eval.datasets.seen.temperature=0.5", "eval.datasets.other-1.prompt_data=builtin:repeat9@[:5]")
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
        eval_config(override)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_an_evaluation_that_could_make_no_point_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval.eval_interval = 4 needs a dataset: a table \[eval.datasets.NAME\]"):
        eval_config(text="[eval]\neval_interval = 4\n")
    external = ("engine.kind=external", 'engine.urls=["http://h:1", "http://h:2"]')
    with pytest.raises(ConfigError, match=r"eval.urls is empty"):
        eval_config(*external)
    with pytest.raises(ConfigError, match=r"eval.urls: http://h:2 is in engine.urls too"):
        eval_config(*external, 'eval.urls=["http://h:2/"]')
    assert len(eval_engine_names(eval_config(*external, 'eval.urls=["http://h:3"]'))) == 1


def test_a_run_without_an_interval_has_no_evaluator() -> None:
    with_points = eval_config()
    without = msgspec.structs.replace(with_points, eval=Eval())
    assert "evaluator" not in topology(without) and not eval_engine_names(without)
    names = {spec.name: spec.path for spec in specs(with_points, Path(), "", "", "run", 1)}
    assert names["evaluator"] == "actors.evaluator.Evaluator"
    assert names["eval_engine-0"] == "actors.eval_engine.EvalEngine"
    assert pins_kept(without.eval) == 0 and not is_due(without.eval, 0)


def test_versions_that_are_due() -> None:
    assert [v for v in range(10) if is_due(eval_config().eval, v)] == [0, 4, 8]
    assert [v for v in range(10) if is_due(eval_config("eval.skip_eval_before_train=true").eval, v)] == [4, 8]


@given(st.integers(0, 2**40), st.text(max_size=9), st.integers(0, 10**7), st.integers(1, 1024))
def test_seeds_are_the_same_in_every_run_and_fit(run_seed: int, name: str, index: int, n: int) -> None:
    seed = seed_of(run_seed, name, index, n)
    assert seed == seed_of(run_seed, name, index, n) and seed >= 0 and seed + n <= SEED_SPACE
    assert seed != seed_of(run_seed, name, index + 1, n) and seed != seed_of(run_seed, name + "x", index, n)


def test_a_wrong_line_of_a_dataset_names_dataset_and_line(tmp_path: Path, digits_model: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"input": "1>1>", "label": "1"}\n{"input": "1>1>"}\n')
    with pytest.raises(DataError, match=r"eval.datasets.seen: .*d.jsonl:2: no key \"label\""):
        load_datasets(eval_config(f"eval.datasets.seen.prompt_data={file}"), Tokenizer(digits_model))
