"""What a process needs to become an actor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from miles_async.config.schema import RunConfig


@dataclass(frozen=True)
class ActorSpec:
    """One actor of one launch."""

    name: str
    role: str
    index: int
    path: str  # dotted path of the class
    config: RunConfig
    run_dir: Path
    model_path: str
    bus_url: str
    run_id: str
    incarnation: int  # of the whole run: 1 for the first launch, +1 for each resume
