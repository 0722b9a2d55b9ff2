"""Invariant 4: bound 0 through all actors is the plain sequential loop (sample, reward, step), same seeds.

So it is with several optimizer steps in a batch, and with a learner that was killed between two of them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import RECORDING, TINY, launch, metrics, recording_environment, summary, trained_groups, write_config
from rl_reference import Reference
from rl_step import Row

from actors.dealer import sampling_seed
from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack, unpack
from bus.messages import Group, Sample
from miles_async.cli.load import load
from miles_async.data import order
from miles_async.engines.embedded.sampling import sample, uniforms
from miles_async.models.builtin import make_model, prompt_rows
from miles_async.rewards import RewardSample
from miles_async.rewards.builtin_rewards import graded_match
from miles_async.text.tokenizer import Tokenizer
from miles_async.train.ranks import alone
from miles_async.train.trainer import MegatronTrainer

STEPS = 10
EOS = 1


def generate(model: torch.nn.Module, prompts: list[list[int]], seeds: list[int], max_new: int):
    """Token by token, no cache, no batching tricks: every sequence through transformers' model each time."""
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    for position in range(max_new):
        live = [i for i, t in enumerate(tokens) if not t or t[-1] != EOS]
        if not live:
            break
        ids = torch.tensor([prompts[i] + tokens[i] for i in live])  # all prompts of the task have four tokens
        logits = model(input_ids=ids).logits[:, -1].float()
        noise = uniforms(np.array([seeds[i] for i in live], np.uint64), np.full(len(live), position, np.int64))
        drawn, lp = sample(logits, torch.ones(len(live)), torch.from_numpy(noise), None, None)
        for i, token, value in zip(live, drawn.tolist(), lp.tolist(), strict=True):
            tokens[i].append(token)
            logprobs[i].append(value)
    return tokens, logprobs


@torch.no_grad()
def rollout(model: torch.nn.Module, tokenizer: Tokenizer, config, position: int, version: int) -> Group:
    rows = prompt_rows("builtin:repeat")
    epoch, place = divmod(position, len(rows))
    index = order(len(rows), config.run.seed, epoch, True)[place]
    row = rows[index]
    n = config.rollout.n_samples_per_prompt
    prompt = tokenizer.encode(row["input"])
    first = sampling_seed(config.run.seed, position, n)
    tokens, logprobs = generate(model, [prompt] * n, [first + i for i in range(n)], 10)
    samples = []
    for i in range(n):
        finish = "stop" if tokens[i][-1] == EOS else "length"
        text = tokenizer.decode(tokens[i])
        scored = RewardSample(prompt=row["input"], response=text, label=row["label"], finish_reason=finish)
        samples.append(
            Sample(
                index=i,
                tokens=pack(tokens[i], TOKENS),
                logprobs=pack(logprobs[i], LOGPROBS),
                loss_mask=pack(np.ones(len(tokens[i])), MASK),
                versions=pack(np.full(len(tokens[i]), version), VERSIONS),
                reward=graded_match(scored),
                finish_reason=finish,
                text=text,
            )
        )
    return Group(
        group_id=f"{epoch}-{index}-0",
        prompt_tokens=pack(prompt, TOKENS),
        samples=tuple(samples),
        worker="plain",
        started=0.0,
        finished=0.0,
        label=row["label"],
    )


def learner_logprobs(trainer: MegatronTrainer, group: Group) -> list[np.ndarray]:
    """Megatron's log-probs of the response tokens of each sample."""
    prompt = unpack(group.prompt_tokens, TOKENS)
    responses = [unpack(sample.tokens, TOKENS) for sample in group.samples]
    whole = trainer.log_probs([np.concatenate([prompt, response]) for response in responses], 1.0)
    return [values[len(prompt) - 1 :] for values in whole]


def plain_loop(
    config, directory: Path, steps: int
) -> tuple[list[list[Group]], list[float], list[list[list[np.ndarray]]]]:
    from transformers import AutoModelForCausalLM

    make_model("builtin:digits", directory / "model", config.run.seed)
    path = str(directory / "model")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = Tokenizer(path)
    trainer = MegatronTrainer(config, path, alone(f"file://{directory}/rendezvous"))
    batches, losses, logprobs = [], [], []
    size = config.rollout.rollout_batch_size
    for step in range(steps):
        batch = [rollout(model, tokenizer, config, step * size + i, step) for i in range(size)]
        logprobs.append([learner_logprobs(trainer, group) for group in batch])
        losses.append(trainer.step(batch)["loss"])
        batches.append(batch)
        model.load_state_dict(trainer.export(), strict=False)
    trainer.close()
    return batches, losses, logprobs


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(
        tmp_path_factory.mktemp("sync"),
        run=TINY["run"] | {"num_steps": STEPS},
        staleness={"max_lag": 0},
        topology=RECORDING,
    )


