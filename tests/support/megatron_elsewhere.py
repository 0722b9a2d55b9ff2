"""A checkpoint as a training of Megatron-LM's leaves it: its own strategy's files, its arguments among them, and a vocabulary
that was padded."""

from __future__ import annotations

import argparse
from pathlib import Path

from train_ranks import spawn
from train_support import make_config

from miles_async.config.layout import layout_of
from miles_async.train.ranks import Ranks

TP2 = {"num_ranks": 2, "tensor_parallel_size": 2}
ITERATION = 7


def two_ranks(rank: int, model: str, root: str) -> None:
    from miles_async.train.trainer import MegatronTrainer

    config = make_config(model, learner=TP2)
    trainer = MegatronTrainer(config, model, Ranks(rank, 2, f"file://{root}/meeting", layout_of(config.learner)))
    from megatron.core import dist_checkpointing

    directory = Path(root) / f"iter_{ITERATION:07d}"
    if rank == 0:
        directory.mkdir()
        (Path(root) / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))
    trainer._groups.agree("the directory")
    with trainer._parts.building():
        state = {
            "args": argparse.Namespace(padded_vocab_size=32, tensor_model_parallel_size=2),
            "checkpoint_version": 3.0,
            "iteration": ITERATION,
            **trainer._policy.model.sharded_state(is_loading=False),
        }
        dist_checkpointing.save(state, str(directory))
    trainer.close()


def written_elsewhere(root: Path, model: Path) -> None:
    root.mkdir()
    assert spawn(two_ranks, str(model), str(root)) == [0, 0]
