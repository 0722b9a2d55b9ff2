"""A placement of the tests' own: processes of this machine as if each were on another one, at an address of its network."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from actors.runtime.many_machines import ManyMachines, open_redis
from actors.runtime.own_address import own_address
from actors.runtime.placement.base import Ending
from actors.runtime.placement.local import LocalPlacement
from actors.runtime.spec import ActorId, ActorSpec
from bus import Bus
from bus.server import RedisServer
from miles_async.config.loopback import is_loopback
from miles_async.config.schema import ConfigError, RunConfig
from miles_async.monitor.diagnosis import Process


@dataclass(frozen=True)
class Alone(ManyMachines):
    """Nobody sees another one's memory."""

    async def memory_reaches(self, actors: Collection[str], bus: Bus) -> bool:
        return False


class Apart:
    """Of the local placement, with the site of several machines."""

    one_machine = False

    def __init__(self, site: ManyMachines) -> None:
        self.local, self.site = LocalPlacement(), site
        self.started: list[ActorId] = []

    def own_bus(self, config: RunConfig, run_dir: Path) -> RedisServer:
        return open_redis(config, run_dir)

    def warm_up(self) -> None:
        self.local.warm_up()

    async def make_room(self, tell: Callable[[str], None]) -> None:
        await self.local.make_room(tell)

    def start(self, spec: ActorSpec) -> None:
        self.started.append(spec.id)
        self.local.start(replace(spec, site=self.site))

    def running(self) -> list[ActorId]:
        return self.local.running()

    async def ended(self, actor: ActorId) -> Ending:
        return await self.local.ended(actor)

    def terminate(self, actor: ActorId, *, by_force: bool = False) -> None:
        self.local.terminate(actor, by_force=by_force)

    def look(self) -> Mapping[str, Process]:
        return self.local.look()

    def go_on(self) -> None:
        self.local.go_on()

    def end(self) -> None:
        self.local.end()

    def close(self) -> None:
        self.local.close()


def address_or_skip() -> str:
    """An address of this machine that others could reach."""
    try:
        host = own_address(None)
    except ConfigError as error:
        pytest.skip(f"this machine has no address but loopback: {error}")
    if is_loopback(host):
        pytest.skip("this machine has no address but loopback")
    return host
