"""Weights that stay float32 in a bfloat16 model, and are computed with in float32 (``learner.fp32_parameters``).

    bfloat16 ──► float32 ──► layer whose weights are float32 ──► bfloat16; of the output layer float32

Promises: a marked weight takes part in the forward pass, in its gradient and in the optimizer's step as it is, never rounded;
what goes from layer to layer stays bfloat16; a layer of which only a part is marked is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from miles_async.models.kept_types import KEY, is_kept
from miles_async.models.support import ModelError
from miles_async.models.tensor_names import tensor_types


def wide_tensors(directory: str) -> frozenset[str]:
    """Those of a Hugging Face directory that are float32 in its files."""
    return frozenset(name for name, kind in tensor_types(directory).items() if kind == "F32")


def keep_float32(model: Any, hf_names: Mapping[str, Sequence[str]], patterns: Sequence[str]) -> None:
    """Mark parameters of a GPTModel's part in this process, which is bfloat16. hf_names: of each parameter, what the checkpoint
    has in its place. Raises ModelError."""
    from megatron.core.transformer.moe.router import Router

    kept = {name: parameter for name, parameter in model.named_parameters() if is_kept(hf_names[name], patterns)}
    of_owner: dict[str, torch.nn.Module] = {}
    for name, parameter in kept.items():
        owner = name.rpartition(".")[0]
        of_owner[owner] = model.get_submodule(owner)
        parameter.data = parameter.data.float()
    for owner, module in of_owner.items():
        others = [name for name, _ in module.named_parameters(prefix=owner) if name not in kept]
        if others:
            shown = [hf_names[name][0] for name in others]
            raise ModelError(
                f"{KEY}: one layer computes with {shown[0]} and with marked weights: mark all of them, or none"
            )
        if not isinstance(module, Router):  # which takes weights and input as its moe_router_dtype says
            _compute_in_float32(module, narrow=module is not getattr(model, "output_layer", None))
    tied = model.share_embeddings_and_output_weights and model.pre_process and model.post_process
    if tied and "embedding.word_embeddings.weight" in kept:  # which has no weight of its own
        _compute_in_float32(model.output_layer, narrow=False)


def _compute_in_float32(module: torch.nn.Module, *, narrow: bool) -> None:
    """narrow: what the module gives is bfloat16 again."""

    def widen(
        _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(map(_wide, args)), {name: _wide(value) for name, value in kwargs.items()}

    def narrowed(_: torch.nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        return tuple(map(_narrow, output)) if isinstance(output, tuple) else _narrow(output)

    module.register_forward_pre_hook(widen, with_kwargs=True)
    if narrow:
        module.register_forward_hook(narrowed)


def _wide(value: Any) -> Any:
    return value.float() if torch.is_tensor(value) and value.dtype is torch.bfloat16 else value


def _narrow(value: Any) -> Any:
    return value.bfloat16() if torch.is_tensor(value) and value.dtype is torch.float32 else value
