"""One launch as it is told to somebody else's scheduler: the command, the directories, the machines, the ports. Values.

Promises: the command means the same on every machine of the cluster; every port that Ray listens on is named, and lies below
the ephemeral ones, which the system gives to connections.
"""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from miles_async.config.schema import RunConfig
from miles_async.config.secrets import ENV
from miles_async.recipes.sizing import Machine, Need, packed

ON_RAY = "placement.kind=ray"
SYMMETRIC = (2, 49)  # the first Ray with `ray symmetric-run`
SAVE_S = 60  # beside run.stop_timeout_s: for Ray and the scheduler to notice
_NAME_CHARS = 40  # KubeRay makes names of pods of it, which have 63


class Ports(NamedTuple):
    """Where Ray listens, on every machine but for ``gcs``, ``dashboard`` and ``client``, which are the first one's."""

    gcs: int = 6380
    node_manager: int = 6381
    object_manager: int = 6382
    runtime_env_agent: int = 6383
    dashboard_agent_grpc: int = 6384
    dashboard_agent_listen: int = 6385
    metrics_export: int = 6386
    client: int = 6387
    dashboard: int = 8265
    first_worker: int = 7000
    last_worker: int = 8199


PORTS = Ports()


@dataclass(frozen=True)
class Job:
    """A launch of ``config``, which ``config_file`` and ``overrides`` come to."""

    config: RunConfig
    config_file: Path  # as the launch finds it
    config_text: str
    overrides: tuple[str, ...]
    run_dir: Path
    work_dir: Path  # on storage that all machines share
    program: str  # miles-async, by a path that all machines have
    ray_version: str
    image: str
    nodes: int
    machine: Machine
    asking: tuple[Need, ...]
    ports: Ports = PORTS

    @property
    def name(self) -> str:
        """The run directory's, as DNS takes it."""
        plain = re.sub("[^a-z0-9]+", "-", self.run_dir.name.lower()).strip("-")
        return plain[:_NAME_CHARS].rstrip("-") or "run"

    @property
    def command(self) -> list[str]:
        """The launch, on a machine of the cluster that has :attr:`programs` on its PATH."""
        sets = [part for override in (*self.overrides, ON_RAY) for part in ("--set", override)]
        return ["miles-async", "launch", str(self.config_file), *sets, "--run-dir", str(self.run_dir)]

    @property
    def in_words(self) -> str:
        """The command for a shell."""
        return shlex.join(self.command)

    @property
    def programs(self) -> str | None:
        """The directory of the programs; None: they are on the PATH."""
        return str(Path(self.program).parent) if "/" in self.program else None

    @property
    def symmetric(self) -> bool:
        """Whether `ray symmetric-run` is there."""
        numbers = [int(part) for part in re.findall(r"\d+", self.ray_version)[:2]]
        return tuple(numbers) >= SYMMETRIC

    @property
    def stop_s(self) -> int:
        """Seconds that an orderly stop takes at most."""
        return math.ceil(self.config.run.stop_timeout_s) + SAVE_S

    @property
    def secrets(self) -> list[str]:
        """The variables of the environment that the configuration takes keys from."""
        config = self.config
        keys = (
            config.router.api_key,
            config.router.admin_key,
            config.engine.api_key,
            config.bus.url,
            config.reward.rm_url,
        )
        return sorted({key.removeprefix(ENV) for key in keys if key is not None and key.startswith(ENV)})

    @property
    def cpus(self) -> int:
        """Of one machine: what it has, or what is asked for on the fullest."""
        return self.machine.cpus or max(1, math.ceil(max(packed(self.asking, self.machine))))

    @property
    def ray_flags(self) -> list[str]:
        """Of `ray start`, on every machine."""
        p = self.ports
        flags = {
            "node-manager-port": p.node_manager,
            "object-manager-port": p.object_manager,
            "runtime-env-agent-port": p.runtime_env_agent,
            "dashboard-agent-grpc-port": p.dashboard_agent_grpc,
            "dashboard-agent-listen-port": p.dashboard_agent_listen,
            "metrics-export-port": p.metrics_export,
            "min-worker-port": p.first_worker,
            "max-worker-port": p.last_worker,
        }
        return [*(f"--{flag}={port}" for flag, port in flags.items()), "--disable-usage-stats"]

    @property
    def head_flags(self) -> list[str]:
        """Of `ray start` on the first machine, beside :attr:`ray_flags`."""
        return [f"--dashboard-port={self.ports.dashboard}", f"--ray-client-server-port={self.ports.client}"]
