"""Micro-batches through the stages of a pipeline, by Megatron's schedules.

Promises: each stage takes every micro-batch, and losses are asked for on the last one, in order; nothing is divided and nothing
reduced on the way, so that the gradients are those of the same micro-batches in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from miles_async.train.batch import MicroBatch

Stage = Callable[[Any, MicroBatch], tuple[torch.Tensor, torch.Tensor | None]]


def in_stages(
    ddps: Sequence[Any],
    stage_of: Stage,
    micros: Sequence[MicroBatch],
    loss_of: Callable[[MicroBatch, torch.Tensor, torch.Tensor | None], torch.Tensor],
    *,
    learning: bool,
) -> None:
    """A forward pass, and a backward pass where ``learning``, of all ``micros``, of which every stage has as many.

    ddps: the parts of the model on this stage. stage_of: what one of them gives for a micro-batch, and which tokens that is of.
    loss_of: a scalar of what the last stage gives, and of these.
    """
    from megatron.core.pipeline_parallel import get_forward_backward_func

    def forward_step(data: Any, ddp: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
        micro = next(data)
        values, index = stage_of(ddp, micro)

        def loss(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
            found = loss_of(micro, values, index)
            # with a number of tokens beside it Megatron divides by nothing
            return found, torch.zeros((), dtype=torch.int, device=found.device), {}

        return values, loss

    data = [iter(list(micros)) for _ in ddps]
    several = len(ddps) > 1
    get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=data if several else data[0],
        model=[*ddps] if several else ddps[0],
        num_microbatches=len(micros),
        seq_length=1,  # that of each micro-batch is told from stage to stage (variable_seq_lengths)
        micro_batch_size=1,
        decoder_seq_length=1,
        forward_only=not learning,
    )
