"""The Megatron learner on one rank computes transformers' numbers and plain PyTorch's steps, or refuses the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from train_support import Build, assert_equal, hf_log_probs, make_checkpoint, make_groups

from bus.codec import LOGPROBS, MASK, TOKENS, unpack
from bus.messages import Group
from miles_async.train.bridge import ModelError


@pytest.mark.parametrize(
    ("model_type", "tied"), [("qwen3", True), ("qwen3", False), ("qwen2", False), ("qwen2", True), ("llama", False)]
)
def test_log_probs_and_export_are_those_of_transformers(build: Build, tmp_path: Path, model_type: str, tied: bool):
    path = tmp_path / "model"
    model = make_checkpoint(path, model_type, tied=tied, rope_theta=500.0)
    trainer = build(path)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 24, n) for n in (7, 2, 20, 1, 12)]
    for temperature in (1.0, 0.7):
        for ours, tokens in zip(trainer.log_probs(sequences, temperature), sequences, strict=True):
            assert np.abs(ours - hf_log_probs(model, tokens, temperature)).max(initial=0.0) < 1e-5
    assert_equal(trainer.export(), load_file(path / "model.safetensors"))


def reference_step(
    model: Any, optimizer: torch.optim.Optimizer, groups: list[Group], algorithm: Any
) -> tuple[float, float]:
    """GRPO on a transformers model in plain PyTorch, one sequence at a time. Returns the loss and the gradient's norm."""
    n_samples = sum(len(group.samples) for group in groups)
    # as in Miles, a sample without a trained token counts as one in the denominator
    n_tokens = sum(max(int(unpack(s.loss_mask, MASK).sum()), 1) for group in groups for s in group.samples)
    high = algorithm.eps_clip_high or algorithm.eps_clip
    total = torch.zeros(())
    for group in groups:
        rewards = torch.tensor([sample.reward for sample in group.samples], dtype=torch.float64)
        deviation = rewards.std()
        centred = rewards - rewards.mean()
        advantages = centred / (deviation + 1e-6) if deviation > 0 else centred
        for sample, advantage in zip(group.samples, advantages.float(), strict=True):
            prompt, response = unpack(group.prompt_tokens, TOKENS), unpack(sample.tokens, TOKENS)
            ids = torch.tensor([*prompt, *response], dtype=torch.int64)[None]
            logp = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            entropy = -(logp.exp() * logp).sum(-1)
            logp = logp.gather(-1, ids[0, len(prompt) :, None])[:, 0]
            behaviour = torch.from_numpy(unpack(sample.logprobs, LOGPROBS).copy())
            if algorithm.correction is None:
                ratio, correction = (logp - behaviour).exp(), torch.ones(())
            else:
                ratio = (logp - logp.detach()).exp()
                correction = (logp.detach() - behaviour).exp().clamp(algorithm.tis_clip_low, algorithm.tis_clip)
            clipped = ratio.clamp(1 - algorithm.eps_clip, 1 + high)
            loss = torch.maximum(-ratio * advantage, -clipped * advantage) * correction
            loss = loss - algorithm.entropy_coef * entropy
            mask = torch.from_numpy(unpack(sample.loss_mask, MASK).astype(np.float32))
            if algorithm.loss_aggregation == "token":
                total = total + (loss * mask).sum() / n_tokens
            else:
                total = total + (loss * mask).sum() / mask.sum().clamp_min(1) / n_samples
    optimizer.zero_grad()
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return total.item(), norm.item()


@pytest.mark.parametrize(
    "algorithm",
    [
        {"entropy_coef": 0.01, "eps_clip_high": 0.28},
        {"loss_aggregation": "sample"},
        {"correction": "tis", "tis_clip": 1.1, "tis_clip_low": 0.8},
    ],
)
def test_steps_equal_those_of_plain_pytorch_and_adamw(build: Build, tmp_path: Path, algorithm: dict[str, Any]):
    model = make_checkpoint(tmp_path / "model")
    learner = {"weight_decay": 0.1, "lr_warmup_steps": 2, "max_tokens_per_micro_batch": 40}
    trainer = build(tmp_path / "model", algorithm=algorithm, learner=learner)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        eps=1e-4,
    )
    for step in range(3):
        groups = make_groups(4, 4, seed=step, policy=model)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 2)
        expected = reference_step(model, optimizer, groups, trainer.config.algorithm)
        metrics = trainer.step(groups)
        assert (metrics["loss"], metrics["grad_norm"]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert trainer.version == 3
    state = model.state_dict()
    for name, tensor in trainer.export().items():
        torch.testing.assert_close(
            tensor, state[name], atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    ("extra", "problem"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0, "factor": 2.0}}, "rope_type 'yarn'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ],
)
def test_a_model_it_would_compute_differently_is_refused(build: Build, tmp_path: Path, extra, problem: str):
    import json

    make_checkpoint(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, **extra}))
    with pytest.raises(ModelError, match=problem):
        build(tmp_path / "model")
    with pytest.raises(ModelError, match=r"no config\.json"):
        build(tmp_path)
