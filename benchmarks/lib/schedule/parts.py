"""What a run of ``bench schedule`` has in the place of a model: engines that generate by a trace, a learner that waits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file

from benchmarks.lib.schedule.trace import from_environment
from benchmarks.lib.synthetic.batch import Latency
from benchmarks.lib.synthetic_engine import SyntheticEngine
from bus.codec import MASK, VERSIONS, unpack
from bus.messages import Group
from miles_async.config.schema import RunConfig
from miles_async.engines.kinds.base import EngineHost, EngineKind
from miles_async.text.tokenizer import Tokenizer
from miles_async.train.backend import LearnerBackend
from miles_async.train.checkpoint_choice import CheckpointChoice
from miles_async.train.ranks import Ranks

MAX_RUNNING = 1 << 16  # the workers' slots are the bound


class TracedEngine(EngineKind):
    """A synthetic engine whose every token takes as long, and whose responses are as long as the trace says."""

    def engine(self, host: EngineHost) -> SyntheticEngine:
        """What it runs."""
        trace = from_environment()
        return SyntheticEngine(
            host.name,
            latency=Latency(trace.token_s, 0.0, 0.0),
            lengths=trace,
            max_running_requests=MAX_RUNNING,
            vocab_size=Tokenizer(host.model_path).vocab_size,
            update_s=trace.update_s,
        )

    async def host(self, host: EngineHost) -> None:
        engine = self.engine(host)
        await engine.start()
        try:
            await host.announce(engine.url)
            await host.stop.wait()
        finally:
            engine.die()


class WaitingLearner(LearnerBackend):
    """Waits for as long as a step takes; its weights stay what they were."""

    def __init__(self, config: RunConfig, model_path: str, ranks: Ranks) -> None:
        self.version = 0
        self._weights = load_file(Path(model_path) / "model.safetensors")

    HOLDS = True

    def seconds(self, groups: Sequence[Group]) -> float:
        """That the next step takes."""
        return from_environment().train_s(self.version + 1)

    def step(
        self,
        groups: Sequence[Group],
        *,
        max_lag: int | None = None,
        sizes: Sequence[int] | None = None,
        ticks: bool = True,
    ) -> dict[str, float]:
        version = self.version
        time.sleep(self.seconds(groups))
        self.version += ticks
        samples = [sample for group in groups for sample in group.samples]
        trained = [unpack(s.versions, VERSIONS)[unpack(s.loss_mask, MASK) != 0] for s in samples]
        oldest = min((int(versions.min()) for versions in trained if len(versions)), default=version)
        reward = sum(sample.reward for sample in samples) / len(samples)
        return {"raw_reward": reward, "max_token_lag": float(version - oldest), "n_samples": float(len(samples))}

    def export(self) -> dict[str, torch.Tensor]:
        return self._weights

    def save_hf(self, directory: Path) -> None:
        """Nobody asks for it."""

    def save_critic(self, directory: Path) -> None:
        """It has none."""

    def save_checkpoint(self, directory: Path, extra: dict[str, Any]) -> Path:
        directory.mkdir(exist_ok=True)
        path = directory / f"{self.version:05d}.json"
        path.write_bytes(msgspec.json.encode(extra))
        return path

    def choose_checkpoint(self, directory: Path, forgotten: int) -> CheckpointChoice:
        return CheckpointChoice()

    def load_checkpoint(self, directory: Path, *, verified: bool = False) -> dict[str, Any]:
        raise NotImplementedError("a benchmark's run is not gone on with")

    def close(self) -> None:
        """It is in no group."""
