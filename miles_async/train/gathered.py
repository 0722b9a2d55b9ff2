"""A model that several processes hold together, tensor by tensor on rank 0 under Hugging Face names; or its adapters.

Promises: at a time rank 0 holds one tensor of the model besides its own part, of experts one of each expert-parallel rank,
another rank as much of its stage at most; every bit is that of the parameters. The ranks of the first replica, of the model
and of its experts, take part (``LearnerGroups.exports``), all of them, and in one order: stage by stage, each stage's
parameters in theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from miles_async.train.parameter_names import EXPERTS, tensors
from miles_async.train.peft_names import AdapterSide

# how many matrices the rows of the largest parameters are of, each split by itself
_LARGEST = {".linear_fc1.weight": 2, ".word_embeddings.weight": 1, "output_layer.weight": 1}
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


def gathered(bridge: Any, chunks: Sequence[Any], side: AdapterSide | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and value of each tensor, on rank 0; nothing on the others, which have to be iterated too. bridge: a ModelBridge.
    side: which of each adapter's matrices, in the place of the model's tensors."""
    from megatron.core import parallel_state

    stage = parallel_state.get_pipeline_model_parallel_rank()
    leads = _in_first_replica() and parallel_state.get_tensor_model_parallel_rank() == 0
    pipeline: Any = parallel_state.get_pipeline_model_parallel_group()
    stages = dist.get_process_group_ranks(pipeline)
    of_stage = _of_stage(bridge, chunks, side)
    if stage > 0:
        for name, tensor in of_stage:
            if leads:
                _send(name, tensor, stages[0])
            del tensor  # before the next is put together
        if leads:
            _send_end(stages[0], bridge.device)
        return
    seen: set[str] = set()  # tied embeddings are on the first stage and on the last one
    for name, tensor in of_stage:
        if leads:
            seen.add(name)
            yield name, tensor
        del tensor
    for source in stages[1:] if leads else ():
        while (received := _receive(source, bridge.device)) is not None:
            if received[0] not in seen:
                seen.add(received[0])
                yield received
            del received


def _of_stage(bridge: Any, chunks: Sequence[Any], side: AdapterSide | None) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of this rank's stage, on its first tensor-parallel rank; the others have to iterate, and it means nothing."""
    show, to_hf = (bridge.view, bridge.to_hf) if side is None else (side.view, side.to_hf)
    for chunk in chunks:
        view = show(chunk)
        names = bridge.mbridge._weight_name_mapping_mcore_local_to_global(view)
        for local, mine in tensors(view):
            if EXPERTS in local:
                whole = _experts(bridge, names[local], mine)
            else:
                whole = [(names[local], found) for found in [_whole(bridge, names[local], mine)] if found is not None]
            if not whole:
                yield names[local], mine
            while whole:  # nothing keeps one that has gone while the next is put together
                yield from to_hf(*whole.pop(0))


def _in_first_replica() -> bool:
    """Of what is no expert."""
    from megatron.core import parallel_state

    return parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0


