"""What differs between the learners of this package: what a model is made of, and how its state gets into files.

    Trainer ──► LearnerParts ──┬─► MegatronParts (megatron_parts.py): mbridge, Megatron-core
                               └─► FsdpParts (fsdp/parts.py): transformers, fully_shard

Promises: everything else (intake, objective, optimizer steps, metrics, which files are a checkpoint) is the trainer's, and the
same for all of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from miles_async.config.lora import Lora
from miles_async.config.schema import RunConfig
from miles_async.train.distributed import LearnerGroups
from miles_async.train.ranks import Ranks
from miles_async.train.trained import Trained

Rate = Callable[[int], float]  # the learning rate of the n-th optimizer step, from 0


class StateFiles(Protocol):
    """How the state of models lies in a checkpoint's directory. Collective."""

    backend: str  # the name of the learner's backend, which the checkpoint says

    def begin(self, state: dict[str, Any], directory: Path, group: Any, *, copied: bool) -> Callable[[], None]:
        """What writes what the models' ``sharded_state`` gave, and tensors, into an empty directory: in any thread, collective
        over ``group`` alone (None: all ranks), whose rank 0 comes back when all of it is on disk. copied: as it is now, in a
        copy on the CPU of what this rank writes; otherwise none of it may change meanwhile."""
        ...

    def load(self, state: dict[str, Any], directory: Path) -> dict[str, Any]:
        """``state`` as it was saved. Raises CheckpointError."""
        ...

    def apart(self, state: dict[str, Any], prefix: str) -> None:
        """Give the tensors of ``state``, of a further model, names of their own."""
        ...


class LearnerParts:
    """The parts of one learner process."""

    files: StateFiles
    lora: Lora | None = None  # the adapters that are trained beside a frozen policy
    groups: LearnerGroups  # from :meth:`meet` on

    def __init__(self, config: RunConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.device, self.dtype = config, device, dtype

    def meet(self, ranks: Ranks) -> LearnerGroups:
        """Prepare the process, and meet the other ranks: ``groups``. Raises RanksSilent."""
        raise NotImplementedError

    def building(self) -> contextlib.AbstractContextManager[Any]:
        """In which models are made, saved and restored."""
        raise NotImplementedError

    def seed(self, seed: int) -> None:
        """Begin all generators anew."""
        raise NotImplementedError

    def bridge(self, path: str) -> Any:
        """The model at ``path`` before it is made: its ``path``, its ``hf_config``, and ``all_tensors(modules)``, which gives
        name and value of each tensor of the Hugging Face checkpoint, on rank 0, and is collective. Raises ModelError."""
        raise NotImplementedError

    def reference(self, path: str) -> list[torch.Tensor]:
        """The weights of the model at ``path``, as ``kept_weights.copies`` gives the policy's."""
        raise NotImplementedError

    def policy(self, bridge: Any, rate: Rate) -> Trained:
        """The model of ``bridge``, to be trained."""
        raise NotImplementedError

    def critic(self, bridge: Any, rate: Rate, prefix: str) -> Trained:
        """The model of ``bridge`` with a value head in the place of its output layer. prefix: of its metrics' names."""
        raise NotImplementedError

    def critic_tensors(self, bridge: Any, model: Trained) -> Iterator[tuple[str, torch.Tensor]]:
        """What ``bridge.all_tensors`` gives, of a critic, its head among it as ``value_head.HEAD`` says."""
        raise NotImplementedError

    @classmethod
    def checkpoint_weights(cls, config: RunConfig, model: Path, checkpoint: Path) -> dict[str, torch.Tensor]:
        """Hugging Face name to tensor, on the CPU, in ``model.dtype``: the policy of a verified checkpoint, in a process that
        trains nothing. model: what training began with."""
        raise NotImplementedError

    @classmethod
    def checkpoint_adapters(cls, config: RunConfig, model: Path, checkpoint: Path) -> dict[str, torch.Tensor]:
        """As :meth:`checkpoint_weights`, of a checkpoint of adapters: PEFT's name to tensor."""
        raise NotImplementedError
