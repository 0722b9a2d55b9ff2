"""What the Megatron learner on one rank writes: checkpoints that it goes on from bit for bit, and weights for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from train_support import Build, assert_equal, hf_log_probs, make_groups


def test_an_exported_tensor_is_a_snapshot(build: Build, qwen3_and_model):
    path, _ = qwen3_and_model
    trainer = build(path)
    snapshot = trainer.export()
    kept = {name: tensor.clone() for name, tensor in snapshot.items()}
    trainer.step(make_groups())
    assert_equal(snapshot, kept)
    assert any(not torch.equal(tensor, kept[name]) for name, tensor in trainer.export().items())
    assert all(tensor.is_contiguous() for tensor in snapshot.values())


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
    build: Build, qwen3_and_model, tmp_path: Path, sections: dict[str, Any]
):
    path, _ = qwen3_and_model
    batches = [make_groups(3, 4, seed=seed) for seed in range(4)]
    trainer = build(path, **sections)
    for groups in batches[:2]:
        trainer.step(groups)
    extra = {"ledger": {"position": 17, "epoch": 2}, "ids": ["0-1-0"]}
    trainer.save_checkpoint(tmp_path / "checkpoints", extra)
    expected = [trainer.step(groups) for groups in batches[2:]]
    weights = trainer.export()

    trainer = build(path, **sections)
    trainer.step(batches[3])  # any other state, to be overwritten
    assert trainer.load_checkpoint(tmp_path / "checkpoints") == extra
    assert trainer.version == 2
    assert [trainer.step(groups) for groups in batches[2:]] == expected
    assert_equal(trainer.export(), weights)


def test_a_checkpoint_of_version_0_is_like_any_other(build: Build, qwen3_and_model, tmp_path: Path):
    path, _ = qwen3_and_model
    trainer = build(path)
    trainer.save_checkpoint(tmp_path / "checkpoints", {})
    expected = trainer.step(make_groups())
    trainer = build(path)
    trainer.load_checkpoint(tmp_path / "checkpoints")
    assert (trainer.version, trainer.step(make_groups())) == (0, expected)


def test_the_export_directory_is_a_model_for_transformers(build: Build, qwen3_and_model, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    path, _ = qwen3_and_model
    (path / "tokenizer_config.json").write_text("{}")
    trainer = build(path)
    trainer.step(make_groups())
    for _ in range(2):  # the second replaces the first
        trainer.save_hf(tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32).eval()
    tokens = np.arange(2, 14)
    assert np.abs(trainer.log_probs([tokens], 1.0)[0] - hf_log_probs(model, tokens)).max() < 1e-5
    assert (tmp_path / "exported" / "tokenizer_config.json").is_file()
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".writing")] == []
