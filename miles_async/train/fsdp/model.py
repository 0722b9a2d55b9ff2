"""A model of transformers in training: its layers and what lies around them, each sharded over all ranks.

    micro-batch ─► model(input_ids) ─► before the output layer the wanted positions only ─► its logits [n, vocabulary]

Promises: weights are float32 in shards, and gathered layer by layer to be computed with, in bfloat16 where that is the model's
type; the gradients of the ranks are summed, not averaged, in float32; between passes every process has its shards and nothing
else. All-gathers are collective, so every rank makes as many passes, empty ones where it has less to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from miles_async.config import schema as cfg
from miles_async.train.batch import MicroBatch, Sequences, micro_batches
from miles_async.train.distributed import LearnerGroups
from miles_async.train.fsdp.adam import ShardedAdam
from miles_async.train.kept_weights import local_part
from miles_async.train.outputs import Outputs
from miles_async.train.trained import Loss, Trained, loss_or_zero


def shard(module: Any, layers: Sequence[Any], groups: LearnerGroups, dtype: torch.dtype) -> None:
    """Leave each rank its shards of ``module``, on its device. layers: the parts of it that are gathered by themselves. dtype:
    what it computes in; the shards stay as they are."""
    mesh = init_device_mesh(groups.device.type, (groups.world_size,))
    mixed = MixedPrecisionPolicy()
    if dtype is not torch.float32:
        mixed = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for part in (*layers, module):
        fully_shard(part, mesh=mesh, mp_policy=mixed)
        part.set_gradient_divide_factor(1.0)  # a mean over ranks would not be one over the step's tokens
        part.set_force_sum_reduction_for_comms(True)  # else the factor needs NCCL


class FsdpModel(Trained):
    """``module``, which :func:`shard` has had. head: its output layer, of [..., hidden]."""

    def __init__(
        self,
        module: Any,
        head: torch.nn.Module,
        learner: cfg.Learner,
        groups: LearnerGroups,
        *,
        rate: Callable[[int], float],
        prefix: str = "",
    ) -> None:
        self.modules, self.groups, self.steps = [module], groups, 0
        self._module, self._head = module, head
        self._max_tokens, self._rate, self._prefix = learner.max_tokens_per_micro_batch, rate, prefix
        self._all: Mapping[str, Any] = dict(module.named_parameters())
        self._parameters = {name: parameter for name, parameter in self._all.items() if parameter.requires_grad}
        self._adam = ShardedAdam(self._parameters, learner, groups)

    # passes

    def micro_batches(self, sequences: Sequences) -> list[MicroBatch]:
        return micro_batches(sequences, self._max_tokens)

    def train_pass(self, micros: Sequence[MicroBatch], loss_of: Loss, *, learning: bool = True) -> None:
        empty = [MicroBatch.empty()] * (self.groups.most(len(micros)) - len(micros))
        with torch.set_grad_enabled(learning), self.groups.waiting("the shards of"):
            for micro in (*micros, *empty):
                loss = loss_or_zero(micro, self._outputs(micro), loss_of)
                if learning:
                    loss.backward()
            self._module.reshard()  # after a pass without gradient it is whole

    def _outputs(self, micro: MicroBatch) -> Outputs:
        """The output layer, of the hidden states that the micro-batch's tokens follow. Padding is on the right, where causal
        attention does not see it."""
        rows, columns = micro.tokens.shape
        column, row = np.divmod(micro.positions, rows)
        places = torch.from_numpy(row * columns + column).to(self.groups.device)

        def keep_wanted(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden, *rest = args  # [rows, columns, hidden]
            return (hidden.flatten(0, 1).index_select(0, places), *rest)

        handle = self._head.register_forward_pre_hook(keep_wanted)
        try:
            tokens = torch.from_numpy(micro.tokens).to(self.groups.device)
            return Outputs(self._module(input_ids=tokens, use_cache=False).logits)
        finally:
            handle.remove()

    # optimizer steps

    def zero_grad(self) -> None:
        self._adam.zero_grad()

    def scale_gradients(self, factor: float) -> None:
        self._adam.scale_gradients(factor)

    def reduce_gradients(self) -> float:
        return self._adam.gradient_norm()  # summed they are, in each backward pass

    def apply_gradients(self) -> dict[str, float]:
        lr = self._rate(self.steps)
        norm = self._adam.step(lr)
        self.steps += 1
        return {f"{self._prefix}grad_norm": norm, f"{self._prefix}lr": lr}

    # in a checkpoint

    def sharded_state(self, *, is_loading: bool) -> dict[str, Any]:
        moments = {key: self._sharded(shards, self._parameters) for key, shards in self._adam.moments().items()}
        weights = {name: local_part(parameter) for name, parameter in self._parameters.items()}
        return {
            "model": self._sharded(weights, self._parameters),
            "optimizer": moments,
            "steps": torch.tensor(self.steps),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])  # everything else was restored in place
        self._adam.restore(self.steps)

    def sharded_weights(self, weights: Sequence[torch.Tensor], *, frozen: bool = True) -> dict[str, Any]:
        like = self._all if frozen else self._parameters
        named = {f"0.{name}": parameter for name, parameter in like.items()}
        return self._sharded(dict(zip(named, weights, strict=True)), named)

    def _sharded(self, shards: Mapping[str, torch.Tensor], like: Mapping[str, Any]) -> dict[str, DTensor]:
        """Each rank's ``shards`` as the parts of whole tensors, which they are of the parameters ``like``."""
        with torch.no_grad():
            return {
                name: DTensor.from_local(
                    shards[name],
                    parameter.device_mesh,
                    parameter.placements,
                    run_check=False,
                    shape=parameter.shape,
                    stride=parameter.stride(),
                )
                for name, parameter in like.items()
            }
