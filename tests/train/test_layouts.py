"""However many processes compute a model together, and in whatever way: metrics, log-probs and weights are those of one.

Each way by itself, and those of them together that share code; ``make matrix`` has all."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from train_layouts import DENSE, MODEL, compare, trained
from train_support import make_checkpoint

FOUR = ("dp2 tp2", "pp2 cp2")  # each of a test by itself
TOGETHER = ("tp2 cp2", "dp2 pp2")  # of `make matrix`
# where it matters whether the output layer is the embedding's: on other ranks, or split with it
TIED = ("tp2 sp", "pp2 vpp2")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Any]:
    """For a model with tied embeddings or without: where it is, and what one process sees of it."""

    @cache
    def of(tied: bool) -> Any:
        root = tmp_path_factory.mktemp("layouts")
        make_checkpoint(root / "model", tied=tied, **MODEL)
        (seen,) = trained(root, root / "model", "one")
        return root, seen

    return of


@pytest.mark.parametrize(
    ("tied", "name"),
    [*((False, name) for name in DENSE if name not in (*FOUR, *TOGETHER)), *((True, name) for name in TIED)],
)
def test_a_split_model_trains_as_a_whole_one(alone: Callable[[bool], Any], tied: bool, name: str) -> None:
    compare(*alone(tied), name)


def test_replicas_of_split_layers_train_as_a_whole_one(alone: Callable[[bool], Any]) -> None:
    compare(*alone(False), FOUR[0])


def test_stages_with_a_part_of_each_sequence_train_as_a_whole_one(alone: Callable[[bool], Any]) -> None:
    compare(*alone(False), FOUR[1])
