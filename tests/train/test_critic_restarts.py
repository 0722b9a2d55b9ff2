"""PPO's critic begins with the weights it is given, goes on bit for bit, and does so over two ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from critics import PPO, critic_weights
from train_ranks import batches, share, spawn
from train_support import Build, assert_close, assert_equal, make_checkpoint, make_config, make_groups

from miles_async.train.bridge import ModelError
from miles_async.train.checkpoint import CheckpointError
from miles_async.train.ranks import Ranks
from miles_async.train.trainer import MegatronTrainer


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"learner": {"use_distributed_optimizer": True}},
        {"model": {"dtype": "bfloat16"}},
        {"model": {"dtype": "bfloat16"}, "learner": {"use_distributed_optimizer": True}},
    ],
    ids=["float32", "float32-sharded", "bfloat16", "bfloat16-sharded"],
)
def test_a_restored_checkpoint_continues_bit_for_bit(
    build: Build, qwen3: Path, tmp_path: Path, sections: dict[str, Any]
) -> None:
    """With a policy that is an update behind its critic: each has a step count of its own."""
    sections = {**sections, "algorithm": PPO, "critic": {"num_critic_only_steps": 1, "critic_lr": 3e-3}}
    groups = [make_groups(2, 4, seed=seed) for seed in range(4)]
    trainer = build(qwen3, **sections)
    for batch in groups[:2]:
        trainer.step(batch)
    trainer.save_checkpoint(tmp_path / "checkpoints", {})
    expected = [trainer.step(batch) for batch in groups[2:]]
    weights, values = trainer.export(), critic_weights(trainer)
    trainer = build(qwen3, **sections)
    trainer.step(groups[3])  # any other state, to be overwritten
    trainer.load_checkpoint(tmp_path / "checkpoints")
    assert [trainer.step(batch) for batch in groups[2:]] == expected
    assert_equal(trainer.export(), weights)
    assert_equal(critic_weights(trainer), values)


def test_a_checkpoint_belongs_to_a_run_with_a_critic_or_to_one_without(
    build: Build, qwen3: Path, tmp_path: Path
) -> None:
    for theirs, ours, problem in (
        (PPO, {}, r"by a run with a critic, this run has none: algorithm\.advantage_estimator"),
        ({}, PPO, r"by a run without a critic, this run has one: algorithm\.advantage_estimator"),
    ):
        build(qwen3, algorithm=theirs).save_checkpoint(tmp_path / "checkpoints", {})
        trainer = build(qwen3, algorithm=ours)
        before = trainer.export()
        with pytest.raises(CheckpointError, match=problem):
            trainer.load_checkpoint(tmp_path / "checkpoints")
        assert_equal(trainer.export(), before)


def test_the_critic_begins_with_the_weights_of_critic_load(build: Build, qwen3: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", num_hidden_layers=1)
    trainer = build(qwen3, algorithm=PPO, critic={"critic_load": str(tmp_path / "other")})
    state = other.state_dict()
    ours = critic_weights(trainer)
    assert {name: bool(tensor.any()) for name, tensor in ours.items() if "head" in name} == {
        "head.weight": False,
        "head.bias": False,
    }
    assert_equal({n: t for n, t in ours.items() if "head" not in n}, {n: state[n] for n in ours if "head" not in n})
    make_checkpoint(tmp_path / "small", vocab_size=20)
    with pytest.raises(ModelError, match=r"vocabulary of 20 tokens, the policy one of 24: critic\.critic_load"):
        build(qwen3, algorithm=PPO, critic={"critic_load": str(tmp_path / "small")})


def rank_sections(sharded: bool) -> dict[str, Any]:
    return {
        "algorithm": PPO | {"lambd": 0.9, "normalize_advantages": True},
        "critic": {"num_critic_only_steps": 1, "critic_lr": 3e-3},
        "learner": {"use_distributed_optimizer": sharded, "max_tokens_per_micro_batch": 40},
    }


def on_two_ranks(rank: int, model: str, root: str) -> None:
    """What a spawned rank does, and writes down in ``rank-N.pt``."""
    seen: dict[bool, Any] = {}
    for sharded in (False, True):
        directory = Path(root) / f"sharded-{sharded}"
        config = make_config(model, **rank_sections(sharded))
        meeting = f"file://{root}/meeting-{sharded}"
        trainer = MegatronTrainer(config, model, Ranks(rank, 2, meeting))
        metrics = [trainer.step(share(groups, rank, 2)) for groups in batches()]
        trainer.save_checkpoint(directory, {})
        weights, critic = trainer.export(), critic_weights(trainer)
        after, critic_after = trainer.step(share(batches()[0], rank, 2)), critic_weights(trainer)
        trainer.load_checkpoint(directory)
        alike = trainer.step(share(batches()[0], rank, 2)) == after
        restored = critic_weights(trainer)
        alike &= all(torch.equal(tensor, restored[name]) for name, tensor in critic_after.items())
        seen[sharded] = {"metrics": metrics, "weights": weights, "critic": critic, "resumed_alike": alike}
        trainer.close()
    torch.save(seen, Path(root) / f"rank-{rank}.pt")


def test_two_ranks_train_as_one_and_go_on_bit_for_bit(build: Build, qwen3: Path, tmp_path: Path) -> None:
    assert spawn(on_two_ranks, str(qwen3), str(tmp_path)) == [0, 0]
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in (0, 1))
    one = build(qwen3, **rank_sections(False))
    expected = [one.step(groups) for groups in batches()]
    weights, critic = one.export(), critic_weights(one)
    for sharded in (False, True):
        assert first[sharded]["resumed_alike"] and second[sharded]["resumed_alike"]
        assert first[sharded]["metrics"] == second[sharded]["metrics"]
        assert_equal(first[sharded]["critic"], second[sharded]["critic"])
        for ours, theirs in zip(first[sharded]["metrics"], expected, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
        assert_close(first[sharded]["weights"], weights, 1e-6)
        assert_close(first[sharded]["critic"], critic, 1e-6)
        one = build(qwen3, **rank_sections(sharded))  # and one rank goes on with what two have written
        one.load_checkpoint(tmp_path / f"sharded-{sharded}")
        assert_equal(critic_weights(one), first[sharded]["critic"])
