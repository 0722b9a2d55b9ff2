"""A model's ``config.json`` with what transformers takes for a key that is not there, without importing transformers, which
takes longer than torch.

Promises: for the models of ``support.ARCHITECTURES`` every value that a computation depends on is that of transformers' own
configuration class (tests/models/test_hf_config.py).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

_DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "num_key_value_heads": 32,
}
_OF_TYPE: dict[str, dict[str, Any]] = {  # by model_type
    "qwen3": {"head_dim": 128, "attention_bias": False},
    "llama": {"max_position_embeddings": 2048, "num_key_value_heads": None, "attention_bias": False, "mlp_bias": False},
}
_ROPE_THETA = 10000.0


def rope(raw: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 writes ``rope_parameters``, transformers 4 wrote ``rope_theta`` and ``rope_scaling``."""
    return {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}


def rope_theta(raw: dict[str, Any]) -> float:
    """The base of its rotary frequencies."""
    return float(rope(raw).get("rope_theta") or raw.get("rope_theta") or _ROPE_THETA)


def defaults(model_type: str) -> dict[str, Any]:
    """What a key that is not there has. None: as many as there are heads."""
    return _DEFAULTS | _OF_TYPE.get(model_type, {})


def completed(raw: dict[str, Any]) -> dict[str, Any]:
    """``raw``, of a model that support.py has no objection to, and what its keys have that are not there, or null."""
    found = raw | {name: value for name, value in defaults(raw["model_type"]).items() if raw.get(name) is None}
    heads = raw["num_attention_heads"]
    if found["num_key_value_heads"] is None or raw.get("num_key_value_heads", heads) is None:
        found["num_key_value_heads"] = heads
    found["head_dim"] = found.get("head_dim") or raw["hidden_size"] // heads
    return found


class HfConfig(SimpleNamespace):
    """The keys as attributes, ``rope_theta`` among them, wherever it was written."""

    def __init__(self, raw: dict[str, Any]) -> None:
        super().__init__(**completed(raw) | {"rope_theta": rope_theta(raw)})
