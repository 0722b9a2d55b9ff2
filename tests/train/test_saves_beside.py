"""A checkpoint that is written while steps are trained is one of the version that it was begun at, bit for bit, on one rank and
on several, whose writers' collectives are not those of the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from saves_beside import KINDS, seen_by_two, written_beside
from train_support import Build, assert_equal, make_checkpoint, make_groups

ALL = {
    "algorithm": {"advantage_estimator": "ppo", "keep_old_actor": True, "use_kl_loss": True, "ref_update_interval": 1},
    "staleness": {"max_lag": 2},
}
SECTIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, distributed optimizer": {"learner": {"use_distributed_optimizer": True}},
    "bfloat16": {"model": {"dtype": "bfloat16"}},
    "adapters": {"learner": {"lora_rank": 4, "lora_alpha": 8.0, "lr": 1e-2}},
    "critic, reference, earlier versions": ALL,
}


def as_it_was(seen: dict[str, Any]) -> None:
    assert seen["extra"] == {"position": 1}
    assert_equal(seen["restored"], seen["weights"])
    assert seen["again"] == seen["first"]
    assert_equal(seen["after again"], seen["after"])


@pytest.mark.parametrize("sections", SECTIONS.values(), ids=SECTIONS)
def test_what_is_written_beside_steps_is_what_the_learner_was_when_it_was_begun(
    build: Build, qwen3_and_model: Any, tmp_path: Path, sections: dict[str, Any]
) -> None:
    path, _ = qwen3_and_model
    trainer = build(path, **sections, checkpoint={"async_save": True})
    trainer.step(make_groups(3, 4, seed=0))
    steps = [lambda seed=seed: trainer.step(make_groups(3, 4, seed=seed, version=1)) for seed in (1, 2)]
    as_it_was(written_beside(trainer, tmp_path / "checkpoints", steps, late=True))


def test_a_copy_is_one_of_what_this_rank_writes_and_is_let_go_of_when_it_is_written(
    build: Build, qwen3_and_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = qwen3_and_model
    trainer = build(path, checkpoint={"async_save": True})
    from miles_async.train import dist_save  # once a trainer is there, Megatron can be imported

    kept: list[Any] = []
    keep = dist_save._Writer.keep
    monkeypatch.setattr(dist_save._Writer, "keep", lambda writer: (keep(writer), kept.append(writer)))
    trainer.save_checkpoint(tmp_path / "checkpoints", {})
    assert kept == []  # a save that the step waits for needs no copy
    write = trainer.begin_checkpoint(tmp_path / "checkpoints", {})
    (writer,) = kept
    copied = sum(data.untyped_storage().nbytes() for _, data in writer._items if hasattr(data, "untyped_storage"))
    parameters = sum(tensor.numel() * 4 for tensor in trainer._policy.model.modules[0].parameters())
    assert copied == pytest.approx(3 * parameters, rel=0.01)  # weights and Adam's two moments
    write()
    assert writer._items == []


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    root = tmp_path_factory.mktemp("beside")
    make_checkpoint(root / "model", tied=False)
    return seen_by_two(root, root / "model")


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_that_write_at_different_moments_of_a_step_write_one_checkpoint(
    two: list[dict[str, Any]], kind: str
) -> None:
    assert len(two) == 2
    for seen in (rank[kind] for rank in two):
        as_it_was(seen)
    assert two[0][kind]["first"] == two[1][kind]["first"]
