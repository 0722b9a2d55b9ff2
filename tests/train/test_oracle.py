"""Losses and gradients of a split model are those of a plain loop in float64, for every estimator and every policy loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from train_oracle import CASES, LAYOUTS, Oracle, configuration, make_models, step_everywhere
from train_ranks import spawn
from train_support import assert_close, make_groups

from miles_async.rl.builtin import table


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where the models are, the loop, and what the ranks saw."""
    root: Path = tmp_path_factory.mktemp("oracle")
    models = make_models(root)
    groups = make_groups(4, 4, policy=models["model"])
    codes = spawn(step_everywhere, str(root), groups)
    assert codes == [0, 0]
    seen = [torch.load(root / f"oracle-rank-{rank}.pt", weights_only=False) for rank in range(2)]
    return root, Oracle(models, groups), seen


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradient_of_a_split_model_are_the_loops(found: Any, layout: str, case: str) -> None:
    root, oracle, seen = found
    (metrics, gradient), (of_other_rank, _) = (rank[layout, case] for rank in seen)
    expected, slopes = oracle.step(configuration(root, case, LAYOUTS[layout]))
    assert metrics == of_other_rank
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert 0 < metrics["pg_clipfrac"] < 1
    assert gradient.keys() == slopes.keys()
    assert_close({name: tensor.double() for name, tensor in gradient.items()}, slopes, atol=2e-6)
    assert max(float(tensor.abs().max()) for tensor in slopes.values()) > 5e-3


def test_every_estimator_and_every_policy_loss_is_among_the_cases() -> None:
    assert {case["advantage_estimator"] for case in CASES.values()} == set(table.ESTIMATORS)
    assert {case["policy_loss"] for case in CASES.values()} - {None} == set(table.POLICY_LOSSES)
