"""Each architecture that the learner knows trains on tensor-parallel ranks and in stages as in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from train_architectures import ARCHITECTURES, SPLITS, steps_of, train_all
from train_ranks import spawn
from train_support import Build, assert_close, assert_equal, make_checkpoint

from miles_async.models.support import LEARNER
from miles_async.train.ranks import alone


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where the models are, and what rank 0 saw of each in each split."""
    root: Path = tmp_path_factory.mktemp("architectures")
    for architecture, shape in ARCHITECTURES.items():
        make_checkpoint(root / architecture, architecture, tied=False, **shape)
    assert spawn(train_all, str(root)) == [0, 0]
    return root, torch.load(root / "architectures.pt", weights_only=False)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_split_model_of_each_architecture_trains_as_a_whole_one(split: Any, build: Build, architecture: str) -> None:
    root, seen = split
    expected = steps_of(build(root / architecture), alone(""))
    for name in SPLITS:
        found = seen[architecture, name]
        assert_equal(found["untrained"], load_file(root / architecture / "model.safetensors"))
        for ours, theirs in zip(found["metrics"], expected["metrics"], strict=True):
            assert ours.keys() == theirs.keys()
            for metric, value in theirs.items():
                assert ours[metric] == pytest.approx(value, rel=1e-4, abs=1e-5), f"{name}: {metric}"
        for ours, theirs in zip(found["log_probs"], expected["log_probs"], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-4, err_msg=name)
        assert found["weights"].keys() == expected["weights"].keys()
        assert_close(found["weights"], expected["weights"], atol=2e-4)
    moved = {name for name, was in expected["untrained"].items() if not torch.equal(was, expected["weights"][name])}
    assert {name for name in expected["untrained"] if not name.endswith("e_score_correction_bias")} == moved


def test_no_architecture_is_left_out() -> None:
    elsewhere = {"qwen3", "qwen3_moe", "deepseek_v3"}  # test_layouts.py, test_mixture_layouts.py
    assert {*ARCHITECTURES} | elsewhere == {*LEARNER.models}
