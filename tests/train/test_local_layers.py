"""The local layers, which compute neither padding nor what no output depends on, give what Megatron's own do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from train_support import Build, make_checkpoint, make_groups


def megatrons_own(config: Any, _: int | None = None) -> Any:
    """Its specification of a layer, with our core attention: its own has the scores of all pairs in memory, and other bits."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    from miles_async.train.attention import CausalAttention

    spec: Any = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization=config.normalization)
    spec.submodules.self_attention.submodules.core_attention = CausalAttention
    return spec


KINDS = [("qwen3", False), ("qwen3", True), ("qwen2", False), ("llama", False)]
# of metrics, relative, and of weights after three steps, on average; of numbers of 8 bits Adam takes some signs the other way
CLOSE = {"float32": (1e-4, 2e-6), "bfloat16": (5e-2, 2e-3)}


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize(("model_type", "tied"), KINDS)
def test_three_steps_equal_those_of_megatrons_own_layers(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, tied: bool, dtype: str
):
    path = tmp_path / "model"
    make_checkpoint(path, model_type, tied=tied, rope_theta=500.0)

    def trained() -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
        trainer = build(path, model={"dtype": dtype}, staleness={"max_lag": 9})
        metrics = [trainer.step(make_groups(24, seed=seed)) for seed in range(3)]
        return metrics, trainer.export()

    metrics, weights = trained()
    monkeypatch.setattr("miles_async.train.local_layers.local_block_spec", megatrons_own)
    expected, theirs = trained()
    of_metrics, of_weights = CLOSE[dtype]
    for ours, others in zip(metrics, expected, strict=True):
        assert ours == pytest.approx(others, rel=of_metrics, abs=of_metrics / 10)
    assert weights.keys() == theirs.keys()
    for name, tensor in weights.items():
        assert (tensor - theirs[name]).abs().mean() < of_weights
