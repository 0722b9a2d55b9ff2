"""Shared by the learner's tests: tiny Hugging Face checkpoints, random groups, configurations."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack
from bus.messages import Group, Sample
from miles_async.config.schema import (
    Algorithm,
    Checkpoint,
    Critic,
    Data,
    Learner,
    Model,
    Record,
    Rollout,
    RunConfig,
    Staleness,
)
from miles_async.train.ranks import alone

torch.set_num_threads(1)

VOCAB = 24
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": None,  # transformers gives a padding token no gradient, even where it is an ordinary input
}


def make_checkpoint(directory: Path, model_type: str = "qwen3", *, tied: bool = True, **extra: Any) -> Any:
    """Write a random model of the architecture to ``directory``; returns the transformers model, in float32."""
    from transformers import AutoConfig, AutoModelForCausalLM

    generator = torch.Generator().manual_seed(0)
    shape = {**SHAPE, "tie_word_embeddings": tied, **extra}
    if model_type in ("qwen3", "qwen3_moe"):
        shape.setdefault("head_dim", 16)  # not hidden_size / heads, so that a mix-up shows
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **shape), dtype=torch.float32).eval()
    with torch.no_grad():
        biases = [(name, buffer) for name, buffer in model.named_buffers() if name.endswith("bias")]  # of routers
        for name, parameter in [*model.named_parameters(), *biases]:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.15 * noise)
    model.save_pretrained(directory)
    return model


def make_groups(
    count: int = 4,
    samples: int = 4,
    *,
    seed: int = 0,
    version: int = 0,
    mask_share: float = 0.2,
    policy: Any = None,
) -> list[Group]:
    """Random groups: prompts of 2 to 5 tokens, responses of 1 to 9; some tokens masked out; versions ``version``.

    policy: a transformers model whose log-probs, plus noise, become the behaviour log-probs (None: plain noise).
    """
    rng = np.random.default_rng(seed)
    groups = []
    for g in range(count):
        prompt = rng.integers(0, VOCAB, int(rng.integers(2, 6)))
        made = []
        for i in range(samples):
            n = int(rng.integers(1, 10))
            tokens = rng.integers(0, VOCAB, n)
            base = hf_log_probs(policy, np.concatenate([prompt, tokens]))[-n:] if policy is not None else -3.0
            made.append(
                Sample(
                    index=i,
                    tokens=pack(tokens, TOKENS),
                    logprobs=pack(base + 0.2 * rng.normal(size=n), LOGPROBS),
                    loss_mask=pack(rng.random(n) >= mask_share, MASK),
                    versions=pack(np.full(n, version), VERSIONS),
                    reward=float(rng.integers(0, 3)) / 2,
                    finish_reason="stop",
                )
            )
        groups.append(
            Group(
                group_id=f"0-{g}-0",
                prompt_tokens=pack(prompt, TOKENS),
                samples=tuple(made),
                worker="w0",
                started=0.0,
                finished=1.0,
            )
        )
    return groups


def hf_log_probs(model: Any, tokens: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Log-prob of each token but the first under a transformers model, one sequence alone. [L - 1]."""
    ids = torch.from_numpy(np.asarray(tokens).astype(np.int64))[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1].float() / temperature
    return logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0].numpy()


def make_config(path: Path | str, **sections: dict[str, Any]) -> RunConfig:
    """A configuration for learner tests: lag unbounded, eps_adam large so that Adam is smooth where gradients vanish."""
    learner = {"lr": 2e-3, "adam_eps": 1e-4, **sections.get("learner", {})}
    return RunConfig(
        model=Model(**{"hf_checkpoint": str(path), "device": "cpu", **sections.get("model", {})}),
        data=Data(prompt_data="builtin:test"),
        learner=Learner(**learner),
        algorithm=Algorithm(**sections.get("algorithm", {})),
        critic=Critic(**sections.get("critic", {})),
        staleness=Staleness(**{"max_lag": 1000, **sections.get("staleness", {})}),
        checkpoint=Checkpoint(**sections.get("checkpoint", {})),
        rollout=Rollout(**sections.get("rollout", {})),
        record=Record(**sections.get("record", {})),
    )


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def assert_close(ours: dict[str, torch.Tensor], expected: Any, atol: float) -> None:
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, expected[name], atol=atol, rtol=0, msg=lambda t, name=name: f"{name}: {t}")


Build = Callable[..., Any]


@contextlib.contextmanager
def trainers(directory: Path, kind: Callable[..., Any] | None = None) -> Iterator[Build]:
    """Builds trainers, Megatron's or of ``kind``, from a checkpoint and sections; each closes the one before it, as a process
    holds one at a time."""
    from miles_async.train.trainer import MegatronTrainer

    last: list[Any] = []

    def make(path: Path, **sections: Any) -> Any:
        close()
        meeting = directory / f"meeting-{len(list(directory.iterdir()))}"
        config = make_config(path, **sections)
        last.append((kind or MegatronTrainer)(config, str(path), alone(f"file://{meeting}")))
        return last[0]

    def close() -> None:
        while last:
            last.pop().close()

    yield make
    close()
