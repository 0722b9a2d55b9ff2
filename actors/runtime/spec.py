"""What a process needs to become an actor, and how an actor is addressed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from actors.runtime.site import ONE_MACHINE, Site
from miles_async.config.schema import RunConfig


@dataclass(frozen=True)
class ActorId:
    """One life of an actor: no two of a run have the same name and incarnation."""

    name: str
    incarnation: int

    def __str__(self) -> str:
        return f"{self.name}/{self.incarnation}"


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
    bus_url: str = field(repr=False)  # with its password
    run_id: str
    incarnation: int  # a number of the whole run's: 1 for the first launch, a greater one for each resume and restart
    site: Site = ONE_MACHINE  # the placement brings its own

    @property
    def id(self) -> ActorId:
        return ActorId(self.name, self.incarnation)