def _experts(bridge: Any, name: str, parameter: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The parameters in the place of this one: of this rank's expert and of those of the other expert-parallel ranks, each with
    the parts of all expert-tensor-parallel ranks; none on all but the first."""
    from megatron.core import parallel_state

    if parallel_state.get_expert_data_parallel_rank() != 0:
        return []
    group: Any = parallel_state.get_expert_tensor_and_model_parallel_group()  # an expert's parts are side by side
    parts = _gathered(parameter, group)
    if parts is None:
        return []
    size = bridge.layout.expert_tensor
    stem, first = name.rsplit("weight", 1)
    ranks = len(parts) // size
    numbers = [int(first) + rank * (bridge.config.num_moe_experts // ranks) for rank in range(ranks)]
    return [(f"{stem}weight{n}", _expert(name, parts[i * size : (i + 1) * size])) for i, n in enumerate(numbers)]


def _expert(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
    """An expert's matrix from those of its expert-tensor-parallel ranks, each of which has a part of its gate and up."""
    if len(parts) == 1:
        return parts[0]
    if "linear_fc2" in name:
        return torch.cat(parts, dim=1)
    return _gate_and_up(parts)


def _gate_and_up(parts: list[torch.Tensor]) -> torch.Tensor:
    """The rows of all gates and then those of all ups, in one copy."""
    halves = [part.chunk(2) for part in parts]
    return torch.cat([*(gate for gate, _ in halves), *(up for _, up in halves)])


def _whole(bridge: Any, name: str, parameter: torch.Tensor) -> torch.Tensor | None:
    """The parameter with the parts of all tensor-parallel ranks; None on all but the first."""
    from megatron.core import parallel_state

    if not _in_first_replica():
        return None
    group: Any = parallel_state.get_tensor_model_parallel_group()
    first = group.rank() == 0
    if group.size() == 1 or not getattr(parameter, "tensor_model_parallel", False):
        return parameter.detach() if first else None
    for end, matrices in _LARGEST.items():
        if name.endswith(end):  # mbridge would have it two or three times at once
            return _in_place(parameter, group, matrices)
    parts = _gathered(parameter, group)
    if parts is None:
        return None
    return bridge.mbridge._weight_merge_across_tp(name, parts, parameter)


def _in_place(parameter: torch.Tensor, group: Any, matrices: int) -> torch.Tensor | None:
    """The rows of all ranks of the group, on its first, each received where it belongs; None on the others. Of several
    ``matrices`` of which each rank has rows all of the first come before those of the second."""
    mine, ranks = parameter.detach().chunk(matrices), dist.get_process_group_ranks(group)
    if group.rank() > 0:
        for rows in mine:
            dist.send(rows.contiguous(), ranks[0])
        return None
    whole = parameter.new_empty(parameter.shape[0] * len(ranks), *parameter.shape[1:], requires_grad=False)
    places = [rows.chunk(len(ranks)) for rows in whole.chunk(matrices)]
    for of_matrix, rows in zip(places, mine, strict=True):
        of_matrix[0].copy_(rows)
    for index, rank in enumerate(ranks[1:], 1):
        for of_matrix in places:
            dist.recv(of_matrix[index], rank)
    return whole


def _gathered(parameter: torch.Tensor, group: Any) -> list[torch.Tensor] | None:
    """Those of all ranks of the group, on its first; None on the others."""
    mine = parameter.detach().contiguous()
    if group.size() == 1:
        return [mine]
    parts = [torch.empty_like(mine) for _ in range(group.size())] if group.rank() == 0 else None
    dist.gather(mine, parts, dst=dist.get_process_group_ranks(group)[0], group=group)
    return parts


def _send(name: str, tensor: torch.Tensor, to: int) -> None:
    header = msgspec.msgpack.encode((name, tuple(tensor.shape), str(tensor.dtype)))
    dist.send(torch.tensor([len(header)], device=tensor.device), to)
    dist.send(torch.tensor(list(header), dtype=torch.uint8, device=tensor.device), to)
    dist.send(tensor.contiguous(), to)


def _send_end(to: int, device: torch.device) -> None:
    dist.send(torch.tensor([0], device=device), to)


def _receive(source: int, device: torch.device) -> tuple[str, torch.Tensor] | None:
    size = torch.zeros(1, dtype=torch.int64, device=device)
    dist.recv(size, source)
    if not int(size):
        return None
    header = torch.empty(int(size), dtype=torch.uint8, device=device)
    dist.recv(header, source)
    name, shape, dtype = msgspec.msgpack.decode(bytes(header.tolist()), type=tuple[str, tuple[int, ...], str])
    tensor = torch.empty(shape, dtype=_DTYPES[dtype], device=device)
    dist.recv(tensor, source)
    return name, tensor
