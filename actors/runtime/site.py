"""What an actor is told of where it runs: which address it binds and announces, where ranks meet, where snapshots may lie.

Promises: a role asks here, and writes no address of one machine and no path of its memory itself; a site travels in the
``ActorSpec``, and is a value. Whoever places actors elsewhere than on one machine brings a site of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from miles_async.config.schema import RunConfig

MEETINGS = "rendezvous-"  # files in the run directory where the ranks of one machine meet


class Site(Protocol):
    """Where the actors of a run are to each other."""

    @property
    def host(self) -> str:
        """The address on which what serves the run alone listens."""
        ...

    def announced(self, host: str) -> str:
        """The address under which the run's actors reach what listens here on ``host``."""
        ...

    def rendezvous(self, run_dir: Path, incarnation: int) -> str:
        """Where the learner ranks of one incarnation meet, as torch's ``init_method``."""
        ...

    def snapshot_root(self, config: RunConfig, run_dir: Path, n_bytes: int) -> Path:
        """Where the learner writes snapshots of so many bytes, so that those who send and load them see them.

        Raises SnapshotError.
        """
        ...


@dataclass(frozen=True)
class OneMachine:
    """All actors on this machine: nothing is open to others, and memory is as good as a disk that all of them see."""

    host: str = "127.0.0.1"

    def announced(self, host: str) -> str:
        """The same."""
        return host

    def rendezvous(self, run_dir: Path, incarnation: int) -> str:
        """A file, which every process of the machine sees."""
        return f"file://{run_dir / MEETINGS}{incarnation}"

    def snapshot_root(self, config: RunConfig, run_dir: Path, n_bytes: int) -> Path:
        """In memory, if there is room and the configuration does not say otherwise."""
        from miles_async.weights.snapshot import choose_root  # imports torch

        return choose_root(config, run_dir, n_bytes)


ONE_MACHINE = OneMachine()
