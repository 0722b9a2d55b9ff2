"""One model in training: this process' part of it, the gradients that the ranks share, and Adam.

Promises: a pass goes through the micro-batches in their order, in whatever layout; gradients are reduced once a step, not in
backward, and no weight changes before they are applied; the state restores bit for bit, in any layout. Collective over ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from miles_async.config import schema as cfg
from miles_async.config.qkv_format import packs
from miles_async.train import cpu_shim, lora, thd
from miles_async.train.batch import (
    PACKED_SPLIT_COST_TOKENS,
    SPLIT_COST_TOKENS,
    MicroBatch,
    Sequences,
    micro_batches,
)
from miles_async.train.distributed import LearnerGroups
from miles_async.train.megatron_args import megatron_args
from miles_async.train.outputs import Head, Outputs, inputs
from miles_async.train.packed import packed
from miles_async.train.parameter_names import tensors
from miles_async.train.pipeline import in_stages
from miles_async.train.routing import Routing
from miles_async.train.trained import Loss, Trained, loss_or_zero


class TrainedModel(Trained):
    """``chunks`` is what a bridge's ``chunks()`` gave: GPTModels, each in a Float16Module for bfloat16.

    config: Megatron's TransformerConfig of it. rate: the learning rate of its n-th optimizer step, from 0. rows: of how many
    tokens the output layer is computed at a time; None: of a micro-batch's. prefix: of the names of its metrics. replays: its
    passes take the experts that came with the tokens, where there are any; without it its routers always choose.
    """

    def __init__(
        self,
        chunks: Sequence[Any],
        config: Any,
        learner: cfg.Learner,
        groups: LearnerGroups,
        *,
        dtype: torch.dtype,
        rate: Callable[[int], float],
        rows: int | None = None,
        prefix: str = "",
        replays: bool = False,
    ) -> None:
        from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

        from miles_async.train import local_layers
        from miles_async.train.optimizer import LearnerOptimizer

        self.modules: list[Any] = [gpt_model(chunk) for chunk in chunks]
        self.groups = groups
        whole = groups.layout.model == 1 and local_layers.is_local(self.modules[0])
        self._local: Any = local_layers if whole else None
        self._in_row = not whole and packs(learner) and thd.takes_row(self.modules)
        self._bounds_device = thd.bounds_device(self.modules, groups.device)
        self.steps = 0  # optimizer steps in the weights
        self._max_tokens = learner.max_tokens_per_micro_batch
        self._rate, self._rows, self._prefix = rate, rows, prefix
        self._routing = Routing(self.modules, config, learner, groups, replays=replays)
        settings = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=False,
            use_distributed_optimizer=learner.use_distributed_optimizer,
            **megatron_args(learner.megatron_args).ddp,
        )
        self._ddps = [
            DistributedDataParallel(config, settings, chunk, disable_bucketing=i > 0) for i, chunk in enumerate(chunks)
        ]
        self._optimizer = LearnerOptimizer(learner, dtype, self._ddps, layout=groups.layout)

    # passes

    def micro_batches(self, sequences: Sequences) -> list[MicroBatch]:
        """Those that it takes least time to compute."""
        split_cost = PACKED_SPLIT_COST_TOKENS if self._local else SPLIT_COST_TOKENS
        return micro_batches(sequences, self._max_tokens, split_cost, padded=not self._in_row)

    def train_pass(self, micros: Sequence[MicroBatch], loss_of: Loss, *, learning: bool = True) -> None:
        """Add the gradients of ``loss_of(micro-batch, its outputs)``, a scalar, up, of one micro-batch after the other; no
        gradient unless ``learning``. It is asked on the last stage only, of micro-batches with tokens."""
        if learning:
            self._routing.weigh(micros)
        self._routing.begin_pass(learning=learning)
        micros, device = self._even(micros), self.groups.device
        named_cuda = contextlib.nullcontext() if self._local else cpu_shim.cuda_means_cpu(device)
        with torch.set_grad_enabled(learning), named_cuda:
            if self.groups.layout.pipeline > 1:

                def loss_of_stage(micro: MicroBatch, values: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
                    return loss_or_zero(micro, self._as_outputs(values, index, micro), loss_of)

                with self.groups.waiting("the stages of"):
                    in_stages(self._ddps, self._stage_of, micros, loss_of_stage, learning=learning)
                return
            for micro in micros:
                loss = loss_or_zero(micro, self._outputs(self._ddps[0], micro), loss_of)
                if learning:
                    loss.backward()

    def _even(self, micros: Sequence[MicroBatch]) -> list[MicroBatch]:
        """With empty ones behind, where the ranks have to have as many."""
        layout, count = self.groups.layout, len(micros)
        if layout.expert > 1:  # the replicas hand tokens to one another's experts
            count = self.groups.most(count)
        if layout.pipeline > 1:
            count = max(count, 1)
            count += -count % (layout.pipeline if layout.virtual > 1 else 1)
        return [*micros, *([MicroBatch.empty()] * (count - len(micros)))]

    def _outputs(self, ddp: Any, micro: MicroBatch) -> Outputs:
        """The output layer, of the hidden states that the micro-batch's tokens follow. Nothing is computed at other
        positions."""
        groups = self.groups
        if self._local is not None:
            module, part = self.modules[0], packed(micro, groups.device)
            if self._rows is None:
                return Outputs(self._local.local_outputs(module, part))
            hidden = self._local.local_hidden(module, part)[: part.output_count]
            return Outputs(hidden, head=partial(self._local.local_head, module), rows=self._rows)
        values, index = self._stage_of(ddp, micro)
        return self._as_outputs(values, index, micro)

    def _as_outputs(self, values: torch.Tensor, index: torch.Tensor | None, micro: MicroBatch) -> Outputs:
        found = Outputs(values, index, len(micro.targets), self.groups.tensor_group, self.groups.context_group)
        return found if self._rows is None else replace(found, head=self._head(), rows=self._rows)

    def _head(self) -> Head:
        """The output layer: [rows, hidden] to [rows, width]."""
        module = self.modules[-1]
        layer = module.output_layer
        tied = module.share_embeddings_and_output_weights
        weight = module.shared_embedding_or_output_weight() if tied else layer.weight
        # what comes from a bfloat16 module is float32
        return lambda hidden: layer(hidden[:, None].to(weight.dtype), weight=weight)[0][:, 0]

    def _stage_of(self, ddp: Any, micro: MicroBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What this stage gives: hidden states, or on the last one the output layer's [m, width], unless this is asked for in
        parts; and of which tokens."""
        groups, module = self.groups, gpt_model(ddp.module)
        part = (thd.row_inputs if self._in_row else inputs)(micro, groups.layout, groups.context_rank, groups.device)
        position_ids = torch.arange(part.tokens.shape[1], device=groups.device).expand_as(part.tokens)
        said: dict[str, Any] = {}
        if part.lengths is not None:
            said["packed_seq_params"] = thd.row_params(part.lengths, self._bounds_device)
        if self._routing.counts:
            said["padding_mask"] = part.padding if module.pre_process else groups.own_columns(part.padding)
        self._routing.give(module, None if part.routes is None else groups.own_columns(part.routes))
        if not is_last(module):
            return ddp(part.tokens, position_ids, None, **said), part.index
        sequence = groups.layout.sequence

        def keep_wanted(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden, *rest = args  # [columns, rows, hidden]
            if sequence:
                from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

                hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
            return (hidden.flatten(0, 1).index_select(0, part.places)[:, None], *rest)

        layer = module.output_layer
        handle = layer.register_forward_pre_hook(keep_wanted, prepend=True)
        if self._rows is not None:
            layer.forward = lambda hidden, **_: (hidden, None)
        try:
            return ddp(part.tokens, position_ids, None, **said)[0], part.index
        finally:
            handle.remove()
            vars(layer).pop("forward", None)

    # optimizer steps

    def zero_grad(self) -> None:
        """Forget the gradients of the last step."""
        self._routing.begin()
        for ddp in self._ddps:
            ddp.zero_grad_buffer()
        self._optimizer.zero_grad()

    def scale_gradients(self, factor: float) -> None:
        """Multiply what was added up so far."""
        for ddp in self._ddps:
            ddp.scale_gradients(factor)

    def reduce_gradients(self) -> float:
        """Add the gradients of all ranks up. Returns their norm, inf or nan where they must not be applied."""
        from megatron.core.distributed import finalize_model_grads

        # Gradients are reduced here, once, not in backward: without overlap DDP needs no no_sync().
        with cpu_shim.cuda_means_cpu(self.groups.device):
            if self.groups.world_size > 1:
                finalize_model_grads([*self._ddps])
            return self._optimizer.gradient_norm()

    def apply_gradients(self) -> dict[str, float]:
        """One optimizer step with gradients that were reduced and are finite. Returns their norm before clipping, the learning
        rate, and of a mixture of experts what its routers counted (routing.py)."""
        lr = self._rate(self.steps)
        norm = self._optimizer.step(lr)
        self.steps += 1
        found = {"grad_norm": norm, "lr": lr, **self._routing.end()}
        return {f"{self._prefix}{name}": value for name, value in found.items()}

    def sharded_state(self, *, is_loading: bool) -> dict[str, Any]:
        """What dist_checkpointing stores, or fills in to load."""
        model = [lora.stored(module) for module in self.modules]
        named = model[0] if len(model) == 1 else {f"model{i}": part for i, part in enumerate(model)}
        return {
            "model": named,
            "optimizer": self._optimizer.sharded_state_dict(named, is_loading),
            "steps": self.steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore what was loaded into :meth:`sharded_state`."""
        parts = state["model"]
        for i, module in enumerate(self.modules):
            lora.restore(module, parts if len(self.modules) == 1 else parts[f"model{i}"])
        self._optimizer.load_state_dict(state["optimizer"], state["steps"])
        self.steps = state["steps"]

    def sharded_weights(self, weights: Sequence[torch.Tensor], *, frozen: bool = True) -> dict[str, Any]:
        """What dist_checkpointing stores of other weights of the modules, or fills in to load."""
        named = [(i, *named) for i, module in enumerate(self.modules) for named in tensors(module)]
        order = [(i, name) for i, name, tensor in named if frozen or tensor.requires_grad]
        sharded = [module.sharded_state_dict() for module in self.modules]
        return {
            f"{i}.{name}": replace(sharded[i][name], data=weight)
            for (i, name), weight in zip(order, weights, strict=True)
        }


def is_last(module: Any) -> bool:
    """Whether it has the output layer, as the last stage of a pipeline does; a model of the user's is whole."""
    return getattr(module, "post_process", True)


def gpt_model(model: Any) -> Any:
    """The GPTModel that a bridge built, without the Float16Module around it."""
    return getattr(model, "module", model)
