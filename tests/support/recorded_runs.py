"""What a run whose learner wrote down its batches (recording_learner.py) has to have done, whatever befell it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from launching import lags, left_behind, summary, trained_groups
from safetensors.torch import load_file, save_file
from train_ranks import spawn

from benchmarks.lib.group_files import read_groups
from miles_async.cli.load import load
from miles_async.config.layout import layout_of
from miles_async.train.ranks import Ranks


def check_that_nothing_is_lost_or_twice(run_dir: Path, steps: int | None, batch: int, max_lag: int) -> None:
    """``steps`` None: it was stopped, after however many."""
    found = summary(run_dir)
    assert found["status"] == ("stopped" if steps is None else "finished")
    steps = steps or found["steps"]
    assert found["steps"] == steps
    assert found["balanced"] and found["ledger"]["trained"] == steps * batch
    assert found["max_token_lag"] <= max_lag
    groups = trained_groups(run_dir)
    ids = [group.group_id for step in groups.values() for group in step]
    assert len(ids) == len(set(ids)) == steps * batch
    assert all(greatest <= max_lag for _, greatest in lags(run_dir).values())
    assert left_behind(run_dir) == []


def check_that_the_weights_are_those_of_the_recorded_batches(config_file: Path, run_dir: Path) -> None:
    """Training on the same batches, on as many ranks, without any interruption gives the same bits as ``run_dir`` has
    exported."""
    ranks = load(config_file, check=False).learner.num_ranks
    if ranks == 1:
        train_undisturbed(0, str(config_file), str(run_dir))
    else:
        assert spawn(train_undisturbed, str(config_file), str(run_dir), ranks=ranks) == [0] * ranks
    expected = load_file(run_dir / "undisturbed.safetensors")
    for name, tensor in load_file(run_dir / "hf" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


def train_undisturbed(rank: int, config_file: str, run_dir: str) -> None:
    """Leaves the weights of rank 0 in the run directory."""
    from miles_async.train.trainer import MegatronTrainer

    config, root = load(Path(config_file), check=False), Path(run_dir)
    layout, world = layout_of(config.learner), config.learner.num_ranks
    ranks = Ranks(rank, world, f"file://{root}/rendezvous-test", layout)
    trainer = MegatronTrainer(config, str(root / "inputs" / "model"), ranks)
    writer = next(other for other in range(world) if layout.replica(other, world) == ranks.dp_rank)
    for path in sorted((root / "trained").glob(f"*-{writer}")):
        trainer.step([*read_groups(path)])
    weights: dict[str, Any] = trainer.export()
    trainer.close()
    if rank == 0:
        save_file(weights, root / "undisturbed.safetensors")
