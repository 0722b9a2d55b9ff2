"""A Ray cluster of several machines in this one: a raylet for each, with an address of its own on loopback.

Promises: a machine can be lost, can stand still and go on, and others can join, while runs are on them; nothing of the cluster
stays, nor of its environment here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from miles_async.hooks.environment import environment

ROOT = Path(__file__).parents[2]
# a machine that is lost is noticed in seconds, and not in a quarter of a minute
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
MEMORY = {"object_store_memory": 80 << 20}  # bytes; nothing of ours goes through it
NOTICE_S = 600


class RayMachines:
    """``address``: of the head, whose machine is the launch's; ``machines``: the others, by their addresses."""

    def __init__(self, directory: Path, cpus: int = 2) -> None:
        from ray._common.utils import get_default_ray_temp_dir
        from ray.cluster_utils import Cluster

        # where Ray notes the address of the newest cluster; with a temp_dir of its own this one does not make it
        Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)
        head = {"num_cpus": cpus, "include_dashboard": False, "temp_dir": str(directory), **MEMORY}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        self.machines: dict[str, Any] = {}
        self._last = 1

    def pids(self) -> list[int]:
        """Of the head's own processes. Actors are below its raylet."""
        return [found.process.pid for kind in self._cluster.head_node.all_processes.values() for found in kind]

    def add(self, host: str = "", **resources: float) -> str:
        """One more machine, with two CPUs and ``resources`` of its own, at ``host``, or at an address that none had before;
        returns that."""
        self._last += 1
        host = host or f"127.0.0.{self._last}"
        self.machines[host] = self._cluster.add_node(
            node_ip_address=host, num_cpus=2, resources=resources or None, **MEMORY
        )
        return host

    def node(self, host: str) -> str:
        """Ray's name of it."""
        return str(self.machines[host].node_id)

    def lose(self, host: str) -> None:
        """kill -9 of the raylet of ``host``: the machine is gone, as far as Ray sees."""
        [raylet] = self.machines.pop(host).all_processes["raylet"]
        raylet.process.kill()

    def take_back(self, host: str) -> None:
        """Notice that ``host`` will be taken back, as of a spot machine: whoever is there goes on for the moment."""
        from ray._raylet import GcsClient
        from ray.core.generated import autoscaler_pb2

        why = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        until_ms = int((time.time() + NOTICE_S) * 1000)
        accepted, refused = GcsClient(address=self.address).drain_node(self.node(host), why, "spot", until_ms)
        assert accepted, refused

    @contextlib.contextmanager
    def standing_still(self, host: str) -> Iterator[None]:
        """All processes of ``host`` are stopped meanwhile, as on a machine that hangs. It does not count any more."""
        [raylet] = self.machines.pop(host).all_processes["raylet"]
        here = psutil.Process(raylet.process.pid)
        stopped = [here, *here.children(recursive=True)]
        for process in stopped:
            _signal(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in stopped:
                _signal(process, signal.SIGCONT)

    def shutdown(self) -> None:
        import ray

        ray.shutdown()  # of a test that has asked it something
        self._cluster.shutdown()


def _signal(process: psutil.Process, signum: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signum)


@contextlib.contextmanager
def ray_machines(*paths: Path, cpus: int = 2, settings: Mapping[str, str] = ENVIRONMENT) -> Iterator[RayMachines]:
    """Up, with this process's environment as the cluster's, and ``settings`` over it; nothing of it stays.

    paths: where actors find modules, besides this checkout. cpus: of the head's machine.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="ray-"))  # a short path: sockets lie there
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        found = os.pathsep.join(map(str, (ROOT, *paths)))
        stack.enter_context(environment({**settings, "PYTHONPATH": found}))
        machines = RayMachines(directory, cpus)
        stack.callback(machines.shutdown)
        stack.enter_context(environment({"RAY_ADDRESS": machines.address}))
        yield machines


def end_actors(address: str, namespace: str) -> None:
    """All that have a name there."""
    import ray

    for name in left_in_ray(address, namespace):
        with contextlib.suppress(ValueError):  # it has ended, or is a placement group
            ray.kill(ray.get_actor(name, namespace), no_restart=True)


def left_in_ray(address: str, namespace: str) -> list[str]:
    """Actors and placement groups of ``namespace`` that the cluster still has, asked by a process of its own."""
    import ray
    from ray.util import list_named_actors
    from ray.util.placement_group import placement_group_table

    if not ray.is_initialized():
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    actors = [actor["name"] for actor in list_named_actors(all_namespaces=True) if actor["namespace"] == namespace]
    groups = placement_group_table().values()
    return actors + [
        group["name"] for group in groups if group["name"].startswith(namespace) and group["state"] != "REMOVED"
    ]
