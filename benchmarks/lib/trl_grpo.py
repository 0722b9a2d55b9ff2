"""GRPO by Hugging Face TRL on what ``bench_trl`` hands over; run by the interpreter of TRL's own environment.

    TRL_PYTHON benchmarks/lib/trl_grpo.py JOB.json STARTED

JOB.json is a ``Job``; STARTED is the time in seconds since the epoch at which this process was started, from which
all seconds of the result are counted. Standard output ends with one JSON line, ``Recorder.result``. Promises: one
optimizer step for each batch, on exactly the prompts, in the order, with the reward and the rates of the job; it stops
when the mean reward of the last 5 steps reaches the target. It imports nothing of this project.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

REWARD_WINDOW = 5  # steps


@dataclass(frozen=True)
class Job:
    """What both sides have in common. Names are those of miles-async's configuration."""

    model: str  # a Hugging Face directory
    rows: list[dict[str, str]]  # "prompt" and "label" of each group, in the order they are trained on
    num_steps: int
    target_reward: float | None
    seed: int
    rollout_batch_size: int  # prompts of one step
    n_samples_per_prompt: int
    rollout_max_response_len: int  # tokens
    rollout_temperature: float
    rates: list[float]  # the learning rate of each step
    adam_beta1: float
    adam_beta2: float
    adam_eps: float
    weight_decay: float
    clip_grad: float
    eps_clip: float
    eps_clip_high: float
    entropy_coef: float
    threads: int  # of torch


class TimedTrainer(GRPOTrainer):
    """GRPOTrainer that adds up the seconds of its rollouts: generation, reward, advantages."""

    rollout_s = 0.0

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        started = time.perf_counter()
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self.rollout_s += time.perf_counter() - started


class Recorder(TrainerCallback):
    """Keeps reward and time of every step; ends the training at the target, if there is one."""

    def __init__(self, target: float | None, started: float):
        self.target, self.started = target, started
        self.rewards: list[float] = []
        self.lengths: list[float] = []  # mean response tokens
        self.truncated: list[float] = []  # share of the responses that ended at the limit
        self.times: list[float] = []  # seconds from the start of the process to the end of the step
        self.reached: float | None = None
        self.setup_s = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.setup_s = time.time() - self.started

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not logs or "reward" not in logs:
            return  # the totals at the end
        self.times.append(time.time() - self.started)
        self.rewards.append(float(logs["reward"]))
        self.lengths.append(float(logs["completions/mean_length"]))
        self.truncated.append(float(logs["completions/clipped_ratio"]))
        recent = self.rewards[-REWARD_WINDOW:]
        if self.target is None:
            return
        if len(recent) == REWARD_WINDOW and sum(recent) / REWARD_WINDOW >= self.target:
            self.reached = self.times[-1]
            control.should_training_stop = True

    def result(self, samples_per_step: int, rollout_s: float, imports_s: float) -> dict[str, Any]:
        """Seconds from the start of the process; rates between the ends of the first and of the last step."""
        steps = len(self.rewards)
        wall = self.times[-1] - self.times[0]
        return {
            "wall_s": self.reached,
            "steps": steps,
            "samples_per_s": samples_per_step * (steps - 1) / wall,
            "tokens_per_s": samples_per_step * sum(self.lengths[1:]) / wall,
            "reward_last": sum(self.rewards[-REWARD_WINDOW:]) / len(self.rewards[-REWARD_WINDOW:]),
            "response_tokens": sum(self.lengths) / steps,
            "truncated": sum(self.truncated) / steps,
            "imports_s": imports_s,
            "setup_s": self.setup_s,  # imports included
            "first_step_s": self.times[0],
            "last_step_s": self.times[-1],
            "step_s": wall / (steps - 1),
            "rollout_s": rollout_s / steps,  # the rest of a step is the optimizer step and the Trainer around it
        }


def graded_match(eos: int, encode: Callable[[str], list[int]]) -> Callable[..., list[float]]:
    """miles-async's ``graded_match`` on token ids, which the tokenizer makes of one character each.

    Positions where response and label agree / length of the longer one; an end of sequence counts as a position.
    """

    def reward(completion_ids: list[list[int]], label: list[str], **_: Any) -> list[float]:
        targets = [[*encode(text), eos] for text in label]
        return [
            sum(mine == theirs for mine, theirs in zip(ids, target, strict=False)) / max(len(ids), len(target))
            for ids, target in zip(completion_ids, targets, strict=True)
        ]

    return reward


def configuration(job: Job, directory: str) -> GRPOConfig:
    return GRPOConfig(
        output_dir=directory,
        seed=job.seed,
        max_steps=job.num_steps,
        # one generation, one optimizer step
        per_device_train_batch_size=job.rollout_batch_size * job.n_samples_per_prompt,
        num_generations=job.n_samples_per_prompt,
        steps_per_generation=1,
        num_iterations=1,
        shuffle_dataset=False,  # the rows are in order
        max_completion_length=job.rollout_max_response_len,
        temperature=job.rollout_temperature,
        top_p=1.0,
        top_k=0,
        # the loss: token mean, clipped, no KL term
        loss_type="dapo",
        scale_rewards="group",
        beta=0.0,
        epsilon=job.eps_clip,
        epsilon_high=job.eps_clip_high,
        entropy_coef=job.entropy_coef,
        max_grad_norm=job.clip_grad,
        # float32 on the CPU, and nothing beside the training that costs time
        use_cpu=True,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        logging_steps=1,
        log_completions=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def train(job: Job, started: float) -> dict[str, Any]:
    imports_s = time.time() - started
    torch.set_num_threads(job.threads)
    tokenizer = AutoTokenizer.from_pretrained(job.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=1.0,  # the scheduler multiplies it
        betas=(job.adam_beta1, job.adam_beta2),
        eps=job.adam_eps,
        weight_decay=job.weight_decay,
    )
    rates = [*job.rates, job.rates[-1]]  # the scheduler asks once more after the last step
    recorder = Recorder(job.target_reward, started)
    with tempfile.TemporaryDirectory() as directory:
        trainer = TimedTrainer(
            model=model,
            args=configuration(job, directory),
            processing_class=tokenizer,
            reward_funcs=graded_match(tokenizer.eos_token_id, lambda text: tokenizer(text)["input_ids"]),
            train_dataset=Dataset.from_list(job.rows),
            callbacks=[recorder],
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[step])),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return recorder.result(job.rollout_batch_size * job.n_samples_per_prompt, trainer.rollout_s, imports_s)


if __name__ == "__main__":
    print(json.dumps(train(Job(**json.loads(Path(sys.argv[1]).read_text())), float(sys.argv[2]))))