def run_beside_the_plain_loop(config_file: Path, tmp_path: Path, steps: int) -> list[list[list[np.ndarray]]]:
    """Both, compared; Megatron's log-probs of each step's tokens before it: by step, group and sample."""
    result = launch(config_file, tmp_path / "run", env=recording_environment())
    assert result.returncode == 0, result.stderr
    assert summary(tmp_path / "run")["max_token_lag"] == 0

    batches, losses, logprobs = plain_loop(load(config_file), tmp_path, steps)
    trained = trained_groups(tmp_path / "run")
    assert sorted(trained) == list(range(1, steps + 1))
    for step, plain in enumerate(batches, 1):
        actors = trained[step]
        assert [group.group_id for group in actors] == [group.group_id for group in plain]
        for mine, theirs in zip(actors, plain, strict=True):
            for a, b in zip(mine.samples, theirs.samples, strict=True):
                assert unpack(a.tokens, TOKENS).tolist() == unpack(b.tokens, TOKENS).tolist(), (step, mine.group_id)
                assert a.versions == b.versions
                assert a.reward == b.reward
        # the engine's log-probs are Megatron's, on the same weights
        for mine, theirs in zip(actors, logprobs[step - 1], strict=True):
            for sample_of_run, values in zip(mine.samples, theirs, strict=True):
                np.testing.assert_allclose(unpack(sample_of_run.logprobs, LOGPROBS), values, atol=1e-4)
    run_losses = {
        line["step"]: line["values"]["loss"] for line in metrics(tmp_path / "run") if "loss" in line["values"]
    }
    np.testing.assert_allclose([run_losses[step] for step in range(1, steps + 1)], losses, atol=1e-5)
    return logprobs


def test_bound_0_through_all_actors_equals_the_plain_sequential_loop(config_file: Path, tmp_path: Path) -> None:
    run_beside_the_plain_loop(config_file, tmp_path, STEPS)


def test_several_optimizer_steps_equal_the_plain_loop_and_the_reference_also_when_killed_between_two(
    tmp_path: Path,
) -> None:
    """Four optimizer steps a batch, the learner is killed behind the first of the second batch. Of every step loss and
    gradient are those of the float64 reference, with a denominator that is not the current policy."""
    steps = 3
    config_file = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": steps},
        staleness={"max_lag": 0},
        algorithm={"correction": "tis", "eps_clip": 0.02, "loss_aggregation": "sample"},
        learner={"lr": 3e-3, "num_steps_per_rollout": 2, "ppo_epochs": 2},
        topology={"learner": "recording_learner.LearnerKilledBetweenSteps"},
    )
    logprobs = run_beside_the_plain_loop(config_file, tmp_path, steps)
    assert (tmp_path / "run" / "killed-between-steps").exists()
    config, trained, apart = load(config_file), trained_groups(tmp_path / "run"), []
    for step in range(1, steps + 1):
        rows, half = rows_of(trained[step], logprobs[step - 1]), config.rollout.rollout_batch_size // 2
        first = sum(len(row) for row in rows if row.group < half)
        with np.load(tmp_path / "run" / "steps" / f"{step}.npz") as seen:
            for number in range(4):
                order = np.argsort(seen[f"where_{number}"])
                current, gradient = seen[f"logprobs_{number}"][order], seen[f"gradient_{number}"][order]
                mine = [row for row in rows if (row.group >= half) == number % 2]
                start = (number % 2) * first
                assert seen[f"where_{number}"][order].tolist() == list(range(start, start + len(current)))
                before = np.array([value for row in mine for value in row.before])
                np.testing.assert_allclose(seen[f"before_{number}"][order], before, atol=1e-5)
                apart.append(float(np.abs(current - before).max()))
                lengths = np.cumsum([len(row) for row in mine])[:-1]
                mine = [
                    replace(row, logprobs=tuple(values.tolist()))
                    for row, values in zip(mine, np.split(current, lengths), strict=True)
                ]
                expected = Reference(mine, "ppo_clip", "recompute", config.algorithm).step(config, ["tis"])
                assert float(seen[f"loss_{number}"]) == pytest.approx(expected.loss, abs=2e-5)
                np.testing.assert_allclose(gradient, np.concatenate(expected.gradient), atol=2e-5)
        assert apart[-4] < 1e-5 and min(apart[-3:]) > 0.005
    clipped = [line["values"]["pg_clipfrac"] for line in metrics(tmp_path / "run") if "loss" in line["values"]]
    assert min(clipped) > 0.05


def rows_of(groups: list[Group], before: list[list[np.ndarray]]) -> list[Row]:
    """A batch for the reference; ``before``: the policy's log-probs before it, by group and sample."""
    return [
        Row(
            group=number,
            rollout=sample_of_group.index,
            reward=sample_of_group.reward,
            mask=tuple(bool(m) for m in unpack(sample_of_group.loss_mask, MASK)),
            versions=tuple(unpack(sample_of_group.versions, VERSIONS).tolist()),
            behaviour=tuple(unpack(sample_of_group.logprobs, LOGPROBS).tolist()),
            before=tuple(values.tolist()),
            logprobs=tuple(values.tolist()),
            reference=(),
            teacher=(),
            values=(),
            entropy=(),
        )
        for number, (group, of_group) in enumerate(zip(groups, before, strict=True))
        for sample_of_group, values in zip(group.samples, of_group, strict=True)
    ]
