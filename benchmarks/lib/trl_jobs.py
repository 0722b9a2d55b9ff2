"""The jobs of ``bench trl``: what miles-async is launched with, and the same for TRL.

``quickstart``: ``examples/quickstart.toml``, until the mean reward of five steps is 0.9; answers of a few tokens from 75,136
parameters.

``long_tail``: LONG_TAIL_STEPS steps of a model of 4 layers of 256 (2.4 million parameters), each with 8 answers of up to 128
tokens to 16 prompts of 32 to 64. The task is the quickstart's behind a text to be passed over: ``...>7>23>`` asks for 23 times
a 7 and then a stop. How many are asked for is lognormal (median 8), and an untrained model stops with about one token in 32,
so that most answers are short and a few of each batch run into the limit. Graded by ``graded_match``.

Promises: of one seed, the model, the prompts and their order are the same on both sides and in every run.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from miles_async.cli.load import load
from miles_async.config.schema import RunConfig
from miles_async.data import prompt_at
from miles_async.models import builtin
from miles_async.train.schedule import learning_rate

ROOT = Path(__file__).resolve().parents[2]
TARGET = 0.9
LONG_TAIL_STEPS = 20
LONG_TAIL_PROMPTS = 16 * LONG_TAIL_STEPS
PROMPT_TOKENS = (32, 64)
MAX_ANSWER = 128  # tokens, the stop included
ARCHITECTURE = builtin.Architecture(
    builtin.padded((builtin.PAD, builtin.EOS, ">", *string.digits), 32), 256, 512, 4, 8, 4, 32, 1e4, 0.05, 256, ""
)
LONG_TAIL = f"""
[run]
num_steps = {LONG_TAIL_STEPS}
[model]
hf_checkpoint = "MODEL"
parity_check = false
device = "cpu"
[data]
prompt_data = "PROMPTS"
[rollout]
rollout_batch_size = 16
n_samples_per_prompt = 8
rollout_max_response_len = {MAX_ANSWER}
num_workers = 2
[reward]
rm_type = "graded_match"
[staleness]
policy = "fifo"
max_lag = 2
[algorithm]
correction = "behaviour"
eps_clip = 0.2
eps_clip_high = 0.28
[learner]
lr = 1e-4
lr_warmup_steps = 5
adam_beta2 = 0.95
clip_grad = 1.0
[engine]
kind = "embedded"
num_engines = 2
"""


class Job(NamedTuple):
    """What a launch of one job is given, and the model as a directory (the launch makes a built-in one by itself)."""

    config_file: Path
    settings: list[str]
    model: Path
    target: float | None

    def config(self) -> RunConfig:
        return load(self.config_file, self.settings)


def quickstart(root: Path, seed: int) -> Job:
    file, model = ROOT / "examples" / "quickstart.toml", root / "model"
    settings = [f"run.seed={seed}", f"run.target_reward={TARGET}", "monitor.live=off"]
    builtin.make_model(load(file, settings).model.hf_checkpoint, model, seed)
    return Job(file, settings, model, TARGET)


def long_tail(root: Path, seed: int) -> Job:
    file, model, prompts = root / "long_tail.toml", root / "model", root / "prompts.jsonl"
    builtin.write_model(ARCHITECTURE, model, seed)
    prompts.write_text("".join(json.dumps(row) + "\n" for row in long_tail_rows(seed)))
    file.write_text(LONG_TAIL.replace("MODEL", str(model)).replace("PROMPTS", str(prompts)))
    return Job(file, [f"run.seed={seed}", "monitor.live=off"], model, None)


JOBS: dict[str, Callable[[Path, int], Job]] = {"quickstart": quickstart, "long_tail": long_tail}


def long_tail_rows(seed: int) -> list[dict[str, str]]:
    """``{"input", "label"}``; a character is a token."""
    draw = random.Random(seed)
    rows = []
    for _ in range(LONG_TAIL_PROMPTS):
        digit, count = draw.choice(string.digits), min(MAX_ANSWER - 1, max(1, round(draw.lognormvariate(2.08, 1.0))))
        question = f">{digit}>{count}>"
        passed_over = "".join(draw.choices(string.digits, k=draw.randint(*PROMPT_TOKENS) - len(question)))
        rows.append({"input": passed_over + question, "label": digit * count})
    return rows


def for_trl(job: Job, threads: int) -> dict[str, Any]:
    """The fields of ``trl_grpo.Job``: what the job's configuration says, with prompts and rates written out step by step."""
    config = job.config()
    run, rollout, algorithm, learner = config.run, config.rollout, config.algorithm, config.learner
    rows = _rows(str(config.data.prompt_data))
    places = [
        prompt_at(position, len(rows), run.seed, config.data.rollout_shuffle)[1]
        for position in range(run.num_steps * rollout.rollout_batch_size)
    ]
    rates = [
        learning_rate(
            step,
            lr=learner.lr,
            min_lr=learner.min_lr,
            warmup_steps=learner.lr_warmup_steps,
            decay_steps=learner.lr_decay_steps,
            decay_style=learner.lr_decay_style,
        )
        for step in range(run.num_steps)
    ]
    return {
        "model": str(job.model),
        "rows": [{"prompt": rows[place]["input"], "label": rows[place]["label"]} for place in places],
        "num_steps": run.num_steps,
        "target_reward": run.target_reward,
        "seed": run.seed,
        "rollout_batch_size": rollout.rollout_batch_size,
        "n_samples_per_prompt": rollout.n_samples_per_prompt,
        "rollout_max_response_len": rollout.rollout_max_response_len,
        "rollout_temperature": rollout.rollout_temperature,
        "rates": rates,
        "adam_beta1": learner.adam_beta1,
        "adam_beta2": learner.adam_beta2,
        "adam_eps": learner.adam_eps,
        "weight_decay": learner.weight_decay,
        "clip_grad": learner.clip_grad,
        "eps_clip": algorithm.eps_clip,
        "eps_clip_high": algorithm.upper_clip,
        "entropy_coef": algorithm.entropy_coef,
        "threads": threads,
    }


def _rows(source: str) -> list[dict[str, str]]:
    if builtin.is_builtin(source):
        return builtin.prompt_rows(source)
    return [json.loads(line) for line in Path(source).read_text().splitlines()]
