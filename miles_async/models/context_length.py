"""How many tokens a sequence of a run may have, and what does not fit into that.

Promises: what could never be generated (a response as long as the model's whole context, a context that the model does not
have) is refused before anything starts, with the key, its value and the model's limit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miles_async.config.schema import ConfigError, RunConfig
from miles_async.models import builtin

DEFAULT_TOKENS = 128  # what an engine samples where a request has no max_new_tokens


def context_length(config: RunConfig, directory: str | Path | None = None) -> int | None:
    """Tokens of prompt and response together, at most; None: the checkpoint does not say.

    directory: where the model's files are; None: where ``model.hf_checkpoint`` says.
    """
    model = _model_length(config, directory)
    ours = config.engine.context_length
    return model if ours is None else ours if model is None else min(model, ours)


def check_lengths(config: RunConfig) -> None:
    """Refuse responses that leave no room for a prompt, and a context that the model does not have. Raises ConfigError."""
    model, ours, limit = _model_length(config, None), config.engine.context_length, context_length(config)
    if model is not None and ours is not None and ours > model:
        raise ConfigError(f"engine.context_length = {ours}: the model has a context of {model} tokens")
    if limit is None:
        return
    whose = f"engine.context_length = {limit}" if limit == ours else f"the model's context of {limit} tokens"
    section = config.eval
    for key, tokens in (
        ("rollout.rollout_max_response_len", config.rollout.rollout_max_response_len),
        ("eval.eval_max_response_len", section.eval_max_response_len),
        *((f"eval.datasets.{name}.max_response_len", data.max_response_len) for name, data in section.datasets.items()),
    ):
        if tokens is not None and tokens >= limit:
            raise ConfigError(f"{key} = {tokens} leaves no room for a prompt in {whose}: at most {limit - 1}")


def fitted(body: Mapping[str, Any], context: int) -> Mapping[str, Any]:
    """The ``body`` of a /generate with its responses cut to what ``context`` tokens leave behind each prompt.

    A prompt that leaves none is the engine's to refuse, and what has another form than /generate takes.
    """
    ids, params = body.get("input_ids"), body.get("sampling_params")
    if not isinstance(ids, list) or not ids:
        return body
    prompts = ids if isinstance(ids[0], list) else [ids]
    each = params if isinstance(params, list) else [params or {}] * len(prompts)
    if len(each) != len(prompts) or not all(isinstance(part, Mapping) for part in [*each]):
        return body
    cut = [_cut(one, context - len(prompt)) for one, prompt in zip(each, prompts, strict=True)]
    if cut == each:
        return body
    return {**body, "sampling_params": cut if isinstance(ids[0], list) else cut[0]}


def _cut(params: Mapping[str, Any], room: int) -> Mapping[str, Any]:
    asked = params.get("max_new_tokens", DEFAULT_TOKENS)
    return {**params, "max_new_tokens": room} if type(asked) is int and asked > room > 0 else params


def _model_length(config: RunConfig, directory: str | Path | None) -> int | None:
    name = config.model.hf_checkpoint
    if directory is None and builtin.is_builtin(name):
        return builtin.MODELS[name].max_position if name in builtin.MODELS else None
    return model_length(directory or name)


def model_length(directory: str | Path) -> int | None:
    """What config.json says; None: nothing, or positions are scaled to more than it says."""
    try:
        found = json.loads((Path(directory) / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None  # whoever needs the file says what is wrong with it
    found = found if isinstance(found, dict) else {}
    scaled: Any = found.get("rope_scaling") or found.get("rope_parameters")
    length = found.get("max_position_embeddings")
    plain = not isinstance(scaled, dict) or scaled.get("rope_type", scaled.get("type")) in (None, "default", "llama3")
    return length if type(length) is int and length > 0 and plain else None
