"""The real learner on a real bus; its model is a stand-in, so that it can fail at the moments that matter."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors.learner import Learner
from actors.runtime.context import ActorContext
from actors.runtime.spec import ActorSpec
from bus import Bus, Ledger
from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, pack, unpack
from bus.messages import Group, Sample, Ticket
from miles_async.config.schema import Checkpoint, Data, Model, Rollout, Run, RunConfig
from miles_async.train import checkpoint
from miles_async.train.checkpoint import LearnerState
from miles_async.train.checkpoint_choice import CheckpointChoice, choose

BATCH = 2


class PowerCut(RuntimeError):
    """What ends a learner in the middle of something."""


class StandInTrainer:
    """Counts versions, and dies where it is told to."""

    def __init__(self, *, fails_at_step: int = 0, fails_to_save: bool = False) -> None:
        self.version = 0
        self.trained: list[tuple[str, ...]] = []
        self.sizes: list[list[int]] = []  # of the mini-batches
        self.bounds: list[int] = []
        self.ticked: list[bool] = []  # whether the weights changed with it
        self.masks: list[list[list[int]]] = []  # of each step, of the first sample of each group
        self.fails_at_step, self.fails_to_save = fails_at_step, fails_to_save

    def step(self, groups: list[Group], *, max_lag: int, sizes: list[int], ticks: bool = True) -> dict[str, float]:
        if self.version + 1 == self.fails_at_step and ticks:
            raise PowerCut
        self.trained.append(tuple(group.group_id for group in groups))
        self.sizes.append(sizes)
        self.bounds.append(max_lag)
        self.masks.append([unpack(group.samples[0].loss_mask, MASK).tolist() for group in groups])
        self.version += ticks
        self.ticked.append(ticks)
        return {"raw_reward": 0.0, "n_samples": float(len(groups))}

    def save_checkpoint(self, directory: Path, extra: dict[str, Any]) -> None:
        if self.fails_to_save:
            raise PowerCut

    def close(self) -> None:
        """Nothing to leave."""


class FilingTrainer(StandInTrainer):
    """Its checkpoints are on disk: what is its version, and what it was given with it."""

    def save_checkpoint(self, directory: Path, extra: dict[str, Any]) -> None:
        writing = checkpoint.begin(directory, self.version)
        (writing / "shard").write_bytes(bytes(100))
        checkpoint.commit(directory, writing, LearnerState(self.version, extra), keep=2)

    def choose_checkpoint(self, directory: Path, forgotten: int) -> CheckpointChoice:
        return choose(directory, forgotten)

    def load_checkpoint(self, directory: Path, *, verified: bool) -> dict[str, Any]:
        assert verified
        state = checkpoint.read_state(directory)
        self.version = state.version
        return state.extra


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "_write_snapshot", lambda self, version: Path(f"v{version}"))


def make_learner(
    bus: Bus,
    run_dir: Path,
    trainer: StandInTrainer,
    monkeypatch: pytest.MonkeyPatch,
    model_path: str = "",
    **sections: Any,
) -> Learner:
    config = RunConfig(
        model=Model(hf_checkpoint="none"),
        data=Data(prompt_data="none"),
        **{
            "run": Run(num_steps=3),
            "rollout": Rollout(rollout_batch_size=BATCH),
            "checkpoint": Checkpoint(save_interval=100, save_hf=False),
            **sections,
        },
    )
    monkeypatch.setattr("actors.learner.make_backend", lambda *_: trainer)
    spec = ActorSpec("learner-0", "learner", 0, "", config, run_dir, model_path, "", bus.run_id, 1)
    return Learner(ActorContext(spec, bus))


async def publish(ledger: Ledger, count: int, *versions: int, version: int = 0) -> None:
    """``count`` more groups are ready; ``version`` sampled their only token, or ``versions`` theirs."""
    await ledger.prepare()
    start = (await ledger.open_groups()).next_position
    tickets = [Ticket(group_id=f"0-{start + i}-0", prompt_tokens=b"", sampling_seed=i) for i in range(count)]
    await ledger.admit(tickets, limit=10**6, position=start)
    for claimed in await ledger.next_tickets("w", "w/1", count, 60_000):
        assert await ledger.publish(made(claimed.ticket.group_id, *versions or (version,)), "w/1", 0.0)


def made(group_id: str, *versions: int) -> Group:
    """A group of one sample with one token for each version, or one of version 0."""
    versions = versions or (0,)
    sample = Sample(
        index=0,
        tokens=pack([1] * len(versions), TOKENS),
        logprobs=pack([-1.0] * len(versions), LOGPROBS),
        loss_mask=pack([1] * len(versions), MASK),
        versions=pack(versions, VERSIONS),
        reward=0.0,
        finish_reason="stop",
    )
    return Group(
        group_id=group_id, prompt_tokens=pack([1], TOKENS), samples=(sample,), worker="w", started=0.0, finished=0.0
    )


async def run(learner: Learner) -> None:
    async with asyncio.timeout(10):
        await learner.run()
