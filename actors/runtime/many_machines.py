"""The site of actors on several machines: addresses that all of them reach, and directories that all of them see.

Promises: an address is found in the process that binds it; what listens asks for a key, which nobody but processes of the run
finds (on the bus); learner ranks meet at a port of rank 0's machine that is theirs from the moment it is announced, under
their incarnation; weights lie in memory only while all who read them see that memory, else in a shared directory; a machine
that does not see the run directory is told so at once; who leaves a machine last takes along what the run has in its memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import socket
import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from actors.runtime.own_address import ANYWHERE, check_reached, interface_of, is_network, is_within, own_address
from actors.runtime.site import Rank
from bus import Bus, run_key
from bus.listen import Address
from bus.server import RedisServer
from bus.whereabouts import meeting, see_memory, tell_meeting, tell_memory
from miles_async.config.loopback import is_loopback
from miles_async.config.schema import ConfigError, RunConfig
from miles_async.config.secrets import with_keys
from miles_async.engines.kinds.table import kind_of
from miles_async.monitor.diagnosis import role_of
from miles_async.runs import state
from miles_async.weights.interface import GLOO, collectives_over
from miles_async.weights.leftovers import sweep
from miles_async.weights.place import memory_here, shared_root, stay

REDIS_PORT = 6379
_log = logging.getLogger(__name__)
IN_COLLECTIVES = ("learner", "broadcaster", "engine", "eval_engine")  # the roles that are
EVERYWHERE = ("0.0.0.0", "::", "")
SEEN_S = 10.0  # a network file system may show what it showed before for a while
LOOK_S = 0.25


@dataclass(frozen=True)
class ManyMachines:
    """``interface``: as ``placement.interface`` has it. ``bus_host``, ``bus_port``: of the bus, towards which an actor's
    address lies where that is None; None: nothing is known of it yet."""

    interface: str | None = None
    bus_host: str | None = None
    bus_port: int = REDIS_PORT

    @property
    def host(self) -> str:
        """Of the machine that asks. Raises ConfigError: it has none."""
        towards = ANYWHERE if self.bus_host is None else (self.bus_host, self.bus_port)
        return own_address(self.interface, towards)

    def listens(self, host: str) -> str:
        """What the configuration has on loopback nobody else would reach."""
        return self.host if is_loopback(host) else host

    def announced(self, host: str) -> str:
        """Of what listens everywhere, the machine's own."""
        return self.host if host in EVERYWHERE else host

    def is_ours(self, host: str) -> bool:
        """In the network that ``placement.interface`` names; else anywhere, but on loopback only where we are there, too."""
        if self.interface is not None and is_network(self.interface):
            return is_within(host, self.interface)
        return not is_loopback(host) or is_loopback(self.host)

    @contextlib.asynccontextmanager
    async def entered(self, actor: str, config: RunConfig, run_dir: Path, bus: Bus) -> AsyncIterator[RunConfig]:
        """With keys where none are set; collectives of this process go over the interface of its address."""
        await _see_run(run_dir, bus.run_id)
        for removed in await asyncio.to_thread(sweep):
            _log.info("swept %s of %s: %d bytes", removed.place, removed.run_dir, removed.bytes)
        host, place = self.host, stay(run_dir)
        try:
            with _collectives_towards(host, actor):
                await tell_memory(bus, actor, "" if place is None else memory_here())
                yield with_keys(config, await run_key(bus), engines=kind_of(config.engine).OURS)
        finally:
            if place is not None:
                place.leave()

    @contextlib.asynccontextmanager
    async def rendezvous(self, run_dir: Path, rank: Rank, bus: Bus) -> AsyncIterator[str]:
        """A store of rank 0's process, on a port that was free, announced on the bus."""
        if rank.rank != 0:
            yield await meeting(bus, rank.incarnation, rank.deadline_s, "learner-0")
            return
        with _store(self.host, rank.deadline_s) as where:
            await tell_meeting(bus, rank.incarnation, where)
            yield where

    async def memory_reaches(self, actors: Collection[str], bus: Bus) -> bool:
        """As they have said themselves."""
        return await see_memory(bus, actors, memory_here())

    def snapshot_root(self, config: RunConfig, run_dir: Path, n_bytes: int, *, in_memory: bool) -> Path:
        """``weights.snapshot_dir``; else memory, if ``in_memory`` and there is room; else the shared directory.

        What waits for an evaluation may be needed when no process of the run is left: it does not lie in memory.
        """
        from miles_async.weights.snapshot import choose_root  # imports torch

        if (in_memory and config.eval.eval_interval is None) or config.weights.snapshot_dir is not None:
            return choose_root(config, run_dir, n_bytes)
        return shared_root(config, run_dir)


def many_machines(config: RunConfig, bus_url: str = "") -> ManyMachines:
    """The site of the actors of ``config`` whose bus is at ``bus_url``; "": it is to be started."""
    parts = urlsplit(bus_url)
    return ManyMachines(config.placement.interface, parts.hostname or None, parts.port or REDIS_PORT)


def open_redis(config: RunConfig, run_dir: Path) -> RedisServer:
    """A server of the run's own, not started, that other machines reach, on this one. Raises ConfigError: it has no address."""
    section, listen = config.bus, Address(many_machines(config).host)
    directory = run_dir / state.REDIS_DIR
    return RedisServer(directory, section.appendfsync, maxmemory_mb=section.maxmemory_mb, listen=listen)


async def _see_run(run_dir: Path, run_id: str) -> None:
    """Raises ConfigError: this machine does not see the directory of the run, or what the launch has just written there."""
    end = time.monotonic() + SEEN_S
    while ((there := state.read(run_dir)) is None or there.run_id != run_id) and time.monotonic() < end:  # noqa: ASYNC110
        await asyncio.sleep(LOOK_S)
    if there is None or there.run_id != run_id:
        found = "nothing" if there is None else f"run {there.run_id}"
        raise ConfigError(
            f"{platform.node()} has {found} in {run_dir}, where run {run_id} is: a run on several machines needs --run-dir on "
            "storage that all of them see under that path"
        )


def _collectives_towards(host: str, actor: str) -> AbstractContextManager[None]:
    """gloo would resolve the machine's name, and NCCL take the first interface that it finds. Raises ConfigError: somebody
    has named gloo an interface by which nobody gets here, and ``actor`` needs it."""
    if (named := os.environ.get(GLOO)) and role_of(actor) in IN_COLLECTIVES:
        check_reached(GLOO, named, host)
    name = interface_of(host)
    return collectives_over(gloo=name, nccl=name and f"={name}")


@contextlib.contextmanager
def _store(host: str, deadline_s: float) -> Iterator[str]:
    """A store on a free port of ``host``, and of no other address; ``init_process_group`` finds it in its own process."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, 0), family=family, backlog=1024)
    port, limit = listener.getsockname()[1], timedelta(seconds=deadline_s)
    shared = {"wait_for_workers": False, "multi_tenant": True, "master_listen_fd": listener.detach()}
    store = TCPStore(host, port, None, True, limit, **shared)
    yield f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
    del store  # those who have met hold it open
