"""The lookouts of a run, one on each machine that has an actor of it: made when the first one gets there.

Promises: what was seen of a process is never older than a look and its deadline, or it is not said; a machine that does not
answer holds nobody up for longer than that; a lookout that died is made anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.runtime.placement.on_ray.host import At
from actors.runtime.placement.on_ray.lives import Life
from actors.runtime.placement.on_ray.lookout import Lookout
from miles_async.monitor.diagnosis import DEAD

LOOK_S = 1.0
ANSWER_S = 3.0  # a machine that does not answer by then is not waited for
ENDS_S = 8.0  # a killed process, and Ray, which gives a stopped one five seconds
AGAIN_S = 0.05
_REMOTE: Any = ray.remote(max_restarts=0, max_task_retries=0)(Lookout)


class Lookouts:
    """Of one launch."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._of: dict[str, Any] = {}  # by Ray's name of the machine
        self._made = 0

    def of(self, node: str) -> Any:
        """The handle of the one on ``node``."""
        if node not in self._of:
            self._made += 1
            self._of[node] = _REMOTE.options(
                name=f"lookout/{ray.get_runtime_context().get_job_id()}/{self._made}",  # another launch's may be there still
                namespace=self._namespace,
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            ).remote()
        return self._of[node]

    async def keep_looking(self, lives: Callable[[], Iterable[Life]]) -> None:
        """Note the states of the processes of ``lives``, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            by_node: dict[str, list[tuple[Life, At]]] = {}
            for life in lives():
                if (at := life.at) is not None:
                    by_node.setdefault(at.node, []).append((life, at))
            await asyncio.gather(*(self._look(node, seen) for node, seen in by_node.items()))

    async def _look(self, node: str, seen: list[tuple[Life, At]]) -> None:
        states = await self.ask(node, "states", [at for _, at in seen]) or [""] * len(seen)
        for (life, _), state in zip(seen, states, strict=True):
            life.state = state or "running"

    async def ask(self, node: str, what: str, *arguments: Any, timeout_s: float = ANSWER_S) -> Any:
        """What the one on ``node`` answers to a call; None: it does not."""
        try:
            answer = getattr(self.of(node), what).remote(*arguments).future()
            return await asyncio.wait_for(asyncio.wrap_future(answer), timeout_s)
        except TimeoutError:
            return None
        except RayError:
            self._of.pop(node, None)
            return None

    def signal(self, at: At, signum: int) -> None:
        """To a process, without waiting for it."""
        if at.node in self._of or _lives(at.node):
            with contextlib.suppress(RayError):
                self.of(at.node).signal.remote(at, signum)

    async def see_gone(self, at: At) -> None:
        """Wait until its process is, which is ended if need be; not for a machine that Ray has given up."""
        until = time.monotonic() + ENDS_S
        self.signal(at, signal.SIGKILL)
        while time.monotonic() < until and _lives(at.node):
            states = await self.ask(at.node, "states", [at])
            if states is not None and states[0] in DEAD:
                return
            await asyncio.sleep(AGAIN_S)

    def wait_for_ends(self, processes: Iterable[At]) -> None:
        """The same of several, for whoever has no event loop to wait in."""
        by_node: dict[str, list[At]] = {}
        for at in processes:
            by_node.setdefault(at.node, []).append(at)
        answers: list[Any] = []
        for node, here in by_node.items():
            if not _lives(node):
                continue
            for at in here:
                self.signal(at, signal.SIGKILL)
            with contextlib.suppress(RayError):
                answers.append(self.of(node).ended.remote(here, ENDS_S))
        if answers:
            ray.wait(answers, num_returns=len(answers), timeout=ENDS_S + ANSWER_S)

    def close(self) -> None:
        """None of them is left."""
        for handle in self._of.values():
            with contextlib.suppress(RayError):
                ray.kill(handle, no_restart=True)
        self._of.clear()


def _lives(node: str) -> bool:
    """Whether Ray has not given it up."""
    return any(found["NodeID"] == node and found["Alive"] for found in ray.nodes())
