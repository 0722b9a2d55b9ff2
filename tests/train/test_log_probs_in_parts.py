"""Log-probs in parts of a micro-batch are those of the whole, forward and backward, from no more logits than a part has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from train_support import Build, assert_close, make_checkpoint, make_groups

from miles_async.train.batch import whole_sequences

VOCABULARY = 104  # no other size of the model
ROWS = 8
OBJECTIVE = {"entropy_coef": 0.01, "use_kl_loss": True, "kl_loss_coef": 0.1}
# the layers that one process has by itself, and Megatron's own
LAYERS: dict[str, dict[str, Any]] = {"local": {}, "Megatron's": {"recompute_granularity": "full"}}


class _Widest(TorchDispatchMode):
    """The most rows of the vocabulary's width that any tensor had, but for the output layer's matrix."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden, self.rows = hidden, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for found in tree_leaves(result):
            if isinstance(found, torch.Tensor) and VOCABULARY in found.shape and self.hidden not in found.shape:
                self.rows = max(self.rows, found.numel() // VOCABULARY)
        return result


@contextmanager
def widest(hidden: int = 32) -> Iterator[_Widest]:
    with _Widest(hidden) as mode:
        yield mode


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layers", LAYERS)
def test_log_probs_in_parts_train_as_those_of_the_whole(build: Build, tmp_path: Path, layers: str, tied: bool) -> None:
    make_checkpoint(tmp_path / "model", tied=tied, vocab_size=VOCABULARY)
    seen, rows = [], []
    for size in (None, ROWS):
        learner = {**LAYERS[layers], "log_probs_chunk_size": size, "max_tokens_per_micro_batch": 100}
        trainer = build(tmp_path / "model", algorithm=OBJECTIVE, learner=learner)
        with widest() as mode:
            metrics = [trainer.step(make_groups(4, 4, seed=step)) for step in range(2)]
        rows.append(mode.rows)
        seen.append((metrics, trainer.export()))
    (metrics, weights), (of_parts, weights_of_parts) = seen
    for whole, parts in zip(metrics, of_parts, strict=True):
        assert parts == pytest.approx(whole, rel=1e-5, abs=1e-6)
    assert_close(weights_of_parts, weights, atol=2e-5)
    assert rows[1] <= ROWS < rows[0] / 3


def test_log_probs_of_a_bfloat16_model_are_computed_in_parts_too(build: Build, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", vocab_size=VOCABULARY)
    found = []
    for size in (None, ROWS):
        learner = {"log_probs_chunk_size": size, "recompute_granularity": "full"}
        trainer = build(tmp_path / "model", model={"dtype": "bfloat16"}, learner=learner)
        tokens = [torch.arange(23).numpy(), torch.arange(9).numpy()]
        with widest() as mode:
            found.append(trainer.log_probs(tokens, 0.7))
        assert size is None or 0 < mode.rows <= ROWS
        assert trainer.step(make_groups(4, 4))["grad_norm"] > 0
    for whole, parts in zip(*found, strict=True):
        assert parts == pytest.approx(whole, abs=0.02)


@pytest.mark.parametrize("layers", LAYERS)
def test_a_teachers_tokens_are_looked_up_in_parts_too(build: Build, tmp_path: Path, layers: str) -> None:
    make_checkpoint(tmp_path / "model", vocab_size=VOCABULARY)
    sequences = whole_sequences([torch.arange(23).numpy()])
    ids = torch.randint(0, VOCABULARY, (22, 3), generator=torch.Generator().manual_seed(0)).int().numpy()
    found = []
    for size in (None, ROWS):
        trainer = build(tmp_path / "model", learner={**LAYERS[layers], "log_probs_chunk_size": size})
        with widest() as mode:
            found.append(trainer._policy.of_tokens(sequences, ids))
        assert size is None or 0 < mode.rows <= ROWS
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-5, rtol=0)
    assert torch.equal(found[1][1], found[0][1])
