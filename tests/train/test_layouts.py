"""However many processes compute a model together, and in whatever way: metrics, log-probs and weights are those of one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from train_layouts import CASES, DENSE, MODEL, trained
from train_support import assert_equal, make_checkpoint

from miles_async.train.critic import value_head

ONE = {"num_ranks": 1}


FOUR = ("dp2 tp2", "pp2 cp2")  # each of a test by itself
# where it matters whether the output layer is the embedding's: on other ranks, or split with it
TIED = ("tp2 sp", "pp2 vpp2")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Any]:
    """For a model with tied embeddings or without: where it is, and what one process sees of it."""

    @cache
    def of(tied: bool) -> Any:
        root = tmp_path_factory.mktemp("layouts")
        make_checkpoint(root / "model", tied=tied, **MODEL)
        (seen,) = trained(root, root / "model", "one", ONE)
        return root, seen

    return of


@pytest.mark.parametrize(
    ("tied", "name"), [*((False, name) for name in DENSE if name not in FOUR), *((True, name) for name in TIED)]
)
def test_a_split_model_trains_as_a_whole_one(alone: Callable[[bool], Any], tied: bool, name: str) -> None:
    compare(*alone(tied), name)


def test_replicas_of_split_layers_train_as_a_whole_one(alone: Callable[[bool], Any]) -> None:
    compare(*alone(False), FOUR[0])


def test_stages_with_a_part_of_each_sequence_train_as_a_whole_one(alone: Callable[[bool], Any]) -> None:
    compare(*alone(False), FOUR[1])


def compare(root: Path, expected: Any, name: str) -> None:
    """Train in layout ``name``, and hold all that its ranks saw against what one process saw."""
    ranks = trained(root, root / "model", name.replace(" ", "-"), DENSE[name])
    assert_equal(ranks[0]["untrained"], expected["untrained"])  # what is exported has the bits that were loaded
    checkpoint = load_file(root / "model" / "model.safetensors")
    assert_equal({key: tensor for key, tensor in ranks[0]["untrained"].items() if key in checkpoint}, checkpoint)
    assert not any(seen["untrained"] for seen in ranks[1:])
    for case in CASES:
        of_case = [seen[case] for seen in ranks]
        for seen in of_case:
            assert seen["metrics"] == of_case[0]["metrics"], f"{case}: ranks disagree"
            for ours, theirs in zip(seen["log_probs"], expected[case]["log_probs"], strict=True):
                np.testing.assert_allclose(ours, theirs, atol=2e-4, err_msg=case)
        for ours, theirs in zip(of_case[0]["metrics"], expected[case]["metrics"], strict=True):
            assert ours.keys() == theirs.keys()
            for metric, value in theirs.items():
                assert ours[metric] == pytest.approx(value, rel=1e-4, abs=1e-5), f"{case}: {metric}"
        weights = of_case[0]["weights"]
        assert weights.keys() == expected[case]["weights"].keys()
        for tensor, value in weights.items():
            torch.testing.assert_close(value, expected[case]["weights"][tensor], atol=2e-4, rtol=0)
        assert not any(seen["weights"] for seen in of_case[1:])
    ours, theirs = value_head(root / f"{name.replace(' ', '-')}-critic"), value_head(root / "one-critic")
    assert ours is not None and theirs is not None
    for part in theirs:
        torch.testing.assert_close(ours[part], theirs[part], atol=2e-4, rtol=0)
