"""A tiny checkpoint for each test file, and trainers from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from train_support import Build, make_checkpoint, trainers


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    with trainers(tmp_path) as make:
        yield make


@pytest.fixture(scope="module")
def qwen3_and_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The checkpoint's directory, and its model in transformers."""
    path = tmp_path_factory.mktemp("qwen3")
    return path, make_checkpoint(path)


@pytest.fixture(scope="module")
def qwen3(qwen3_and_model: tuple[Path, Any]) -> Path:
    return qwen3_and_model[0]
