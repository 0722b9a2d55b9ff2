"""Both sides of `bench trl` are given the same, written from one configuration."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from benchmarks.lib import trl_jobs
from benchmarks.lib.trl_jobs import JOBS, ROOT, for_trl
from miles_async.data import counts, load_prompts, prompt_at
from miles_async.text.tokenizer import Tokenizer


@pytest.mark.parametrize("name", JOBS)
def test_the_job_of_trl_says_what_the_configuration_says(name: str, tmp_path: Path) -> None:
    job = JOBS[name](tmp_path, 3)
    config, theirs = job.config(), for_trl(job, 2)
    assert config.run.target_reward == job.target == theirs["target_reward"]
    assert (theirs["seed"], theirs["threads"], theirs["model"]) == (3, 2, str(tmp_path / "model"))
    for section in (config.run, config.rollout, config.learner, config.algorithm):
        for key in theirs.keys() & set(type(section).__struct_fields__):
            assert theirs[key] == getattr(section, key), key


def test_trl_takes_exactly_the_fields_that_are_written(tmp_path: Path) -> None:
    """Its side is a program for an environment without this project, so that it is read, not imported."""
    tree = ast.parse((ROOT / "benchmarks" / "lib" / "trl_grpo.py").read_text())
    (fields,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Job")
    names = {node.target.id for node in fields if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    assert names == set(for_trl(JOBS["long_tail"](tmp_path, 1), 1))


@pytest.mark.parametrize("name", JOBS)
def test_the_prompts_come_in_the_order_in_which_the_dealer_deals_them(name: str, tmp_path: Path) -> None:
    job = JOBS[name](tmp_path, 3)
    config = job.config()
    prompts = load_prompts(config, Tokenizer(str(job.model)))
    dealt = [
        prompts[prompt_at(position, counts(prompts), 3, config.data.rollout_shuffle)[1]]
        for position in range(config.run.num_steps * config.rollout.rollout_batch_size)
    ]
    rows = for_trl(job, 1)["rows"]
    assert [(prompt.text, prompt.label) for prompt in dealt] == [(row["prompt"], row["label"]) for row in rows]


def test_the_long_tail_has_prompts_and_answers_of_the_stated_lengths(tmp_path: Path) -> None:
    job = JOBS["long_tail"](tmp_path, 1)
    prompts = load_prompts(job.config(), Tokenizer(str(job.model)))
    assert {len(prompt.tokens) for prompt in prompts} == set(range(32, 65))
    asked = sorted(len(prompt.label or "") for prompt in prompts)
    assert 6 <= asked[len(asked) // 2] <= 10  # the median is 8
    assert asked[0] >= 1 and 60 < asked[-1] < trl_jobs.MAX_ANSWER
    assert len({prompt.text for prompt in prompts}) == len(prompts)


def test_one_seed_makes_one_job(tmp_path: Path) -> None:
    made = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        job = JOBS["long_tail"](tmp_path / place, 7)
        made.append((for_trl(job, 1) | {"model": ""}, (job.model / "model.safetensors").read_bytes()))
    assert made[0] == made[1]
    assert json.loads((job.model / "config.json").read_text())["num_hidden_layers"] == 4
