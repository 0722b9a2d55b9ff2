"""What the learner computes is held against transformers: a model that is right passes, one that is a little wrong does not."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from train_support import make_checkpoint

from miles_async.models.support import read_config_json
from miles_async.train.bridge import ModelBridge
from miles_async.train.parity import BOUND, compare, first_layers


@pytest.mark.parametrize("kind", ["qwen3", "qwen2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_model_that_the_learner_knows_is_transformers_own(tmp_path: Path, kind: str, tied: bool) -> None:
    make_checkpoint(tmp_path / "model", kind, tied=tied)
    found = compare(tmp_path / "model")
    assert found.same and found.difference < 1e-5
    assert (found.layers, found.all_layers) == (2, 2) and found.tokens == 4 * 47


@pytest.mark.parametrize("wrong", [{"layernorm_epsilon": 0.1}, {"rotary_interleaved": True}])
def test_a_model_that_computes_something_else_is_told(tmp_path: Path, wrong: dict[str, object]) -> None:
    make_checkpoint(tmp_path / "model")
    found = compare(tmp_path / "model", partial(ModelBridge, settings=wrong))
    assert not found.same and found.difference > BOUND


def test_of_a_model_that_does_not_fit_the_first_layers_are_compared(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", num_hidden_layers=6)
    raw = read_config_json(tmp_path / "model")
    size = sum(file.stat().st_size for file in (tmp_path / "model").glob("*.safetensors"))
    with first_layers(tmp_path / "model", raw, most=size // 2) as (directory, layers):
        found = compare(directory)
    assert layers == found.layers == 3 and found.same
