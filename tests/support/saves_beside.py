"""What the ranks run that write a checkpoint while they train on. Each writes what it saw to ``NAME-rank-N.pt``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from train_ranks import batches, share, spawn
from train_support import make_config

from miles_async.config.layout import layout_of
from miles_async.train.ranks import Ranks

LEARNER = {"max_tokens_per_micro_batch": 40, "grad_reduce_timeout_s": 30.0, "num_ranks": 2}
KINDS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor_parallel_size": 2},
    "dp2, distributed optimizer": {"use_distributed_optimizer": True},
    "fsdp": {"train_backend": "fsdp"},
}


def written_beside(trainer: Any, root: Path, steps: list[Callable[[], Any]], *, late: bool) -> dict[str, Any]:
    """What the weights were when the checkpoint was begun and what ``steps`` gave while it was written; again, from it. late:
    this rank writes only when its first step is made."""
    write = trainer.begin_checkpoint(root, {"position": trainer.version})
    weights, may_write = trainer.export(), threading.Event()
    with ThreadPoolExecutor(1) as thread:
        path = thread.submit(lambda: may_write.wait(60) and write())
        if not late:
            may_write.set()
        first = [steps[0]()]
        may_write.set()
        first += [step() for step in steps[1:]]
        assert path.result().parent == root
    after = trainer.export()
    extra = trainer.load_checkpoint(root)
    found = {"extra": extra, "weights": weights, "restored": trainer.export(), "first": first, "after": after}
    return found | {"again": [step() for step in steps], "after again": trainer.export()}


def two_ranks(rank: int, model: str, root: str) -> None:
    from miles_async.train.fsdp_trainer import FsdpTrainer
    from miles_async.train.trainer import MegatronTrainer

    seen: dict[str, Any] = {}
    for number, (kind, learner) in enumerate(KINDS.items()):
        config = make_config(model, learner=LEARNER | learner, checkpoint={"async_save": True})
        ranks = Ranks(rank, 2, f"file://{root}/meeting-{number}", layout_of(config.learner))
        trainer: Any = (FsdpTrainer if kind == "fsdp" else MegatronTrainer)(config, model, ranks)
        mine = [share(groups, ranks.dp_rank, ranks.dp_size) for groups in batches()]
        trainer.step(mine[0])
        steps = [lambda groups=groups, t=trainer: t.step(groups) for groups in mine[1:]]
        seen[kind] = written_beside(trainer, Path(root) / f"checkpoints-{number}", steps, late=rank == 1)
        trainer.close()
    torch.save(seen, Path(root) / f"beside-rank-{rank}.pt")


def seen_by_two(root: Path, model: Path) -> list[dict[str, Any]]:
    """What each of them saw; nothing where one of them failed."""
    if spawn(two_ranks, str(model), str(root)) != [0, 0]:
        return []
    return [torch.load(root / f"beside-rank-{rank}.pt", weights_only=False) for rank in (0, 1)]
