"""A placement of the tests' own: processes of this machine that are told to meet, and to put snapshots, where it says.

It takes one life of an actor away by itself, as a machine that is lost would.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from actors.runtime.placement.base import Ending
from actors.runtime.placement.local import LocalPlacement
from actors.runtime.site import OneMachine, Rank
from actors.runtime.spec import ActorId, ActorSpec
from bus import Bus
from bus.server import RedisServer
from miles_async.config.schema import RunConfig
from miles_async.monitor.diagnosis import Process

ASKED = "asked-of-the-site"  # in the run directory


@dataclass(frozen=True)
class OverTcp(OneMachine):
    """Ranks meet at a port of the placement's, and nothing lies in memory. Leaves a line for each question."""

    host: str = "127.0.0.2"  # a loopback of its own
    port: int = 0

    def rendezvous(self, run_dir: Path, rank: Rank, bus: Bus) -> AbstractAsyncContextManager[str]:
        self._asked(run_dir, f"rendezvous {rank.incarnation}")
        return nullcontext(f"tcp://127.0.0.1:{self.port}")

    def snapshot_root(self, config: RunConfig, run_dir: Path, n_bytes: int, *, in_memory: bool) -> Path:
        self._asked(run_dir, "snapshot_root")
        return run_dir / "snapshots"

    def _asked(self, run_dir: Path, what: str) -> None:
        with (run_dir / ASKED).open("a") as file:
            file.write(f"{what}\n")


class Elsewhere:
    """``victim`` is ended as soon as it was started."""

    one_machine = True

    def __init__(self, victim: ActorId) -> None:
        self.local, self.victim = LocalPlacement(), victim
        self.calls: list[str] = []
        self.started: list[ActorId] = []
        self.ends: dict[ActorId, Ending] = {}

    def own_bus(self, config: RunConfig, run_dir: Path) -> RedisServer:
        return self.local.own_bus(config, run_dir)

    def warm_up(self) -> None:
        self.calls.append("warm_up")
        self.local.warm_up()

    async def make_room(self, tell: Callable[[str], None]) -> None:
        self.calls.append("make_room")
        await self.local.make_room(tell)

    def start(self, spec: ActorSpec) -> None:
        self.started.append(spec.id)
        self.local.start(replace(spec, site=OverTcp(port=_free_port())))
        if spec.id == self.victim:
            asyncio.get_running_loop().call_soon(lambda: self.terminate(spec.id, by_force=True))

    def running(self) -> list[ActorId]:
        return self.local.running()

    async def ended(self, actor: ActorId) -> Ending:
        ending = await self.local.ended(actor)
        self.ends[actor] = replace(ending, how=f"it was elsewhere, and {ending.how}")
        return self.ends[actor]

    def terminate(self, actor: ActorId, *, by_force: bool = False) -> None:
        self.local.terminate(actor, by_force=by_force)

    def look(self) -> Mapping[str, Process]:
        return self.local.look()

    def go_on(self) -> None:
        self.calls.append("go_on")
        self.local.go_on()

    def end(self) -> None:
        self.calls.append("end")
        self.local.end()

    def close(self) -> None:
        self.calls.append("close")
        self.local.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
