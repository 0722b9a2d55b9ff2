"""Which models a run can train and serve, told from ``config.json`` alone. docs/models.md has the table.

Promises: the learner's bridge, the embedded engine and the launch ask the same functions, so that a launch refuses what one of
them would refuse later, with one line; importing this costs no torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from miles_async.config.schema import ConfigError, RunConfig
from miles_async.models import builtin
from miles_async.models.device import check_device
from miles_async.models.hf_config import completed, defaults, named, rope, rotary_share
from miles_async.models.mixtures import MIXTURES, mixture_problems

# by model_type: dense ones
ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM", "llama": "LlamaForCausalLM"}
# by model_type: what the embedded engine serves
SERVED = {**ARCHITECTURES, "qwen3_moe": "Qwen3MoeForCausalLM"}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


_ROPES = {"deepseek_v3": ("default", "yarn")}  # by model_type, in the place of a part's
_KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


class ModelJudge(Protocol):
    """What one part of a run, ``name``, can compute."""

    @property
    def name(self) -> str: ...

    def problems(self, raw: dict[str, Any]) -> list[str]:
        """Why it cannot compute the model of a config.json as transformers does; empty: it can."""
        ...


@dataclass(frozen=True)
class ComputingPart:
    """What one part of a run computes as transformers does."""

    name: str
    models: tuple[str, ...]  # by model_type
    ropes: tuple[str, ...]
    biases: bool  # of attention_bias and mlp_bias; the biases of a qwen2 are its own

    def problems(self, raw: dict[str, Any]) -> list[str]:
        return problems(raw, self)


_SCALED = ("default", "linear", "llama3")
LEARNER = ComputingPart("the learner", (*ARCHITECTURES, *MIXTURES), _SCALED, biases=False)
ENGINE = ComputingPart("the embedded engine", (*SERVED,), _SCALED, biases=True)


class ModelError(ValueError):
    """A checkpoint that a part of the run cannot compute: what it has, and what is supported."""


def read_config_json(directory: str | Path) -> dict[str, Any]:
    """The model's configuration as it was written. Raises ModelError."""
    file = Path(directory) / "config.json"
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{file}: cannot be read: no Hugging Face model directory, it has no config.json") from None
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ModelError(f"{file}: not a JSON object")
    return found


def problems(raw: dict[str, Any], part: ComputingPart) -> list[str]:
    """What ``part`` would compute differently from transformers; empty: nothing."""
    if (model_type := raw.get("model_type")) not in part.models:
        return [f"model_type {model_type!r} (supported: {', '.join(sorted(part.models))})"]
    found, raw = [], named(raw)
    if missing := [name for name in SIZES if not isinstance(raw.get(name), int)]:
        found.append(f"config.json has no {' and no '.join(missing)}")
    found += [
        f"{name} {raw[name]!r} (supported: {_KINDS[type(default)]})"
        for name, default in defaults(model_type).items()
        if type(default) in _KINDS and raw.get(name) is not None and not _is(raw[name], default)
    ]
    if raw.get("hidden_act", "silu") != "silu":
        found.append(f"hidden_act {raw['hidden_act']!r} (supported: silu)")
    if raw.get("use_sliding_window") or any(kind != "full_attention" for kind in raw.get("layer_types") or ()):
        found.append("sliding-window attention (supported: full attention)")
    scaling, ropes = rope(raw), _ROPES.get(model_type, part.ropes)
    if (kind := scaling.get("rope_type") or scaling.get("type") or "default") not in ropes:
        found.append(f"rope_type {kind!r} (supported: {', '.join(ropes)})")
    if model_type != "glm4_moe" and rotary_share(raw) != 1.0:
        found.append("a partial_rotary_factor other than 1")
    if model_type != "glm4_moe" and not part.biases and (raw.get("attention_bias") or raw.get("mlp_bias")):
        found.append("attention_bias or mlp_bias = true")
    if raw.get("quantization_config"):
        found.append("quantization_config: its weights are quantized")
    return found or mixture_problems(completed(raw))


def _is(value: Any, default: Any) -> bool:
    """Whether it is of the kind of ``default``; a number that has no fraction may be written without one."""
    kinds = (int, float) if isinstance(default, float) else (type(default),)
    return isinstance(value, kinds) and isinstance(value, bool) == isinstance(default, bool)


def check_model(directory: str | Path, part: ModelJudge) -> dict[str, Any]:
    """``config.json`` of a model that ``part`` can compute. Raises ModelError."""
    raw = read_config_json(directory)
    if found := part.problems(raw):
        raise ModelError(f"{part.name} cannot compute {directory}: {'; '.join(found)}")
    return raw


def check_models(config: RunConfig, engines: ModelJudge | None, learner: ModelJudge = LEARNER) -> None:
    """Refuse a model that this run's learner or engines cannot compute, and a device that is not there.

    Raises ConfigError naming the key. A learner with a bridge of the user's (``model.model_provider``) and engines of which
    nothing is known here (None: SGLang's servers) know more models; they are asked when they start.
    """
    given = {
        "model.hf_checkpoint": config.model.hf_checkpoint,
        "algorithm.ref_load": config.algorithm.ref_load,
        "critic.critic_load": config.critic.critic_load,
    }
    for key, directory in given.items():
        if directory is None or builtin.is_builtin(directory):
            continue
        parts: list[ModelJudge] = [] if config.model.model_provider else [learner]
        if key == "model.hf_checkpoint" and engines is not None:
            parts.append(engines)
        for part in parts:
            try:
                check_model(directory, part)
            except ModelError as error:
                raise ConfigError(f"{key}: {error}") from None
    check_device(config)
