"""One model in training: its module, the gradients that the data-parallel ranks share, and Adam.

Promises: gradients are reduced once a step, not in backward, and no weight changes before they are applied; the state
restores bit for bit, on any number of ranks. Collective over ranks, but for :meth:`TrainedModel.outputs`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from miles_async.config import schema as cfg
from miles_async.train import cpu_shim
from miles_async.train.batch import MicroBatch, Sequences, micro_batches


class TrainedModel:
    """``model`` is what a bridge's ``build()`` gave: a GPTModel, in a Float16Module for bfloat16.

    config: Megatron's TransformerConfig of it. rate: the learning rate of its n-th optimizer step, from 0. prefix: of the
    names of its metrics.
    """

    def __init__(
        self,
        model: Any,
        config: Any,
        learner: cfg.Learner,
        *,
        dtype: torch.dtype,
        device: torch.device,
        rate: Callable[[int], float],
        prefix: str = "",
    ) -> None:
        from megatron.core import parallel_state
        from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

        from miles_async.train.local_layers import is_local, local_outputs
        from miles_async.train.optimizer import LearnerOptimizer

        self.module: Any = gpt_model(model)
        self._outputs = local_outputs if is_local(self.module) else None
        self.steps = 0  # optimizer steps in the weights
        self._device, self._rate, self._prefix = device, rate, prefix
        self._alone = parallel_state.get_data_parallel_world_size() == 1
        self._ddp = DistributedDataParallel(
            config,
            DistributedDataParallelConfig(
                grad_reduce_in_fp32=True,
                overlap_grad_reduce=False,
                use_distributed_optimizer=learner.use_distributed_optimizer,
            ),
            model,
        )
        self._optimizer = LearnerOptimizer(learner, dtype, self._ddp)

    def outputs(self, micro: MicroBatch) -> torch.Tensor:
        """[n, width]: the output layer, of the hidden states that the micro-batch's n tokens follow. Nothing is computed at
        other positions."""
        tokens = torch.from_numpy(micro.tokens).to(self._device)
        positions = torch.from_numpy(micro.positions).to(self._device)
        if self._outputs is not None:
            return self._outputs(self.module, tokens, positions)
        position_ids = torch.arange(tokens.shape[1], device=self._device).expand_as(tokens)

        def keep_wanted(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden, *rest = args  # [columns, rows, hidden]
            return (hidden.flatten(0, 1).index_select(0, positions)[:, None], *rest)

        handle = self.module.output_layer.register_forward_pre_hook(keep_wanted)
        try:
            return self._ddp(tokens, position_ids, None)[0]
        finally:
            handle.remove()

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        self._ddp.zero_grad_buffer()
        self._optimizer.zero_grad()

    def reduce_gradients(self) -> float:
        """Add the gradients of all ranks up. Returns their norm, inf or nan where they must not be applied."""
        from megatron.core.distributed import finalize_model_grads

        # Gradients are reduced here, once, not in backward: without overlap DDP needs no no_sync().
        if not self._alone:
            finalize_model_grads([self._ddp])
        with cpu_shim.cuda_means_cpu(self._device):
            return self._optimizer.gradient_norm()

    def apply_gradients(self) -> dict[str, float]:
        """One optimizer step with gradients that were reduced and are finite. Returns their norm before clipping, and the
        learning rate."""
        lr = self._rate(self.steps)
        norm = self._optimizer.step(lr)
        self.steps += 1
        return {f"{self._prefix}grad_norm": norm, f"{self._prefix}lr": lr}

    def sharded_state(self, *, is_loading: bool) -> dict[str, Any]:
        """What dist_checkpointing stores, or fills in to load."""
        model = self.module.sharded_state_dict()
        return {
            "model": model,
            "optimizer": self._optimizer.sharded_state_dict(model, is_loading),
            "steps": self.steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what was loaded into :meth:`sharded_state`."""
        self.module.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"], state["steps"])
        self.steps = state["steps"]


def gpt_model(model: Any) -> Any:
    """The GPTModel that a bridge built, without the Float16Module around it."""
    return getattr(model, "module", model)


def of_all_tokens(sequences: Sequences, max_tokens: int, compute: Callable[[MicroBatch], torch.Tensor]) -> torch.Tensor:
    """[N, ...] float32 on the CPU: what ``compute`` gives for a micro-batch's tokens, [n, ...], for all unmasked response
    tokens; [N] zeros where there is none.

    Without gradient. max_tokens: cap of a micro-batch.
    """
    flat = torch.zeros(len(sequences.mask))
    with torch.no_grad():
        for micro in micro_batches(sequences, max_tokens):
            found = compute(micro).cpu()
            if flat.ndim < found.ndim:
                flat = torch.zeros(len(sequences.mask), *found.shape[1:])
            flat[torch.from_numpy(micro.token_index)] = found
    return flat
