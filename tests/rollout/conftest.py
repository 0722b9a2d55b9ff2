"""Tiny models, and real engines that serve them: one for each test file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded_engines import EngineProcess, engines

from miles_async.models.builtin import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that knows the characters of a guessing game."""
    directory = tmp_path_factory.mktemp("guess")
    make_model("builtin:guess", directory, seed=1)
    return directory


@pytest.fixture(scope="module")
def engine_url(model: Path) -> Iterator[str]:
    with engines(model, 1) as (engine,):
        yield engine.url


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that knows printable characters."""
    directory = tmp_path_factory.mktemp("words")
    make_model("builtin:words", directory, seed=1)
    return directory


@pytest.fixture(scope="module")
def engine(words: Path) -> Iterator[EngineProcess]:
    with engines(words, 1) as (one,):
        yield one
