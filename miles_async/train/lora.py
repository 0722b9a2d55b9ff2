"""LoRA (arXiv 2106.09685): beside large matrices of a model, which stay as they are, the product of two small ones is trained.

    y = W x + scale * B (A x)        A [rank, in], B [out, rank]; scale = lora_alpha / lora_rank

Promises: an untrained model computes what it did, since B begins at 0; which A it begins with does not depend on the layout; a
gradient is whole on every rank that has the matrix, after the reduction that all parameters go through. One A serves the
matrices that Megatron keeps as one (q, k, v; gate, up). The forward pass of local_layers.py asks for the adapters itself;
Megatron's own goes through a hook.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from miles_async.config.lora import TARGETS, USUAL, Lora
from miles_async.models.support import ModelError
from miles_async.train.local_functions import Raised

_SUFFIX = "_lora"  # of the name of an adapter, which lies beside the matrix in the same module


class Adapter(torch.nn.Module):
    """Of one parallel linear layer. Under tensor parallelism B of a column-parallel layer is split as its weight is, and A of a
    row-parallel one; the other matrix is whole on every rank. Beside a layer that is whole on every rank both are, and a rank
    has the gradient of its part of the sequence.

    gated: the rows of the weight are those of two matrices, each split by itself (``linear_fc1``).
    """

    def __init__(self, base: Any, lora: Lora, generator: torch.Generator, *, gated: bool) -> None:
        from megatron.core.parallel_state import get_tensor_model_parallel_group
        from megatron.core.tensor_parallel.layers import (
            ColumnParallelLinear,
            RowParallelLinear,
            set_tensor_model_parallel_attributes,
        )

        super().__init__()
        self.scale = lora.alpha / lora.rank
        self._column, self._gated = isinstance(base, ColumnParallelLinear), gated
        self._row = isinstance(base, RowParallelLinear)
        self._group: Any = get_tensor_model_parallel_group()
        weight: Any = base.weight
        self._sequence = base.sequence_parallel if self._column or self._row else weight.sequence_parallel
        ranks = self._group.size()
        outputs, inputs = weight.shape
        whole_inputs = inputs * ranks if self._row else inputs
        bound = 1 / math.sqrt(whole_inputs)  # as torch.nn.Linear's, and PEFT's
        a = torch.empty(lora.rank, whole_inputs).uniform_(-bound, bound, generator=generator)
        if self._row:
            a = a.chunk(ranks, dim=1)[self._group.rank()]
        self.a = torch.nn.Parameter(a.to(weight.device, weight.dtype, copy=True).contiguous())
        self.b = torch.nn.Parameter(weight.new_zeros(outputs, lora.rank))
        for matrix, dim in ((self.a, 1 if self._row else None), (self.b, 0 if self._column else None)):
            set_tensor_model_parallel_attributes(matrix, dim is not None, -1 if dim is None else dim, 1)
            if dim is None:  # its gradient is of a part of the sequence
                matrix.sequence_parallel = self._sequence  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``out``, what the layer gives of ``x``, with the product; both [s, b, ..] as the layer has them on this rank."""
        inner = self._exchanged(F.linear(x, self.a))
        return self.added(out.flatten(0, -2), inner.flatten(0, -2)).view_as(out)

    def added(self, out: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
        """``out`` [rows, out] and what ``inner`` [rows, rank], the product with A, adds to it."""
        found: Any = Raised.apply(out, inner, self.b, self.scale)
        return found

    def _exchanged(self, inner: torch.Tensor) -> torch.Tensor:
        """[.., rank] as the other ranks need it: so many numbers a token, where the layer itself exchanges all."""
        from megatron.core.tensor_parallel import mappings

        if self._group.size() == 1 or not (self._column or self._row):
            return inner
        if self._column:
            if self._sequence:
                return mappings.gather_from_sequence_parallel_region(inner, group=self._group)
            return mappings.copy_to_tensor_model_parallel_region(inner, group=self._group)
        if self._sequence:
            return mappings.reduce_scatter_to_sequence_parallel_region(inner, group=self._group)
        return mappings.reduce_from_tensor_model_parallel_region(inner, group=self._group)

    def merged(self, weight: torch.nn.Parameter) -> torch.nn.Parameter:
        """The layer's weight, this rank's part, with the product in it; computed in float32."""
        from megatron.core.tensor_parallel.layers import copy_tensor_model_parallel_attributes

        product = self.b.detach().float() @ self.a.detach().float()
        whole = weight.detach().float().add(product, alpha=self.scale).to(weight.dtype)
        found = torch.nn.Parameter(whole, requires_grad=False)
        copy_tensor_model_parallel_attributes(found, weight)
        return found

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """What Megatron asks its modules for: which part of which tensor of the whole model this rank has."""
        from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
        from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group, make_sharded_tensors_for_checkpoint

        metadata = ensure_metadata_has_dp_cp_group(metadata)
        state: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            self.state_dict(prefix="", keep_vars=True),
            prefix,
            {"b": 0} if self._column else {"a": 1} if self._row else {},
            sharded_offsets,
            tp_group=self._group,
            dp_cp_group=metadata["dp_cp_group"],
        )
        if self._gated:
            state[f"{prefix}b"] = apply_swiglu_sharded_factory(state[f"{prefix}b"], sharded_offsets)
        return state


