"""A Ray cluster of several machines in this one: a raylet for each, with an address of its own on loopback."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# actors find this checkout and its tests; a machine that is lost is noticed in seconds, and not in a quarter of a minute
ENVIRONMENT = {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
MEMORY = {"object_store_memory": 80 << 20}  # bytes; nothing of ours goes through it


class RayMachines:
    """``address``: of the head, whose machine is the launch's; ``machines``: the others, by their addresses."""

    def __init__(self, directory: Path) -> None:
        from ray._common.utils import get_default_ray_temp_dir
        from ray.cluster_utils import Cluster

        # where Ray notes the address of the newest cluster; with a temp_dir of its own this one does not make it
        Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)
        head = {"num_cpus": 2, "include_dashboard": False, "temp_dir": str(directory), **MEMORY}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        self.machines: dict[str, Any] = {}

    def add(self, host: str, **resources: float) -> None:
        """One more machine, with two CPUs and ``resources`` of its own."""
        self.machines[host] = self._cluster.add_node(
            node_ip_address=host, num_cpus=2, resources=resources or None, **MEMORY
        )

    def lose(self, host: str) -> None:
        """kill -9 of the raylet of ``host``: the machine is gone, as far as Ray sees."""
        [raylet] = self.machines.pop(host).all_processes["raylet"]
        raylet.process.kill()

    def shutdown(self) -> None:
        import ray

        ray.shutdown()  # of a test that has asked it something
        self._cluster.shutdown()


@contextmanager
def ray_machines() -> Iterator[RayMachines]:
    """Up, with this process's environment as the cluster's; nothing of it stays."""
    before = {name: os.environ.get(name) for name in (*ENVIRONMENT, "RAY_ADDRESS")}
    os.environ.update(ENVIRONMENT)
    directory = Path(tempfile.mkdtemp(prefix="ray-"))  # a short path: sockets lie there
    try:
        machines = RayMachines(directory)
        os.environ["RAY_ADDRESS"] = machines.address
        try:
            yield machines
        finally:
            machines.shutdown()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        shutil.rmtree(directory, ignore_errors=True)


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
