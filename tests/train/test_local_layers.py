"""The local layers compute what Megatron's own do, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from train_support import Build, assert_equal, make_checkpoint, make_groups


def megatrons_own(config: Any, _: int | None = None) -> Any:
    """Its specification of a layer, with our core attention: its own has the scores of all pairs in memory, and other bits."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec

    from miles_async.train.attention import CausalAttention

    spec: Any = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization=config.normalization)
    spec.submodules.self_attention.submodules.core_attention = CausalAttention
    return spec


@pytest.mark.parametrize(("model_type", "dtype"), [("qwen3", "float32"), ("qwen2", "float32"), ("llama", "bfloat16")])
def test_three_steps_give_the_bits_of_megatrons_own_layers(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, dtype: str
):
    path = tmp_path / "model"
    make_checkpoint(path, model_type, tied=False, rope_theta=500.0)

    def trained() -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
        trainer = build(path, model={"dtype": dtype}, staleness={"max_lag": 9})
        metrics = [trainer.step(make_groups(6, seed=seed)) for seed in range(3)]
        return metrics, trainer.export()

    metrics, weights = trained()
    monkeypatch.setattr("miles_async.train.local_layers.local_block_spec", megatrons_own)
    expected, theirs = trained()
    assert metrics == expected
    assert_equal(weights, theirs)
