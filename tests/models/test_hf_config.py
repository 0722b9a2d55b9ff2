"""What a ``config.json`` means is what transformers takes it to mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from miles_async.models.hf_config import HfConfig
from miles_async.models.mixtures import MIXTURES, experts_of
from miles_async.models.support import LEARNER, ModelError, check_model

SIZES = {
    "vocab_size": 24,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}
SAME = (
    *SIZES,
    "model_type",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "attention_dropout",
    "tie_word_embeddings",
)
OF_MIXTURE = ("num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "decoder_sparse_step")
WRITTEN: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 2, "head_dim": 20},
    {"num_key_value_heads": None},
    {"rms_norm_eps": 1e-5, "max_position_embeddings": 99, "tie_word_embeddings": True, "initializer_range": 0.1},
    {"rope_theta": 5e5},
    {"rope_theta": 5e5, "rope_scaling": None},
    {"rope_theta": 5e5, "rope_scaling": {"rope_type": "default"}},
    {"rope_theta": 2.0, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
    {"rope_parameters": {"rope_type": "default"}},
    {"architectures": ["X"], "eos_token_id": None},
]


def cases() -> list[tuple[str, dict[str, Any]]]:
    strict = {"qwen3_moe", "mixtral", "glm4_moe"}  # of which transformers takes no null for a number
    return [(name, one) for name in LEARNER.models for one in WRITTEN if name not in strict or None not in one.values()]


@pytest.mark.parametrize(("model_type", "written"), cases())
def test_every_value_is_that_of_transformers(model_type: str, written: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoConfig

    raw = {"model_type": model_type, **SIZES, **written}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    theirs, ours = AutoConfig.from_pretrained(tmp_path), HfConfig(raw)
    assert {name: getattr(ours, name) for name in SAME} == {name: getattr(theirs, name) for name in SAME}
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 64 // 4)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert getattr(ours, "architectures", None) == theirs.architectures
    if model_type in MIXTURES:
        present = [name for name in OF_MIXTURE if hasattr(theirs, name)]
        assert {name: getattr(ours, name) for name in present} == {name: getattr(theirs, name) for name in present}
        assert experts_of(vars(ours)) == theirs.num_local_experts


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"rms_norm_eps": "x"}, r"rms_norm_eps 'x' \(supported: a number\)"),
        ({"max_position_embeddings": 2.5}, r"max_position_embeddings 2.5 \(supported: a whole number\)"),
        ({"tie_word_embeddings": 1}, r"tie_word_embeddings 1 \(supported: true or false\)"),
        ({"num_key_value_heads": True}, r"num_key_value_heads True \(supported: a whole number\)"),
    ],
)
def test_a_value_of_another_kind_is_refused(written: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", **SIZES, **written}))
    with pytest.raises(ModelError, match=said):
        check_model(tmp_path, LEARNER)
