"""A micro-batch as one row of its sequences, for Megatron's own layers ("thd": tokens, heads, dimension; no rows).

    tokens [1, T]    a1 a2 a3 a4 | b1 b2 | c1 c2 | .       with context parallelism a rank has its two pieces of a, of b, of c

Promises: padding is only what the layout cannot split otherwise: with context parallelism each sequence comes out even (a
multiple of 2 * ranks), and what tensor-parallel ranks share of the row does (less than one unit for each of them, as a sequence
of its own at the end). No token sees another sequence's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from miles_async.config.layout import Layout
from miles_async.train.batch import Array, MicroBatch
from miles_async.train.outputs import Inputs


def takes_row(modules: Sequence[Any]) -> bool:
    """Whether they are GPTModels whose attention takes sequences one after the other."""
    from megatron.core.models.gpt import GPTModel

    from miles_async.train.attention import CausalAttention

    cores = [part.core_attention for module in modules for part in module.modules() if hasattr(part, "core_attention")]
    known = (isinstance(core, CausalAttention) or type(core).__name__ == "TEDotProductAttention" for core in cores)
    return all(type(module) is GPTModel for module in modules) and all(known)  # Megatron's own, unfused, does not


def row_inputs(micro: MicroBatch, layout: Layout, context_rank: int, device: torch.device) -> Inputs:
    """The part of context-parallel rank ``context_rank``."""
    rows = len(micro.widths)
    unit = 2 * layout.context if layout.context > 1 else 1
    lengths = -(-micro.widths // unit) * unit
    if rest := -int(lengths.sum()) % (unit * (layout.tensor if layout.sequence else 1)):
        lengths = np.append(lengths, rest)
    starts = np.cumsum(lengths) - lengths
    row, column = np.nonzero(np.arange(micro.tokens.shape[1]) < micro.widths[:, None])
    tokens, real = np.zeros(int(lengths.sum()), dtype=np.int64), np.zeros(int(lengths.sum()), dtype=bool)
    tokens[starts[row] + column] = micro.tokens[row, column]
    real[starts[row] + column] = bool(len(micro.targets))
    routes = None if micro.routes is None else torch.from_numpy(_routes(micro.routes, micro.widths, lengths))
    column, row = np.divmod(micro.positions, rows)
    places, index = starts[row] + column, None
    if layout.context > 1:
        mine = _own(lengths, layout.context, context_rank)
        place = np.full(len(tokens), -1)
        place[mine] = np.arange(len(mine))
        here = np.flatnonzero(place[places] >= 0)
        tokens, real, places = tokens[mine], real[mine], place[places[here]]
        routes = None if routes is None else routes[:, mine]
        index = torch.from_numpy(here).to(device)

    def there(array: Array) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    return Inputs(there(tokens[None]), there(places), index, there(~real[None]), routes, tuple(lengths.tolist()))


def _routes(routes: Array, widths: Array, lengths: Array) -> Array:
    """[1, T, layers, top_k]: the experts of each token; behind the end of a sequence its own again, then the first one's."""
    row = np.repeat(np.arange(len(lengths)) % len(widths), lengths)
    column = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return routes[(np.cumsum(widths) - widths)[row] + column % widths[row]][None]


def _own(lengths: Array, ranks: int, rank: int) -> Array:
    """Which places of the row a context-parallel rank has, in its order."""
    from miles_async.train.attention import own_places, runs

    found, start = [], 0
    for length, count in runs(lengths.tolist()):
        begins = start + length * np.arange(count)
        found.append((begins[:, None] + own_places(length // ranks, ranks, rank).numpy()).ravel())
        start += length * count
    return np.concatenate(found)


def row_params(lengths: Sequence[int], device: torch.device) -> Any:
    """Megatron's ``PackedSeqParams`` of sequences of these lengths, before context parallelism splits them. device: where its
    attention looks for their bounds."""
    from megatron.core.packed_seq_params import PackedSeqParams

    bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32).to(device)
    longest = max(lengths)  # positions count in the whole sequence, of which context parallelism leaves a part here
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=longest, max_seqlen_kv=longest
    )


def bounds_device(modules: Sequence[Any], device: torch.device) -> torch.device:
    """Where the attention of ``modules`` looks for the bounds of sequences: CausalAttention at once, on the CPU."""
    from miles_async.train.attention import CausalAttention

    parts = (part for module in modules for part in module.modules())
    return torch.device("cpu") if any(isinstance(part, CausalAttention) for part in parts) else device
