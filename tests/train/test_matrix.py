"""Every layout of a model, with each optimizer and each kind of training, beside one process: ``make matrix``.

How far they are apart is printed for each layout. Loss and gradient norm within 1e-5 for a dense model, 2e-4 for a mixture of
experts, of which each layout sums in another order; weights within 2e-4.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from train_layouts import DENSE, LATENT, MATRIX_CASES, MIXTURE, MODEL, SPARSE, apart, trained
from train_support import make_checkpoint

pytestmark = pytest.mark.matrix

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("qwen3", MODEL),
    "mixture": ("qwen3_moe", MIXTURE),
    "latent": ("deepseek_v3", LATENT),
}
LAYOUTS_OF = {
    "dense": ("dp2", "tp2", "tp2 sp", "pp2", "pp2 vpp2", "cp2", "tp2 pp2", "tp2 cp2", "dp2 tp2", "dp2 pp2", "pp2 cp2"),
    "mixture": ("ep2", "tp2 ep2", "pp2 ep2", "tp2 etp1", "dp2", "pp2", "cp2"),
    "latent": ("ep2", "tp2 ep2", "pp2 ep2", "cp2"),
}
LAYOUTS = [(kind, name) for kind, names in LAYOUTS_OF.items() for name in names]
CLOSE = {"dense": 1e-5, "mixture": 2e-4, "latent": 2e-4}
WEIGHTS_CLOSE = 2e-4


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """For each kind of model: where it is, and what one process sees of it."""

    @cache
    def of(kind: str) -> tuple[Path, dict[str, Any]]:
        root = tmp_path_factory.mktemp(kind)
        model_type, settings = MODELS[kind]
        make_checkpoint(root / "model", model_type, tied=False, **settings)
        (seen,) = trained(root, root / "model", "one", MATRIX_CASES)
        return root, seen

    return of


@pytest.mark.parametrize(("kind", "name"), LAYOUTS)
def test_every_layout_trains_as_one_process(alone: Any, kind: str, name: str) -> None:
    root, expected = alone(kind)
    ranks = trained(root, root / "model", name, MATRIX_CASES)
    for case in MATRIX_CASES:
        found = apart([seen[case] for seen in ranks], expected[case])
        print(f"{kind}, {name}, {case}: " + ", ".join(f"{what} {value:.1e}" for what, value in found.items()))
        for what, value in found.items():
            assert value <= (WEIGHTS_CLOSE if what == "weights" else CLOSE[kind]), f"{case}: {what}"


def test_the_matrix_is_of_every_layout_and_the_bounds_mean_something(alone: Any) -> None:
    """Nothing that a layout can be is left out, and three steps move every tensor by far more than layouts may differ."""
    assert {name for _, name in LAYOUTS} == {*DENSE, *SPARSE}
    for kind in CLOSE:
        expected = alone(kind)[1]
        for case in MATRIX_CASES:
            after = expected[case]["weights"]
            trained_on = {n: t for n, t in expected["untrained"].items() if not n.endswith("e_score_correction_bias")}
            moved = {name: float((after[name] - before).abs().max()) for name, before in trained_on.items()}
            assert min(moved.values()) > 10 * WEIGHTS_CLOSE, f"{kind}, {case}: {min(moved, key=lambda n: moved[n])}"
            assert all(metrics["kl_loss"] != 0 for metrics in expected[case]["metrics"][1:])
