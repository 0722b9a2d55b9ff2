"""Sizes that do not come out even are refused with the arithmetic; the place of a rank is Megatron's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from train_support import make_config

from miles_async.config.layout import Layout, check, layout_of, replicas
from miles_async.config.schema import ConfigError, Learner
from miles_async.models.layout_fit import check_layout, problem

SIZES = st.sampled_from((1, 2, 3, 4))
SHAPE = {
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 12,
    "vocab_size": 96,
    "intermediate_size": 24,
}


@given(tensor=SIZES, context=SIZES, pipeline=SIZES, data=SIZES)
def test_the_processes_of_a_replica_have_one_share_and_the_replicas_all_shares(
    tensor: int, context: int, pipeline: int, data: int
) -> None:
    layout = Layout(tensor=tensor, context=context, pipeline=pipeline)
    ranks = layout.model * data
    assert layout.replicas(ranks) == data
    # Megatron's order "tp-cp-ep-dp-pp": the fastest first
    expected = [d for _ in range(pipeline) for d in range(data) for _ in range(context * tensor)]
    assert [layout.replica(rank, ranks) for rank in range(ranks)] == expected


def test_sequence_parallelism_is_on_where_layers_are_split_unless_it_is_said() -> None:
    assert layout_of(Learner(num_ranks=2, tensor_parallel_size=2)).sequence
    assert not layout_of(Learner(num_ranks=2, tensor_parallel_size=2, sequence_parallel=False)).sequence
    assert not layout_of(Learner()).sequence
    assert replicas(Learner(num_ranks=8, tensor_parallel_size=2, pipeline_parallel_size=2)) == 2


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"num_ranks": 6, "tensor_parallel_size": 4}, "num_ranks = 6 must be a multiple of .* = 4 [*] 1 [*] 1 = 4"),
        (
            {"num_ranks": 4, "pipeline_parallel_size": 2, "expert_parallel_size": 4},
            "num_ranks = 4 must be a multiple of .*expert_parallel_size.* = 4 [*] 1 [*] 2 = 8",
        ),
        ({"tensor_parallel_size": 4, "expert_tensor_parallel_size": 2, "num_ranks": 4}, "size = 2 must be 1 or .* = 4"),
        ({"virtual_pipeline_size": 2}, "virtual_pipeline_size = 2 needs learner.pipeline_parallel_size above 1"),
        ({"sequence_parallel": True}, "sequence_parallel = true needs learner.tensor_parallel_size above 1"),
    ],
)
def test_sizes_that_do_not_come_out_even_are_one_line(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as found:
        check(Learner(**keys))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("layout", "shape", "words"),
    [
        (Layout(tensor=3), {}, "tensor_parallel_size = 3 must divide the 8 attention heads"),
        (Layout(tensor=4), {"num_key_value_heads": 6}, "must divide the 6 key-value heads, or be a multiple of them"),
        (Layout(tensor=2), {"vocab_size": 97}, "must divide the vocabulary of 97 tokens"),
        (Layout(tensor=8), {"intermediate_size": 20}, "must divide the intermediate size of 20"),
        (Layout(pipeline=2, virtual=4), {}, "= 2 [*] 4 = 8 must divide the 12 layers"),
        (Layout(expert=2), {}, "expert_parallel_size = 2 needs a mixture of experts"),
        (Layout(expert=3), {"num_experts": 8}, "expert_parallel_size = 3 must divide the 8 experts"),
        (Layout(tensor=2), {"num_experts": 8}, "sequence_parallel = false .* not for a mixture of experts"),
        (
            Layout(tensor=4, expert_tensor=4, sequence=True),
            {"num_experts": 8, "moe_intermediate_size": 6},
            "expert_tensor_parallel_size = 4 must divide an expert's size of 6",
        ),
    ],
)
def test_what_of_a_model_does_not_divide_is_named(layout: Layout, shape: dict[str, Any], words: str) -> None:

    assert re.search(words, problem({**SHAPE, **shape}, layout))
    assert problem(SHAPE, Layout(tensor=4, pipeline=2, virtual=3)) == ""


@pytest.mark.parametrize(
    ("model_type", "keys", "words"),
    [
        ("qwen3", {"moe_aux_loss_coeff": 0.1}, r"moe_aux_loss_coeff = 0\.1 has an effect on a mixture .* dense model"),
        ("qwen3", {"recompute_modules": ["moe"]}, 'recompute_modules with "moe" has an effect on a mixture'),
        ("qwen3_moe", {"recompute_modules": ["shared_experts"]}, "has an effect on glm4_moe and deepseek_v3 only"),
        ("qwen3_moe", {"moe_router_bias_update_rate": 0.1}, "has an effect on glm4_moe and deepseek_v3 only"),
        (
            "qwen3_moe",
            {"num_ranks": 4, "tensor_parallel_size": 2, "expert_parallel_size": 2},
            "expert_tensor_parallel_size = 2 with expert_parallel_size = 2 needs a CUDA device",
        ),
    ],
)
def test_what_has_no_effect_on_the_model_or_no_means_here_is_one_line(
    model_type: str, keys: dict[str, Any], words: str, tmp_path: Path
) -> None:
    experts = {"num_experts": 4, "moe_intermediate_size": 8} if model_type == "qwen3_moe" else {}
    (tmp_path / "config.json").write_text(json.dumps({**SHAPE, "model_type": model_type, **experts}))
    with pytest.raises(ConfigError, match=words) as found:
        check_layout(make_config(tmp_path, learner=keys))
    assert "\n" not in str(found.value)
    check_layout(make_config(tmp_path))
