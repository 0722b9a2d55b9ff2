"""A launch whose actors are on several ``machines``, by role: the supervisor and Redis on one of them, an agent on each.

python -m over_machines RUN.TOML RUN_DIR PLACES    (PLACES: JSON of role to the command that enters its machine)
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine_agent import read, send

from actors.runtime.many_machines import many_machines, open_redis
from actors.runtime.placement.base import Ending
from actors.runtime.spec import ActorId, ActorSpec
from actors.runtime.supervisor import Supervisor
from bus.server import RedisServer
from miles_async.cli.load import load
from miles_async.config.schema import RunConfig
from miles_async.monitor import Monitor
from miles_async.monitor.diagnosis import Process

LOST = Ending(False, "its machine was lost")


class OverMachines:
    """``places``: for each role the words that run a program on its machine; "": for all others."""

    one_machine = False

    def __init__(self, places: Mapping[str, list[str]]) -> None:
        self.places = places
        self._agents: dict[str, subprocess.Popen[bytes]] = {}
        self._where: dict[ActorId, subprocess.Popen[bytes]] = {}
        self._ends: dict[ActorId, asyncio.Future[Ending]] = {}

    def own_bus(self, config: RunConfig, run_dir: Path) -> RedisServer:
        return open_redis(config, run_dir)

    def warm_up(self) -> None:
        """Nothing is known yet."""

    async def make_room(self, tell: Callable[[str], None]) -> None:
        """There is."""

    def start(self, spec: ActorSpec) -> None:
        site = many_machines(spec.config, spec.bus_url)
        self._ends[spec.id] = asyncio.get_running_loop().create_future()
        self._where[spec.id] = agent = self._agent(spec.role)
        assert agent.stdin is not None
        send(agent.stdin, "start", replace(spec, site=site))

    def running(self) -> list[ActorId]:
        return [actor for actor, end in self._ends.items() if not end.done()]

    async def ended(self, actor: ActorId) -> Ending:
        return await self._ends[actor]

    def terminate(self, actor: ActorId, *, by_force: bool = False) -> None:
        agent = self._where[actor]
        if not self._ends[actor].done() and agent.poll() is None and agent.stdin is not None:
            send(agent.stdin, "terminate", actor, by_force)

    def look(self) -> Mapping[str, Process]:
        return {actor.name: Process("elsewhere") for actor in self.running()}

    def go_on(self) -> None:
        """No helper can be stopped."""

    def end(self) -> None:
        for actor in self.running():
            self.terminate(actor, by_force=True)

    def close(self) -> None:
        for agent in self._agents.values():
            assert agent.stdin is not None
            agent.stdin.close()
            agent.wait(20)

    def _agent(self, role: str) -> subprocess.Popen[bytes]:
        enter = self.places.get(role, self.places[""])
        if (agent := self._agents.get(enter[2])) is None:
            words = [*enter, sys.executable, "-m", "machine_agent"]
            agent = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._agents[enter[2]] = agent
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._listen, args=(agent, loop), daemon=True).start()
        return agent

    def _listen(self, agent: subprocess.Popen[bytes], loop: asyncio.AbstractEventLoop) -> None:
        assert agent.stdout is not None
        while answer := read(agent.stdout):
            loop.call_soon_threadsafe(self._set, *answer[1:])
        for actor in [actor for actor, where in self._where.items() if where is agent]:
            loop.call_soon_threadsafe(self._set, actor, LOST)

    def _set(self, actor: ActorId, ending: Ending) -> None:
        if not self._ends[actor].done():
            self._ends[actor].set_result(ending)


def main(arguments: list[str]) -> int:
    config_file, run_dir, places = arguments
    config = load(Path(config_file), check=False)  # as if a placement had its name in the configuration
    found: dict[str, Any] = json.loads(places)
    return Supervisor(config, Path(run_dir), Monitor(), OverMachines(found)).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
