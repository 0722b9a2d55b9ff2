"""What two ranks do that hold their weights over a batch; rank 0 writes what it saw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from train_ranks import share
from train_support import make_config, make_groups

from bus.messages import Group
from miles_async.train.ranks import Ranks

# equally many samples in each batch: the mean of two means is the mean over both
SECTIONS: dict[str, dict[str, Any]] = {
    "megatron": {"algorithm": {"loss_aggregation": "sample"}, "learner": {"use_distributed_optimizer": True}},
    "fsdp": {"algorithm": {"loss_aggregation": "sample"}, "learner": {"train_backend": "fsdp"}},
}


def halves() -> tuple[list[Group], list[Group]]:
    return make_groups(4, 4, seed=0), make_groups(4, 4, seed=2)


def hold_on_two_ranks(rank: int, model: str, root: str) -> None:
    from miles_async.train.fsdp_trainer import FsdpTrainer
    from miles_async.train.trainer import MegatronTrainer

    seen: dict[str, Any] = {}
    for name, kind in (("megatron", MegatronTrainer), ("fsdp", FsdpTrainer)):
        trainer = kind(make_config(model, **SECTIONS[name]), model, Ranks(rank, 2, f"file://{root}/meeting-{name}"))
        first, second = (share(groups, rank, 2) for groups in halves())
        metrics = [trainer.step(first, ticks=False), trainer.step(second)]
        seen[name] = {"metrics": metrics, "weights": trainer.export(), "version": trainer.version}
        trainer.close()
    if rank == 0:
        torch.save(seen, Path(root) / "held.pt")
