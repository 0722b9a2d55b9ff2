"""However many processes hold a model with adapters, and in whatever way, these are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_layouts import LAYOUTS, LORA, adapters_in, batch, gone_on, seen_of
from train_layouts import MODEL
from train_support import Build, assert_close, assert_equal, make_checkpoint, trainers

from miles_async.train.ranks import alone


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where all lies, what one process saw after its checkpoint, and what each layout saw that went on from there."""
    root: Path = tmp_path_factory.mktemp("lora")
    model = root / "model"
    make_checkpoint(model, tied=False, **MODEL)
    one = alone("")
    with trainers(root) as build:
        trainer = build(model, learner=LORA)
        trainer.save_adapters(root / "one-untrained")
        for step in range(2):
            trainer.step(batch(step, one))
        trainer.save_checkpoint(root / "one", {})
        seen = seen_of(trainer, one, root / "one-adapters")
    return root, seen, gone_on(root, model, LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_adapters_of_a_split_model_train_as_those_of_a_whole_one(compared: Any, build: Build, name: str) -> None:
    root, expected, layouts = compared
    found, plain = layouts[name], name.replace(" ", "-")
    assert_equal(adapters_in(root / f"{plain}-untrained"), adapters_in(root / "one-untrained"))
    for ours, theirs in zip(found["metrics"], expected["metrics"], strict=True):
        for metric, value in theirs.items():
            assert ours[metric] == pytest.approx(value, rel=1e-4, abs=1e-5), metric
    for ours, theirs in zip(found["log_probs"], expected["log_probs"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
    assert_close(found["weights"], expected["weights"], atol=2e-4)
    ours, theirs = adapters_in(root / f"{plain}-adapters"), adapters_in(root / "one-adapters")
    assert ours.keys() == theirs.keys()
    assert_close(ours, theirs, atol=2e-4)
    trainer = build(root / "model", learner=LORA)  # one process takes them over
    trainer.load_checkpoint(root / f"{plain}-checkpoint")
    assert_close(trainer.export(), found["weights"], atol=1e-6)


def test_the_sizes_of_the_comparison_mean_something(compared: Any) -> None:
    """The adapters moved by far more than the layouts may differ."""
    root, expected, _ = compared
    before, after = adapters_in(root / "one-untrained"), adapters_in(root / "one-adapters")
    assert all(float((after[name] - before[name]).abs().max()) > 5e-3 for name in after)
    assert torch.isfinite(torch.tensor([m["grad_norm"] for m in expected["metrics"]])).all()
