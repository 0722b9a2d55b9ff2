"""The Ray actor that one of ours lives in, from the beginning of its process to its end.

Promises: a process that Ray has given up does not live on: it ends with the raylet of its machine, also by kill -9 (of a
machine that is cut off, and goes on, nothing is known here); what the launch hands over of its environment is there before
anything heavy is imported. A *sync* Ray actor: its method runs in the main thread, where an event loop may take signals.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import NamedTuple

import psutil
import ray
import ray.util

from actors.runtime.placement.on_ray.where import place
from actors.runtime.spec import ActorSpec
from bus.server import die_with_parent


class At(NamedTuple):
    """A process of the cluster. ``host``: the address of its machine; ``node``: Ray's name of that; ``born``: a number may be
    another process's later."""

    host: str
    node: str
    pid: int
    born: float

    @property
    def where(self) -> str:
        return place(self.host, self.pid)


def here() -> At:
    """This process, of a Ray actor."""
    node = ray.get_runtime_context().get_node_id()
    return At(ray.util.get_node_ip_address(), node, os.getpid(), psutil.Process().create_time())


class Host:
    """Asked in this order: where it is, and to be an actor."""

    def at(self) -> At:
        """Where it is."""
        return here()

    def live(self, spec: ActorSpec, env: Mapping[str, str]) -> int:
        """Be the actor of ``spec`` to its end, with ``env`` in its environment; returns its exit code."""
        os.environ.update(env)
        from actors.runtime.logs import PRIVATE, log_path
        from actors.runtime.placement.fork_server import become_an_actor
        from actors.runtime.placement.local import live

        become_an_actor()
        die_with_parent(signal.SIGKILL)()
        os.umask(PRIVATE)
        log_path(spec.run_dir, spec.name).parent.mkdir(parents=True, exist_ok=True)
        at = here()
        return live(spec, at.where, at.host)
