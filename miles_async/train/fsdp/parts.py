"""The learner that is made of transformers' models and torch's ``fully_shard``: its parts, as train/parts.py promises them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from miles_async.config.lora import lora_of
from miles_async.config.schema import RunConfig
from miles_async.train.checkpoint import LEARNER_STATE, read_state
from miles_async.train.distributed import LearnerGroups, dtype_of
from miles_async.train.fsdp.bridge import FsdpBridge
from miles_async.train.fsdp.files import DcpFiles, policy_weights
from miles_async.train.fsdp.groups import ShardGroups
from miles_async.train.fsdp.lora import adapt, peft_name
from miles_async.train.fsdp.model import FsdpModel, shard
from miles_async.train.kept_weights import copies
from miles_async.train.parts import LearnerParts, Rate
from miles_async.train.ranks import Ranks
from miles_async.train.trained import Trained


class FsdpParts(LearnerParts):
    """See LearnerParts. A model is read whole by each process, and sharded then."""

    files = DcpFiles()

    def __init__(self, config: RunConfig, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(config, device, dtype)
        self.lora = lora_of(config.learner)

    def meet(self, ranks: Ranks) -> LearnerGroups:
        timeout_s, beside = self.config.learner.grad_reduce_timeout_s, self.config.checkpoint.async_save
        self.groups = ShardGroups(self.device, ranks, timeout_s=timeout_s, writes_beside=beside)
        return self.groups

    def building(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def bridge(self, path: str) -> FsdpBridge:
        recompute = self.config.learner.recompute_granularity == "full"
        return FsdpBridge(path, self.dtype, rank=self.groups.rank, recompute=recompute)

    def reference(self, path: str) -> list[torch.Tensor]:
        return copies([self._sharded(bridge := self.bridge(path), self._policy_model(bridge))])

    def policy(self, bridge: FsdpBridge, rate: Rate) -> Trained:
        return self._trained(bridge, self._policy_model(bridge), rate)

    def _policy_model(self, bridge: FsdpBridge) -> Any:
        model = bridge.model()
        if self.lora is not None:
            adapt(model, self.lora, seed=self.config.run.seed)
        return model

    def critic(self, bridge: FsdpBridge, rate: Rate, prefix: str) -> Trained:
        return self._trained(bridge, bridge.critic(), rate, prefix)

    def critic_tensors(self, bridge: FsdpBridge, model: Trained) -> Iterator[tuple[str, torch.Tensor]]:
        return bridge.all_tensors(model.modules)

    def _trained(self, bridge: FsdpBridge, model: Any, rate: Rate, prefix: str = "") -> FsdpModel:
        head = model.get_output_embeddings()
        module = self._sharded(bridge, model)
        return FsdpModel(module, head, self.config.learner, self.groups, rate=rate, prefix=prefix)

    def _sharded(self, bridge: FsdpBridge, model: Any) -> Any:
        shard(model, bridge.layers(model), self.groups, self.dtype)
        return model

    @classmethod
    def checkpoint_weights(cls, config: RunConfig, model: Path, checkpoint: Path) -> dict[str, torch.Tensor]:
        dtype, found = dtype_of(config.model), policy_weights(checkpoint)
        lora = read_state(checkpoint).lora if (checkpoint / LEARNER_STATE).is_file() else None
        if lora is None:
            return {name: tensor.to(dtype) for name, tensor in found.items()}
        bridge = FsdpBridge(str(model), dtype, rank=0)
        module = bridge.model()
        adapt(module, lora, seed=config.run.seed)
        module.load_state_dict(found, strict=False)
        return dict(bridge.all_tensors([module]))

    @classmethod
    def checkpoint_adapters(cls, config: RunConfig, model: Path, checkpoint: Path) -> dict[str, torch.Tensor]:
        return {
            peft_name(name): tensor.to(dtype_of(config.model)) for name, tensor in policy_weights(checkpoint).items()
        }
