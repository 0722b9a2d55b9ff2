"""The learner that is made of Megatron-core, in any layout: its parts, as parts.py promises them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from miles_async.config.lora import lora_of
from miles_async.config.schema import RunConfig
from miles_async.train import cpu_shim, hooks
from miles_async.train.bridge import ModelBridge
from miles_async.train.checkpoint import LEARNER_STATE, read_state
from miles_async.train.distributed import LearnerGroups, dtype_of
from miles_async.train.kept_weights import copies
from miles_async.train.lone_model import lone_model
from miles_async.train.lora import adapt, restore, stored
from miles_async.train.model import TrainedModel, gpt_model, is_last
from miles_async.train.parts import LearnerParts, Rate
from miles_async.train.provided_bridge import bridge_maker
from miles_async.train.quiet_megatron import quiet_megatron
from miles_async.train.ranks import Ranks
from miles_async.train.trained import Trained
from miles_async.train.value_head import HEAD, ValueHead, value_head


class MegatronFiles:
    """Megatron's ``torch_dist``."""

    backend = "megatron"

    def begin(self, state: dict[str, Any], directory: Path, group: Any, *, copied: bool) -> Callable[[], None]:
        from miles_async.train import dist_save

        return dist_save.begin(state, directory, group, copied=copied)

    def load(self, state: dict[str, Any], directory: Path) -> dict[str, Any]:
        from miles_async.train import dist_load

        return dist_load.load(state, directory)

    def apart(self, state: dict[str, Any], prefix: str) -> None:
        from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding

        add_prefix_for_sharding(state, prefix)


class MegatronParts(LearnerParts):
    """See LearnerParts."""

    files = MegatronFiles()

    def __init__(self, config: RunConfig, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(config, device, dtype)
        self._make = bridge_maker(config)
        self.lora = lora_of(config.learner)

    def meet(self, ranks: Ranks) -> LearnerGroups:
        quiet_megatron()
        cpu_shim.install(self.device)
        timeout_s, beside = self.config.learner.grad_reduce_timeout_s, self.config.checkpoint.async_save
        self.groups = LearnerGroups(self.device, ranks, timeout_s=timeout_s, writes_beside=beside)
        return self.groups

    def building(self) -> contextlib.AbstractContextManager[Any]:
        return cpu_shim.cuda_means_cpu(self.device)

    def seed(self, seed: int) -> None:
        from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

        torch.manual_seed(seed)
        model_parallel_cuda_manual_seed(seed, force_reset_rng=True)

    def bridge(self, path: str) -> Any:
        return self._make(path, self.dtype, self.device)

    def reference(self, path: str) -> list[torch.Tensor]:
        return copies([gpt_model(chunk) for chunk in self._policy_chunks(self.bridge(path))])

    def policy(self, bridge: Any, rate: Rate) -> Trained:
        rows = self.config.learner.log_probs_chunk_size
        replays = self.config.rollout.routing_replay
        return self._trained(self._policy_chunks(bridge), bridge, rate, rows=rows, replays=replays)

    def _policy_chunks(self, bridge: Any) -> list[torch.nn.Module]:
        chunks = bridge.chunks()
        if self.lora is not None:
            for module in map(gpt_model, chunks):
                adapt(module, self.lora, seed=self.config.run.seed)
        return chunks

    def critic(self, bridge: Any, rate: Rate, prefix: str) -> Trained:
        chunks = bridge.chunks()
        for module in map(gpt_model, chunks):
            # a tied model would hand its embedding to the head as the weight to use, and the stages of a pipeline wait for one
            # another's gradients of it
            module.share_embeddings_and_output_weights = False
            if is_last(module):
                module.output_layer = ValueHead(module.config.hidden_size, self.dtype, self.device)
                if (head := value_head(Path(bridge.path))) is not None:
                    module.output_layer.load_state_dict(head)
        return self._trained(chunks, bridge, rate, prefix=prefix)

    def _trained(self, chunks: list[torch.nn.Module], bridge: Any, rate: Rate, **more: Any) -> TrainedModel:
        learner = self.config.learner
        return TrainedModel(chunks, bridge.config, learner, self.groups, dtype=self.dtype, rate=rate, **more)

    def critic_tensors(self, bridge: Any, model: Trained) -> Iterator[tuple[str, torch.Tensor]]:
        last = model.modules[-1]
        head = None
        if is_last(last):
            head, last.output_layer = last.output_layer, torch.nn.Identity()  # the bridge has no name for it
        try:
            yield from bridge.all_tensors(model.modules)
        finally:
            if head is not None:
                last.output_layer = head
        if head is None:
            head = ValueHead(bridge.config.hidden_size, bridge.config.params_dtype, self.device)
        on_first = [(name, model.groups.from_last_stage(tensor.detach())) for name, tensor in head.named_parameters()]
        if model.groups.rank == 0:
            yield from ((f"{HEAD}{name}", tensor) for name, tensor in on_first)

    @classmethod
    def checkpoint_weights(cls, config: RunConfig, model: Path, checkpoint: Path) -> dict[str, torch.Tensor]:
        with _lone_policy(config, model, checkpoint) as (bridge, module):
            return {name: tensor.contiguous().clone() for name, tensor in bridge.hf_tensors(module)}

    @classmethod
    def checkpoint_adapters(cls, config: RunConfig, model: Path, checkpoint: Path) -> dict[str, torch.Tensor]:
        with _lone_policy(config, model, checkpoint) as (bridge, module):
            return {name: tensor.detach() for name, tensor in bridge.all_adapters([module])}


@contextlib.contextmanager
def _lone_policy(config: RunConfig, model: Path, checkpoint: Path) -> Iterator[tuple[Any, Any]]:
    """The bridge and the model of a checkpoint, on the CPU."""
    ours = partial(ModelBridge, fp32=config.learner.fp32_parameters)
    make = next(iter(hooks.MODEL_PROVIDER.functions(config)), ours)
    with lone_model(make, str(model), dtype_of(config.model), seed=config.run.seed) as (bridge, module):
        from miles_async.train import dist_load  # imports Megatron

        if (checkpoint / LEARNER_STATE).is_file() and (adapters := read_state(checkpoint).lora) is not None:
            adapt(module, adapters, seed=config.run.seed)
        loaded = dist_load.load({"model": stored(module)}, checkpoint, shards_only=True)
        restore(module, loaded["model"])
        yield bridge, module
