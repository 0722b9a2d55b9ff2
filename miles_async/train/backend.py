"""What trains a learner's weights, as ``actors/learner.py`` sees it: the protocol, and the table of those that there are.

Promises: importing this file costs no torch; a backend of the user's that raises where it is made, or lacks a method, is a
HookFailed that names ``learner.train_backend``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bus.messages import Group
from miles_async.config.schema import RunConfig
from miles_async.hooks.calls import called, refused
from miles_async.hooks.hook import Hook
from miles_async.train.checkpoint_choice import Choice
from miles_async.train.ranks import Ranks

if TYPE_CHECKING:
    import torch

METHODS = (
    "step",
    "export",
    "save_hf",
    "save_critic",
    "save_checkpoint",
    "choose_checkpoint",
    "load_checkpoint",
    "close",
)


class LearnerBackend(Protocol):
    """The weights of one learner process, and what is done with them.

    Made by ``make(config, model_path, ranks)``: model_path is a Hugging Face directory. All methods are collective over ranks,
    in the same order; any thread may call them, one at a time. ``version``: the number of batches behind the weights.
    """

    version: int

    def step(
        self, groups: Sequence[Group], *, max_lag: int | None = None, sizes: Sequence[int] | None = None
    ) -> dict[str, float]:
        """Train one batch, of which ``groups`` are this replica's, and be of the next version.

        max_lag: versions that a token may be behind the weights; None: staleness.max_lag. sizes: how many of the groups are of
        each optimizer step of a pass; None: equally many. Returns metrics over all ranks, ``raw_reward`` among them. Raises,
        with the weights unchanged, what actors/learner_share.py makes of it: train.intake.LagExceeded,
        train.checked_batch.UnusableGroups and train.batch.BatchRefused.
        """
        ...

    def export(self) -> Mapping[str, torch.Tensor]:
        """Hugging Face name to a copy on the CPU that later steps do not change. Empty on every rank but 0."""
        ...

    def save_hf(self, directory: Path) -> None:
        """The weights as a directory that transformers loads."""
        ...

    def save_critic(self, directory: Path) -> None:
        """The critic as a directory that critic.critic_load takes; nothing where there is none."""
        ...

    def save_checkpoint(self, directory: Path, extra: dict[str, Any]) -> Path:
        """Add a checkpoint of this version below ``directory``, durable when this returns its path. extra: msgpack-able."""
        ...

    def choose_checkpoint(self, directory: Path, forgotten: int) -> Choice:
        """The newest sound checkpoint below ``directory``, of step ``forgotten`` or later; the same on all ranks."""
        ...

    def load_checkpoint(self, directory: Path, *, verified: bool = False) -> dict[str, Any]:
        """Go on from that checkpoint, bit for bit; returns its ``extra``."""
        ...

    def close(self) -> None:
        """Leave the process groups."""
        ...


TRAIN_BACKEND = Hook(
    "learner.train_backend",
    ("config", "model_path", "ranks"),
    returns="a train.backend.LearnerBackend",
    default="megatron",
    built_in={"megatron": "miles_async.train.trainer.MegatronTrainer"},
)


def make_backend(config: RunConfig, model_path: str, ranks: Ranks) -> LearnerBackend:
    """The backend that ``learner.train_backend`` names. Raises HookError, HookFailed, and what a built-in one raises."""
    name = config.learner.train_backend
    make = TRAIN_BACKEND.load(name)
    if name in TRAIN_BACKEND.built_in:
        return make(config, model_path, ranks)
    found = called(TRAIN_BACKEND, make, config, model_path, ranks)
    missing = [method for method in METHODS if not callable(getattr(found, method, None))]
    if missing or not isinstance(getattr(found, "version", None), int):
        lacks = f"no {' and no '.join(missing)}" if missing else "no version, a whole number"
        raise refused(TRAIN_BACKEND, make, found, f"{TRAIN_BACKEND.returns}: it has {lacks}")
    return found
