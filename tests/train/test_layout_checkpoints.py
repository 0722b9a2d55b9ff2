"""A checkpoint is of the model, not of the processes that held it: saved in one layout, it goes on in another, with the state
of the optimizer, as if it had been there all along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from train_layouts import MODEL, OPTIMIZERS, SAVED, saved
from train_support import make_checkpoint


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where one of each layout lies, and what one process did after its own."""
    root: Path = tmp_path_factory.mktemp("layouts")
    make_checkpoint(root / "model", tied=False, **MODEL)
    return root, {name: saved(root, root / "model", name) for name in SAVED}["one"]


@pytest.mark.parametrize("name", SAVED)
def test_a_checkpoint_of_any_layout_goes_on_in_any_other(checkpoints: Any, name: str) -> None:
    root, expected = checkpoints
    resumed = saved(root, root / "model", name, SAVED)
    for kind in OPTIMIZERS:
        for source in SAVED:
            found = resumed[f"{kind} from {source.replace(' ', '-')}"]
            assert found["extra"] == {"by": source.replace(" ", "-")}
            for ours, theirs in zip(found["metrics"], expected[kind]["metrics"], strict=True):
                for metric, value in theirs.items():
                    assert ours[metric] == pytest.approx(value, rel=1e-4, abs=1e-5), f"{kind}, {source}: {metric}"
            assert found["weights"].keys() == expected[kind]["weights"].keys()
            for tensor, value in found["weights"].items():
                torch.testing.assert_close(value, expected[kind]["weights"][tensor], atol=2e-4, rtol=0)
