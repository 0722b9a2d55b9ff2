"""Fields of Megatron's configurations reach Megatron, or are refused by name, type and reason before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from train_support import make_checkpoint, make_groups, trainers

from miles_async.config.schema import ConfigError
from miles_async.train.megatron_args import megatron_args


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            {"decoupled_weight_decai": False},
            r'decoupled_weight_decai: no field .* did you mean "decoupled_weight_decay"',
        ),
        ({"decoupled_weight_decay": "no"}, r'decoupled_weight_decay = "no": expected `bool`, got `str`'),
        ({"mlp_chunks_for_prefill": 1.5}, "mlp_chunks_for_prefill = 1.5: expected `int"),
        ({"moe_router_topk": 2}, "moe_router_topk is the model's: its config.json says it"),
        ({"moe_input_jitter_eps": 0.1}, "cannot be changed: tokens go to the experts that the engine chooses"),
        ({"tensor_model_parallel_size": 2}, "tensor_model_parallel_size is said by learner.tensor_parallel_size"),
        ({"hidden_size": 8}, "hidden_size is the model's: its config.json says it"),
        ({"hidden_dropout": 0.1}, "hidden_dropout cannot be changed: the two passes over a batch have to be the same"),
        ({"fp8": "hybrid"}, 'fp8 = "hybrid" needs a CUDA device'),
        ({"exp_avg_dtype": "float32"}, "exp_avg_dtype"),
    ],
)
def test_a_field_that_cannot_be_given_is_one_line(args: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as found:
        megatron_args(args)
    assert "\n" not in str(found.value) and "learner.megatron_args." in str(found.value)


def test_a_field_reaches_the_configuration_that_has_it() -> None:
    given = {"decoupled_weight_decay": False, "bucket_size": 4096, "memory_efficient_layer_norm": False}
    found = megatron_args(given)
    assert found.optimizer == {"decoupled_weight_decay": False} and found.ddp == {"bucket_size": 4096}
    assert found.transformer == {"memory_efficient_layer_norm": False}


def test_a_model_is_trained_as_the_fields_say(tmp_path: Path) -> None:
    """Adam with its decay in the gradient comes to other weights than with its own decay."""
    make_checkpoint(tmp_path / "model")
    weights: dict[str, dict[str, torch.Tensor]] = {}
    with trainers(tmp_path) as build:
        for name, args in {
            "adam": {},
            "coupled": {"decoupled_weight_decay": False},
        }.items():
            learner = {"weight_decay": 0.3, "clip_grad": 0.0, "megatron_args": args}
            trainer = build(tmp_path / "model", learner=learner)
            trainer.step(make_groups(4, 4))
            weights[name] = trainer.export()
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(weights["adam"][name], weights["coupled"][name])