def adapt(module: Any, lora: Lora, *, seed: int) -> None:
    """Freeze a GPTModel's part in this process and put adapters beside its layers' matrices. Raises ModelError: a layer has not
    these matrices, as a mixture's; a launch refuses such a model before."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    for layer in module.decoder.layers:
        for number, (name, part) in enumerate(TARGETS.items()):
            if name not in lora.targets:
                continue
            owner = getattr(layer, part)
            base = getattr(owner, name, None)
            if base is None:
                raise ModelError(f"learner.lora_rank: layer {layer.layer_number} of the model has no {part}.{name}")
            generator = torch.Generator().manual_seed(first_seed(seed, layer.layer_number, number))
            gated = name == "linear_fc1" and bool(module.config.gated_linear_unit)
            adapter = Adapter(base, lora, generator, gated=gated)
            setattr(owner, name + _SUFFIX, adapter)
            base.register_forward_hook(_adding(adapter))
    if module.config.recompute_granularity and hasattr(module, "embedding"):
        module.embedding.register_forward_hook(_with_gradient)
    module.adapted = True


def first_seed(seed: int, layer: int, number: int) -> int:
    """That of an A as a run begins, another one for each matrix of each layer. number: of the matrix among ``TARGETS``.

    Those of the first four are as they were when there were no others: earlier records are replayed to the same bits.
    """
    usual = len(USUAL)
    place = layer * usual + number if number < usual else (1 << 19) + layer * len(TARGETS) + number
    return (seed << 20) + place


def _adding(adapter: Adapter) -> Any:
    def add(_: torch.nn.Module, args: tuple[torch.Tensor, ...], output: tuple[Any, ...]) -> tuple[Any, ...]:
        out, *rest = output
        return (adapter(out, args[0]), *rest)

    return add


def _with_gradient(_: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    """Layers that are computed again have gradients only if their input has one, and a frozen embedding's output has none."""
    return output.requires_grad_() if torch.is_grad_enabled() else output


def adapter_of(owner: torch.nn.Module, name: str) -> Adapter | None:
    """The adapter beside the matrix ``name`` of ``owner``."""
    return owner._modules.get(name + _SUFFIX)  # type: ignore[return-value]


def adapters(module: torch.nn.Module) -> dict[str, Adapter]:
    """All of a model's, by the name of the layer that each is of."""
    named = ((name, part) for name, part in module.named_modules() if isinstance(part, Adapter))
    return {name.removesuffix(_SUFFIX): part for name, part in named}


def merged_parameters(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The parameters of a model without adapters that computes the same; of one that has none, its own."""
    beside = {f"{name}.weight": adapter for name, adapter in adapters(module).items()}
    own = {id(parameter) for adapter in beside.values() for parameter in adapter.parameters()}
    for name, parameter in module.named_parameters():
        if id(parameter) not in own:
            yield name, beside[name].merged(parameter) if name in beside else parameter


def stored(module: Any) -> dict[str, Any]:
    """What a checkpoint holds of a model: all of it, or its adapters, the rest being the directory's that it was built from."""
    state: dict[str, Any] = module.sharded_state_dict()
    if not _adapted(module):
        return state
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {name: part for name, part in state.items() if name in trained}


def restore(module: Any, state: dict[str, Any]) -> None:
    """Take what was loaded into :func:`stored`."""
    module.load_state_dict(state, strict=not _adapted(module))


def _adapted(module: Any) -> bool:
    """Whether :func:`adapt` was called for it; a stage of a pipeline need not have a layer."""
    return getattr(module, "adapted", False)
