"""LoRA of the FSDP learner: PEFT's adapters in a model of transformers, before it is sharded.

    q_proj  ─►  q_proj.base_layer (frozen), q_proj.lora_A.default [rank, in], q_proj.lora_B.default [out, rank]

Promises: only adapters are trained; an untrained model computes what it did, since B begins at 0; which A it begins with does
not depend on the number of ranks; merged it has the names of its checkpoint, and before training the values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from miles_async.config.lora import ALL_LINEAR, Lora
from miles_async.models.support import ModelError

_ADAPTER, _BASE = "default", ".base_layer."  # PEFT's names for them
_MARKS = tuple(f".lora_{side}.{_ADAPTER}." for side in "AB")
_PREFIX = "base_model.model."  # of a name in PEFT's files


def adapt(model: Any, lora: Lora, *, seed: int) -> None:
    """Freeze a causal language model and put adapters into it. Raises ModelError: it has not such matrices."""
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    kinds = (torch.nn.Linear, Conv1D)
    linear = {name.rpartition(".")[2]: type(part) for name, part in model.named_modules() if isinstance(part, kinds)}
    head = {name.rpartition(".")[2] for name, part in model.named_modules() if part is model.get_output_embeddings()}
    wanted = ALL_LINEAR if lora.targets == (ALL_LINEAR,) else list(lora.targets)
    fit = sorted(linear.keys() - head)
    if wanted is not ALL_LINEAR and (odd := [name for name in lora.targets if name not in fit]):
        raise ModelError(
            f"learner.lora_targets: {type(model).__name__} has no linear layer {odd[0]} that can have adapters (it has "
            f"{', '.join(fit)})"
        )
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType] (only divided by r)
        target_modules=wanted,
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=Conv1D in linear.values(),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name))


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is a matrix of an adapter."""
    return any(mark in name for mark in _MARKS)


def peft_name(name: str) -> str:
    """Of a parameter of an adapter, in PEFT's files."""
    return _PREFIX + name.replace(f".{_ADAPTER}.", ".")


def parts(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter, Any]]:
    """Of a model without adapters that computes the same: each parameter's name, the parameter here, and the layer whose
    adapter it has to be merged with, None where there is none."""
    layers = {f"{name}{_BASE}weight": part for name, part in model.named_modules() if hasattr(part, "lora_A")}
    for name, parameter in model.named_parameters():
        if not is_adapter(name):
            yield name.replace(_BASE, "."), parameter, layers.get(name)


def merged(weight: torch.Tensor, layer: Any) -> torch.Tensor:
    """``weight`` of a layer with what its adapter adds to it, both whole, in float32. Collective where they are sharded."""
    a, b = (whole(side[_ADAPTER].weight.detach()) for side in (layer.lora_A, layer.lora_B))
    product = b.float() @ a.float()
    return weight.float().add(product.T if layer.fan_in_fan_out else product, alpha=layer.scaling[_ADAPTER])


def whole(tensor: Any) -> torch.Tensor:
    """All of a tensor of which this process has a part, or all. Collective where it is sharded."""
    full: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full
