"""However many processes hold the experts of a mixture, and in whatever way: metrics, log-probs and weights are those of one;
and a checkpoint is of the model, not of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from train_layouts import CASES_OF_MIXTURE, CRITIC, LATENT, MIXTURE, OPTIMIZERS, SPARSE, compare, saved, trained
from train_support import make_checkpoint

FOUR = "pp2 ep2"  # of a test by itself
OF_BIASES = {"moving biases": {"learner": {"moe_router_bias_update_rate": 0.01}, **CRITIC}}
# which layouts go on from one another's checkpoints; in the second one of the latter model the first stage has no experts
SAVED = {"qwen3_moe": (MIXTURE, ("one", "ep2")), "deepseek_v3": (LATENT, ("one", FOUR))}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where the model is, and what one process sees of it."""
    root = tmp_path_factory.mktemp("layouts")
    make_checkpoint(root / "model", "qwen3_moe", tied=False, **MIXTURE)
    (seen,) = trained(root, root / "model", "one", CASES_OF_MIXTURE)
    return root, seen


@pytest.mark.parametrize("name", [name for name in SPARSE if name != FOUR])
def test_a_mixture_whose_experts_are_split_trains_as_a_whole_one(alone: Any, name: str) -> None:
    compare(*alone, name, CASES_OF_MIXTURE)


def test_stages_whose_experts_are_split_train_as_a_whole_one(alone: Any) -> None:
    compare(*alone, FOUR, CASES_OF_MIXTURE)


def test_a_mixture_with_latent_attention_and_biases_trains_on_several_processes_as_on_one(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", "deepseek_v3", tied=False, **LATENT)
    (seen,) = trained(tmp_path, tmp_path / "model", "one", OF_BIASES)
    for name in ("tp2 ep2", FOUR):  # in the latter the first stage has no experts
        compare(tmp_path, seen, name, OF_BIASES)


@pytest.mark.parametrize("model_type", SAVED)
def test_a_checkpoint_of_a_mixture_goes_on_with_its_experts_on_any_number_of_processes(
    model_type: str, tmp_path: Path
) -> None:
    settings, names = SAVED[model_type]
    make_checkpoint(tmp_path / "model", model_type, tied=False, **settings)
    expected = {name: saved(tmp_path, tmp_path / "model", name) for name in names}["one"]
    for name in names:
        resumed = saved(tmp_path, tmp_path / "model", name, names)
        for kind in OPTIMIZERS:
            for source in names:
                found = resumed[f"{kind} from {source.replace(' ', '-')}"]
                for ours, theirs in zip(found["metrics"], expected[kind]["metrics"], strict=True):
                    for metric, value in theirs.items():
                        assert ours[metric] == pytest.approx(value, rel=1e-4, abs=1e-5), f"{kind}, {source}: {metric}"
                for tensor, value in expected[kind]["weights"].items():
                    torch.testing.assert_close(found["weights"][tensor], value, atol=2e-4, rtol=0)
