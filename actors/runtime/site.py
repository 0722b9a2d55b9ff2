"""What an actor is told of where it runs: which address it binds and announces, where ranks meet, where snapshots may lie.

Promises: a role asks here, and writes no address of one machine and no path of its memory itself; a site travels in the
``ActorSpec``, and is a value: what differs from machine to machine is found by the actor's own process (``many_machines.py``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from actors.runtime.own_address import interface_of
from bus import Bus
from miles_async.config.loopback import is_loopback
from miles_async.config.schema import RunConfig
from miles_async.engines.kinds.table import kind_of
from miles_async.weights.interface import collectives_over

LOOPBACK = "127.0.0.1"
MEETINGS = "rendezvous-"  # files in the run directory where the ranks of one machine meet


class Rank(NamedTuple):
    """One of the learner's, in one life, that is to meet the others within ``deadline_s`` (seconds)."""

    rank: int
    incarnation: int
    deadline_s: float


class Site(Protocol):
    """Where the actors of a run are to each other."""

    @property
    def host(self) -> str:
        """The address on which what serves the run alone listens."""
        ...

    def listens(self, host: str) -> str:
        """The address that what is to listen on ``host``, by the configuration, binds here."""
        ...

    def announced(self, host: str) -> str:
        """The address under which the run's actors reach what listens here on ``host``."""
        ...

    def is_ours(self, host: str) -> bool:
        """Whether an engine that the run starts can be at ``host``. Only there does its key go."""
        ...

    def entered(self, actor: str, config: RunConfig, run_dir: Path, bus: Bus) -> AbstractAsyncContextManager[RunConfig]:
        """Around the life of ``actor``, in its process: the run's configuration as it holds here.

        Raises ConfigError: the actor cannot be here.
        """
        ...

    def rendezvous(self, run_dir: Path, rank: Rank, bus: Bus) -> AbstractAsyncContextManager[str]:
        """Until all ranks of one incarnation have met: where they do, as torch's ``init_method``.

        Raises TimeoutError naming who has not said it.
        """
        ...

    async def memory_reaches(self, actors: Collection[str], bus: Bus) -> bool:
        """Whether all of ``actors`` see what lies in the memory of this machine."""
        ...

    def snapshot_root(self, config: RunConfig, run_dir: Path, n_bytes: int, *, in_memory: bool) -> Path:
        """Where the learner writes snapshots of so many bytes, so that those who send and load them see them.

        ``in_memory``: they see this machine's memory. Raises SnapshotError.
        """
        ...


@dataclass(frozen=True)
class OneMachine:
    """All actors on this machine: nothing is open to others, and memory is as good as a disk that all of them see."""

    host: str = LOOPBACK

    def listens(self, host: str) -> str:
        """The same."""
        return host

    def announced(self, host: str) -> str:
        """The same."""
        return host

    def is_ours(self, host: str) -> bool:
        """On loopback."""
        return is_loopback(host)

    @asynccontextmanager
    async def entered(self, actor: str, config: RunConfig, run_dir: Path, bus: Bus) -> AsyncIterator[RunConfig]:
        """As it was written. gloo would listen where the machine's name points to, which others may reach; somebody else's
        engines may be on other machines, though."""
        with collectives_over(gloo=interface_of(LOOPBACK) if kind_of(config.engine).OURS else None):
            yield config

    def rendezvous(self, run_dir: Path, rank: Rank, bus: Bus) -> AbstractAsyncContextManager[str]:
        """A file, which every process of the machine sees."""
        return nullcontext(f"file://{run_dir / MEETINGS}{rank.incarnation}")

    async def memory_reaches(self, actors: Collection[str], bus: Bus) -> bool:
        """Everybody is here."""
        return True

    def snapshot_root(self, config: RunConfig, run_dir: Path, n_bytes: int, *, in_memory: bool) -> Path:
        """In memory, if there is room and the configuration does not say otherwise."""
        from miles_async.weights.snapshot import choose_root  # imports torch

        return choose_root(config, run_dir, n_bytes)


ONE_MACHINE = OneMachine()
