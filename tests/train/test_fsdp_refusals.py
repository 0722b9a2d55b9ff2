"""What ``learner.train_backend = "fsdp"`` cannot do is said in one line: of configuration and model before the start, of the
weights when they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import write_config
from safetensors.torch import load_file, save_file
from train_support import make_checkpoint, make_config

from miles_async.cli.load import load
from miles_async.config.schema import ConfigError
from miles_async.models.any_causal import ANY_CAUSAL
from miles_async.models.support import ENGINE, ModelError, check_models
from miles_async.train.fsdp.bridge import FsdpBridge


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tensor_parallel_size", 2),
        ("pipeline_parallel_size", 2),
        ("context_parallel_size", 2),
        ("use_distributed_optimizer", True),
        ("megatron_args", {"moe_router_dtype": "fp32"}),
    ],
)
def test_a_key_of_megatrons_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    toml = write_config(tmp_path, learner={"train_backend": "fsdp", "num_ranks": 2})
    shown = json.dumps(value) if not isinstance(value, dict) else '{moe_router_dtype = "fp32"}'
    with pytest.raises(
        ConfigError, match=rf'learner\.{key}.* has no effect: it needs learner\.train_backend = "megatron"'
    ):
        load(toml, [f"learner.{key}={shown}"])


def test_of_the_ways_to_compute_activations_again_there_is_one(tmp_path: Path) -> None:
    toml = write_config(tmp_path, learner={"train_backend": "fsdp", "recompute_granularity": "full"})
    load(toml)
    with pytest.raises(ConfigError, match=r'recompute_granularity = "selective" needs .*with "fsdp" allowed: "full"'):
        load(toml, ["learner.recompute_granularity=selective"])


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"model_type": "qwen3_moe", "num_experts": 8}, "num_experts = 8, a mixture of experts"),
        ({"model_type": "no_such"}, "model_type 'no_such' (supported: what transformers has a causal"),
        ({"model_type": "gemma2", "quantization_config": {"bits": 4}}, "quantized"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused(tmp_path: Path, raw: dict[str, Any], said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 24} | raw))
    with pytest.raises(ConfigError) as caught:
        check_models(make_config(tmp_path), None, ANY_CAUSAL)
    line = str(caught.value)
    assert line.startswith("model.hf_checkpoint: the learner cannot compute") and said in line and "\n" not in line


def test_more_models_are_trained_than_the_embedded_engine_serves(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2", "vocab_size": 24}))
    check_models(make_config(tmp_path), None, ANY_CAUSAL)
    with pytest.raises(ConfigError, match="the embedded engine cannot compute"):
        check_models(make_config(tmp_path), ENGINE, ANY_CAUSAL)


def test_weights_that_are_missing_renamed_or_too_many_are_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)

    def refused(tensors: dict[str, torch.Tensor], said: str) -> None:
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(ModelError) as caught:
            FsdpBridge(str(tmp_path), torch.float32, rank=0).model()
        assert said in str(caught.value) and "\n" not in str(caught.value)

    without = {name: tensor for name, tensor in whole.items() if name != "model.norm.weight"}
    refused(without, "its files have no model.norm.weight")
    refused({name.removeprefix("model."): tensor for name, tensor in whole.items()}, "its files have no model.")
    refused(whole | {"model.extra.weight": torch.zeros(2)}, "model.extra.weight (1 such) is no part of")
    refused(whole | {"model.norm.weight": torch.zeros(3)}, "cannot load")
