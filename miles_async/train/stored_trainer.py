"""What of a training engine leaves its process and comes back: exports of its weights, checkpoints of all that it is.

Promises: an exported tensor is a copy: later steps do not change it. A restored checkpoint continues bit for bit. How a batch
is trained is the matter of trainer.py, a trainer's other half. All methods are collective over ranks, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from miles_async.config.schema import RunConfig
from miles_async.train.backend import LearnerBackend
from miles_async.train.checkpoint import LearnerState
from miles_async.train.checkpoint_choice import CheckpointChoice
from miles_async.train.critic import Critic
from miles_async.train.distributed import LearnerGroups
from miles_async.train.model_state import ModelState
from miles_async.train.parts import LearnerParts
from miles_async.train.policy import Policy
from miles_async.train.steps import OptimizerSteps
from miles_async.weights.safetensors_file import Spec, specs_of


class StoredTrainer(LearnerBackend):
    """The half of a ``LearnerBackend`` (backend.py) that does not train. What it is made of is made by the other one."""

    PARTS: type[LearnerParts]

    config: RunConfig
    _parts: LearnerParts
    _groups: LearnerGroups
    _bridge: Any
    _policy: Policy
    _critic: Critic | None
    _state: ModelState
    _steps: OptimizerSteps
    _specs: list[Spec] | None = None  # of what is exported

    @classmethod
    def checkpoint_weights(cls, config: RunConfig, model: Path, checkpoint: Path) -> dict[str, torch.Tensor]:
        """See LearnerBackend."""
        return cls.PARTS.checkpoint_weights(config, model, checkpoint)

    @classmethod
    def checkpoint_adapters(cls, config: RunConfig, model: Path, checkpoint: Path) -> dict[str, torch.Tensor]:
        """See LearnerBackend."""
        return cls.PARTS.checkpoint_adapters(config, model, checkpoint)

    def export(self) -> dict[str, torch.Tensor]:
        """Hugging Face name -> contiguous copy on the CPU, in the model's dtype. Empty on every rank but 0."""
        if not self._groups.exports:
            return {}
        return {name: torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor) for name, tensor in self._tensors()}

    def stream(self) -> tuple[Sequence[Spec], Iterable[tuple[str, torch.Tensor]]]:
        """See LearnerBackend. Of a model that is split, rank 0 has one tensor at a time."""
        if not self._groups.exports:
            return (), ()
        if self._specs is None:
            self._specs = specs_of(self._tensors())
        return self._specs, self._tensors()

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        with self._groups.waiting("the weights of"):
            yield from self._bridge.all_tensors(self._policy.model.modules)

    def save_hf(self, directory: Path) -> None:
        """A directory transformers can load: current weights, the original's configuration and tokenizer files."""
        from miles_async.train.hf_export import save_hf

        specs, tensors = self.stream()
        if self._groups.rank == 0:
            save_hf(specs, tensors, Path(self._bridge.path), Path(directory))
        else:
            for _ in tensors:  # whoever has a part of one gives it
                pass
        self._groups.agree("the Hugging Face export")

    def save_adapters(self, directory: Path) -> None:
        """The adapters in PEFT's format; see peft_export.py. Does nothing without any."""
        lora = self._parts.lora
        if lora is None:
            return
        from miles_async.train.peft_export import save_adapters

        with self._groups.waiting("the adapters of"):
            found = self._bridge.all_adapters(self._policy.model.modules) if self._groups.exports else ()
            tensors: dict[str, torch.Tensor] = dict(found)
        if self._groups.rank == 0:
            save_adapters(tensors, lora, Path(self._bridge.path), Path(directory))
        self._groups.agree("the export of the adapters")

    def save_critic(self, directory: Path) -> None:
        """The critic as a directory that critic.critic_load takes; see critic.py. Does nothing without one."""
        if self._critic is not None and self._groups.exports:
            self._critic.save_hf(Path(directory))
        self._groups.agree("the export of the critic")

    def save_checkpoint(self, directory: Path, extra: dict[str, Any]) -> Path:
        """Add a checkpoint of this version to ``directory`` and make it the latest; see checkpoint.py.

        extra: msgpack-able, returned by load_checkpoint. Keeps checkpoint.keep checkpoints. Returns the new one's path.
        """
        with self._parts.building():
            return self._begin_checkpoint(directory, extra, beside=False)()

    def begin_checkpoint(self, directory: Path, extra: dict[str, Any]) -> Callable[[], Path]:
        """See LearnerBackend; what is returned is a save_checkpoint of this version, whatever is trained meanwhile."""
        with self._parts.building():
            return self._begin_checkpoint(directory, extra, beside=True)

    def _begin_checkpoint(self, directory: Path, extra: dict[str, Any], *, beside: bool) -> Callable[[], Path]:
        state = LearnerState(self.version, extra, skipped_in_a_row=self._steps.skipped_in_a_row)
        return self._state.begin(Path(directory), state, keep=self.config.checkpoint.keep, beside=beside)

    def choose_checkpoint(self, directory: Path, forgotten: int) -> CheckpointChoice:
        """The newest sound checkpoint in ``directory``, of step ``forgotten`` or later; see checkpoint_choice.py."""
        return self._state.choose(Path(directory), forgotten)

    def load_checkpoint(self, directory: Path, *, verified: bool = False) -> dict[str, Any]:
        """Restore the latest checkpoint in ``directory`` (or the one it is). Returns its ``extra``.

        Raises CheckpointError: there is none, it is damaged (not looked for if ``verified``), or it has a critic and this run
        none, or the reverse. The number of ranks may differ from the one that saved it.
        """
        with self._parts.building():
            state = self._state.load(Path(directory), verified=verified)
        self.version, self._steps.skipped_in_a_row = state.version, state.skipped_in_a_row
        return state.extra

    def close(self) -> None:
        """Leave the process groups."""
        self._groups.close()
