"""The embedded engine's passes on another device than the CPU mix the two in no operation. The device is torch's ``meta``,
whose tensors have no data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from miles_async.engines.embedded.cache import KVCache
from miles_async.engines.embedded.checkpoint import ModelConfig, read_config
from miles_async.engines.embedded.model import Decoder
from miles_async.engines.embedded.prompts import Prompts
from miles_async.models.builtin import shape_of

META = torch.device("meta")
MIXTURE = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def ints(*size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.int64, device=META)


def config_of(directory: Path, **more: object) -> ModelConfig:
    (directory / "config.json").write_text(json.dumps({**shape_of("builtin:digits"), **more}))
    return read_config(directory)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("want_hidden", [False, True])
def test_tokens_and_prompts_go_through_the_model_on_one_device(
    tmp_path: Path, dtype: torch.dtype, want_hidden: bool
) -> None:
    passes(config_of(tmp_path), dtype, want_hidden)


def test_so_they_do_through_a_mixture_of_experts(tmp_path: Path) -> None:
    config = config_of(tmp_path, **MIXTURE)
    routes = passes(
        config, torch.bfloat16, want_hidden=True
    ).routes()  # torch's grouped product takes no other type here
    assert routes.device == META and routes.shape == (6, config.num_layers, 2)


def passes(config: ModelConfig, dtype: torch.dtype, want_hidden: bool) -> Decoder:
    """A model after a pass with prompts and one without."""
    model = Decoder(config, dtype=dtype, device=META)
    cache = KVCache(
        config.num_layers, config.num_kv_heads, config.head_dim, dtype=dtype, device=META, max_tokens=1 << 12
    )
    cache.reserve(6, 32, 0)
    with torch.inference_mode():
        prompts = Prompts(2, ints(4), 8, want_hidden)
        logits, hidden = model.forward(ints(2 + 2 * 8), ints(2 + 2 * 8), cache, 2, 16, prompts)
        assert logits.device == META and logits.shape == (2, config.vocab_size)
        assert (hidden is not None) == want_hidden and (hidden is None or hidden.device == META)
        cache.move(ints(1), ints(1), 16)
        logits, _ = model.forward(ints(6), ints(6), cache, 6, 32)
        assert logits.device == META and logits.dtype == torch.float32
    return model
