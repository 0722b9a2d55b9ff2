"""A learner backend from outside of the package: it learns nothing, and does the rest without Megatron."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save_file

from bus.messages import Group
from miles_async.config.schema import RunConfig
from miles_async.train.backend import LearnerBackend
from miles_async.train.checkpoint_choice import CheckpointChoice
from miles_async.train.ranks import Ranks


class FrozenBackend(LearnerBackend):
    """The weights that it was made with, at every version."""

    def __init__(self, config: RunConfig, model_path: str, ranks: Ranks) -> None:
        self.config, self.ranks, self.version = config, ranks, 0
        self._weights = load_file(Path(model_path) / "model.safetensors")

    def step(
        self, groups: Sequence[Group], *, max_lag: int | None = None, sizes: Sequence[int] | None = None
    ) -> dict[str, float]:
        self.version += 1
        rewards = [sample.reward for group in groups for sample in group.samples]
        return {"raw_reward": sum(rewards) / len(rewards), "frozen": 1.0}

    def export(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self._weights.items()}

    def save_hf(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        save_file(self._weights, directory / "model.safetensors")

    def save_critic(self, directory: Path) -> None:
        """It has none."""

    def save_checkpoint(self, directory: Path, extra: dict[str, Any]) -> Path:
        path = directory / f"{self.version:05d}.json"
        directory.mkdir(exist_ok=True)
        path.write_bytes(msgspec.json.encode(extra))
        return path

    def choose_checkpoint(self, directory: Path, forgotten: int) -> CheckpointChoice:
        return CheckpointChoice(str(max(directory.glob("*.json"), default="")) or None)

    def load_checkpoint(self, directory: Path, *, verified: bool = False) -> dict[str, Any]:
        extra = json.loads(directory.read_bytes())
        self.version = extra["version"]
        return extra

    def close(self) -> None:
        """It is in no group."""
