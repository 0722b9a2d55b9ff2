"""What a Hugging Face directory says about a Qwen3, Qwen2, Llama or Qwen3-MoE model, and its tensors.

Promises: reads ``config.json`` and safetensors without importing transformers; a checkpoint whose computation this
engine would get wrong (another architecture, sliding windows, unknown RoPE scaling) is refused with one line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open

from miles_async.models.hf_config import completed, rope, rope_theta
from miles_async.models.mixtures import MIXTURES, expert_size, experts_of, normalizes
from miles_async.models.support import ENGINE, SERVED, ModelError, check_model


class ModelFilesError(ValueError):
    """The directory is not a checkpoint that this engine can serve."""


class RopeConfig(msgspec.Struct, frozen=True):
    """Rotary position embedding. ``kind`` is default, linear or llama3; the rest is read where the kind needs it."""

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


class MixtureConfig(msgspec.Struct, frozen=True):
    """The experts of a layer: how many, of how many hidden units, how many of them a token goes to, and whether the weights of
    those add up to 1."""

    experts: int
    expert_size: int
    top_k: int
    normalizes: bool


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of a decoder, independent of how its ``config.json`` spelled it. mixture: None where its layers are dense."""

    model_type: str
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    qk_norm: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    max_positions: int
    dtype: str
    mixture: MixtureConfig | None = None


def read_config(path: str | Path) -> ModelConfig:
    """The model of a Hugging Face directory. Raises ModelFilesError naming the file or the value that does not fit."""
    try:
        raw = completed(check_model(path, ENGINE))
    except ModelError as error:
        raise ModelFilesError(str(error)) from None
    model_type = str(raw["model_type"])
    attention_bias = bool(raw.get("attention_bias", False))
    return ModelConfig(
        model_type=model_type,
        architecture=SERVED[model_type],
        vocab_size=int(raw["vocab_size"]),
        hidden_size=int(raw["hidden_size"]),
        intermediate_size=int(raw["intermediate_size"]),
        num_layers=int(raw["num_hidden_layers"]),
        num_heads=int(raw["num_attention_heads"]),
        num_kv_heads=int(raw["num_key_value_heads"]),
        head_dim=int(raw["head_dim"]),
        rms_norm_eps=float(raw["rms_norm_eps"]),
        rope=_read_rope(raw),
        tie_word_embeddings=bool(raw["tie_word_embeddings"]),
        qk_norm=model_type in ("qwen3", "qwen3_moe"),
        qkv_bias=model_type == "qwen2" or attention_bias,
        o_bias=model_type != "qwen2" and attention_bias,
        mlp_bias=bool(raw.get("mlp_bias", False)),
        max_positions=int(raw["max_position_embeddings"]),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        mixture=_read_mixture(raw),
    )


def _read_mixture(raw: dict[str, Any]) -> MixtureConfig | None:
    if raw["model_type"] not in MIXTURES:
        return None
    return MixtureConfig(experts_of(raw), expert_size(raw), int(raw["num_experts_per_tok"]), normalizes(raw))


def read_tensors(path: str | Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every (name, CPU tensor) of the directory's safetensors files. Raises ModelFilesError if there are none."""
    root = Path(path)
    if (root / "model.safetensors.index.json").exists():
        index = _read_json(root / "model.safetensors.index.json")
        files = [root / name for name in sorted(set(index["weight_map"].values()))]
    else:
        files = sorted(root.glob("*.safetensors"))
    if not files:
        raise ModelFilesError(f"{path}: no .safetensors file there")
    for file in files:
        try:
            with safe_open(file, framework="pt", device="cpu") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - a safetensors handle, not a dict
                    yield name, tensors.get_tensor(name)
        except (OSError, ValueError, RuntimeError) as error:
            raise ModelFilesError(f"{file}: cannot be read: {error}") from None
        except Exception as error:  # safetensors raises its own class, which derives from Exception only
            raise ModelFilesError(f"{file}: not a safetensors file: {error}") from None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except OSError as error:
        raise ModelFilesError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelFilesError(f"{file}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelFilesError(f"{file}: not a JSON object")
    return found


def _read_rope(raw: dict[str, Any]) -> RopeConfig:
    spec = rope(raw)
    kind = spec.get("rope_type") or spec.get("type") or "default"
    return RopeConfig(
        theta=rope_theta(raw),
        kind=kind,
        factor=float(spec.get("factor", 1.0)),
        low_freq_factor=float(spec.get("low_freq_factor", 1.0)),
        high_freq_factor=float(spec.get("high_freq_factor", 4.0)),
        original_max_positions=int(spec.get("original_max_position_embeddings", 8192)),
    )
