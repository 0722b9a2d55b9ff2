"""Where the payloads of a run's groups lie, by its configuration."""

from __future__ import annotations

from pathlib import Path

from bus.payloads import InDirectory, InRedis, PayloadStore
from miles_async.config.schema import RunConfig


def payload_store(config: RunConfig, run_id: str) -> PayloadStore:
    """The one of all actors of the run that publish groups or fetch them."""
    directory = config.bus.payload_dir
    return InRedis() if directory is None else InDirectory(Path(directory) / run_id)
