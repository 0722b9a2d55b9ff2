"""What a process computes of a micro-batch's tokens, and how the parts of several become the whole.

Promises: :meth:`Outputs.whole` gives every context-parallel rank the values of all tokens, so that each computes the whole
loss; in the gradient each has its own tokens only, so that the gradients of the ranks add up to that of one process.
:meth:`Outputs.of_each` gives the same however many tokens it takes at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from miles_async.config.layout import Layout
from miles_async.train.batch import MicroBatch

Head = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Outputs:
    """values: [m, width] of the m tokens here, of this rank's part of the vocabulary where that is split. With ``head``, an
    output layer, they are the hidden states that it takes, and are given to it ``rows`` at a time."""

    values: torch.Tensor
    index: torch.Tensor | None = None  # [m] int64: which of the micro-batch's n tokens they are; None: all
    count: int = 0  # n, where not all are here
    tensor_group: Any = None  # who has the other parts of the vocabulary
    context_group: Any = None  # who has the other tokens
    head: Head | None = None
    rows: int = 0

    def here(self, of_tokens: torch.Tensor) -> torch.Tensor:
        """Those of [n, ...] whose tokens are here: [m, ...]."""
        return of_tokens if self.index is None else of_tokens.index_select(0, self.index)

    def of_each(
        self, compute: Callable[..., tuple[torch.Tensor, ...]], of_tokens: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """[m, ...] each: what ``compute`` gives for outputs [c, width] and their part of ``of_tokens`` [m, ...]. c is m; with a
        ``head`` it is ``rows``, and the outputs of so many tokens are all that there is, also in the backward pass."""
        if self.head is None:
            return compute(self.values, of_tokens)
        head: Head = self.head
        found: Any = _InParts.apply(lambda hidden, part: compute(head(hidden), part), self.rows, self.values, of_tokens)
        return found

    def vocabulary(self, values: torch.Tensor | None = None) -> torch.Tensor:
        """[c, vocabulary] of the outputs [c, width] that a ``compute`` is given, or of all m: with the other ranks' parts,
        of which each computes the same with them."""
        if values is None:
            values = self.values if self.head is None else self.head(self.values)
        if self.tensor_group is None:
            return values
        found: Any = _Vocabulary.apply(values, self.tensor_group)
        return found

    def whole(self, mine: torch.Tensor) -> torch.Tensor:
        """[m, ...] of this rank's tokens to [n, ...] of all."""
        if self.index is None:
            return mine
        found: Any = _Whole.apply(mine, self.index, self.count, self.context_group)
        return found


class _InParts(torch.autograd.Function):
    """``compute(x, y)`` of so many rows at a time. What it makes on the way is made again in the backward pass, in which the
    gradients of parameters are added up part by part."""

    @staticmethod
    def forward(
        ctx: Any, compute: Callable[..., tuple[torch.Tensor, ...]], rows: int, x: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.compute, ctx.rows = compute, rows
        ctx.save_for_backward(x, y)
        parts = [compute(*part) for part in zip(x.split(rows), y.split(rows), strict=True)]
        return tuple(torch.cat(of_part) for of_part in zip(*parts, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, None, torch.Tensor, None]:
        x, y = ctx.saved_tensors
        slopes = []
        for part, other, *of_part in zip(*(tensor.split(ctx.rows) for tensor in (x, y, *grads)), strict=True):
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                found = ctx.compute(part, other)
            learnt = [(value, grad) for value, grad in zip(found, of_part, strict=True) if value.requires_grad]
            torch.autograd.backward([value for value, _ in learnt], [grad for _, grad in learnt])
            slopes.append(part.grad)
        return None, None, torch.cat(slopes), None


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor, index: torch.Tensor, count: int, group: Any) -> torch.Tensor:
        ctx.save_for_backward(index)
        every = torch.zeros(count, *mine.shape[1:], dtype=mine.dtype, device=mine.device)
        every[index] = mine
        dist.all_reduce(every, group=group)
        return every

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return grads[0].index_select(0, ctx.saved_tensors[0]), None, None, None


class _Vocabulary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.place, ctx.size, mine = group.rank() * mine.shape[-1], group.size(), mine.contiguous()
        parts = [torch.empty_like(mine) for _ in range(group.size())]
        dist.all_gather(parts, mine, group=group)
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        width = grads[0].shape[-1] // ctx.size
        return grads[0][..., ctx.place : ctx.place + width], None


@dataclass(frozen=True)
class Inputs:
    """A micro-batch as this process computes it."""

    tokens: torch.Tensor  # [rows, columns] int64, on the device
    places: torch.Tensor  # [m] int64: which of [columns, rows] are followed by a token that is here
    index: torch.Tensor | None  # as in Outputs
    padding: torch.Tensor  # [rows, columns] bool: where there is no token; everywhere, where no output is wanted
    # [rows, columns, layers, top_k], on the CPU: the experts of each token; None: none came with them
    routes: torch.Tensor | None
    # of the sequences that the one row is, before context parallelism splits them (thd.py); None: each row is one
    lengths: tuple[int, ...] | None = None


def inputs(micro: MicroBatch, layout: Layout, context_rank: int, device: torch.device) -> Inputs:
    """The part of context-parallel rank ``context_rank``, in columns that the layout can split."""
    tokens, positions = torch.from_numpy(micro.tokens), torch.from_numpy(micro.positions)
    unit = (2 * layout.context if layout.context > 1 else 1) * (layout.tensor if layout.sequence else 1)
    if pad := -tokens.shape[1] % unit:
        tokens = F.pad(tokens, (0, pad))
    routes = None
    if micro.routes is not None:  # behind the end of a row its own again
        first = np.cumsum(micro.widths) - micro.widths
        column = np.arange(tokens.shape[1]) % micro.widths[:, None]
        routes = torch.from_numpy(micro.routes[first[:, None] + column])
    widths = torch.from_numpy(micro.widths if len(micro.targets) else np.zeros_like(micro.widths))
    padding = torch.arange(tokens.shape[1])[None] >= widths[:, None]
    index = None
    if layout.context > 1:
        from miles_async.train.attention import own_places

        rows, columns = tokens.shape
        mine = own_places(columns // layout.context, layout.context, context_rank)
        place = np.full(columns, -1)
        place[mine.numpy()] = np.arange(len(mine))
        column, row = micro.positions // rows, micro.positions % rows
        here = np.flatnonzero(place[column] >= 0)
        tokens, padding, index = tokens[:, mine], padding[:, mine], torch.from_numpy(here).to(device)
        routes = None if routes is None else routes[:, mine]
        positions = torch.from_numpy(place[column[here]] * rows + row[here])
    return Inputs(tokens.to(device), positions.to(device), index, padding.to(device), routes)
