"""A stage for the actors that bring weights to engines, and a pair of real engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from embedded_engines import EngineProcess, engines
from weights_stage import Stage

from bus import Bus


@pytest.fixture
def stage(bus: Bus, digits_model: Path, tmp_path: Path) -> Stage:
    return Stage(bus, digits_model, tmp_path)


@pytest.fixture(scope="module")
def pair(digits_model: Path) -> Iterator[list[EngineProcess]]:
    with engines(digits_model, 2) as started:
        yield started
