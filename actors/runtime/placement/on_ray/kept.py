"""A launch that Ray keeps (``placement.launch_restarts``), as the command sees it: begun, followed, stopped.

Promises: what the launch says is said here, too, and its end is this one's; SIGINT and SIGTERM are handed on to it; a command
that is killed, or whose terminal is closed, leaves the run as it is, and the same command follows it again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.runtime.logs import log_path
from actors.runtime.placement.on_ray.cluster import ADDRESS, Cluster
from actors.runtime.placement.on_ray.keeper import HELD_S, NAME, Keeper
from actors.runtime.placement.on_ray.placement import environment_of, namespace_of
from miles_async.config.schema import RunConfig
from miles_async.runs.placements import KEPT

LOOK_S = 0.3
ENDS_S = 5.0
CALLS = 64  # at once: who follows waits for the end, also after it was killed itself
GIVEN_UP = 1
_KEEPER: Any = ray.remote(Keeper)


def keep(config: RunConfig, run_dir: Path, words: Sequence[str], out: IO[str]) -> int:
    """Have the launch of the command line ``words`` kept by Ray, and follow it to its end; what it says goes to ``out``.

    Returns its exit code. Raises ConfigError, NoPlaceError: there is no cluster.
    """
    cluster = Cluster(config.placement, config.placement.namespace or namespace_of(run_dir))
    cluster.attach([])
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = log_path(run_dir, NAME)
    said = log.stat().st_size if log.exists() else 0
    if is_kept(cluster):
        print("miles-async: Ray keeps a launch of this run already, which is followed from here", file=sys.stderr)
    command = [sys.executable, "-m", "miles_async.cli.app", *words]
    keeper = begin(cluster, config, run_dir, command)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda number, _: keeper.signal.remote(number))
    try:
        return follow(keeper, log, said, out)
    finally:
        cluster.close()


def is_kept(cluster: Cluster) -> bool:
    """Whether there is a launch already."""
    try:
        ray.get_actor(NAME, cluster.namespace)
    except ValueError:
        return False
    return True


def begin(cluster: Cluster, config: RunConfig, run_dir: Path, command: Sequence[str], held_s: float = HELD_S) -> Any:
    """The handle of the keeper of ``command``; where there is one already, of that. First it is on this machine."""
    log = log_path(run_dir, NAME)
    log.parent.mkdir(mode=0o700, exist_ok=True)
    environment = {**environment_of(config), ADDRESS: cluster.address, KEPT: "1"}
    return _KEEPER.options(
        name=NAME,
        namespace=cluster.namespace,
        get_if_exists=True,
        lifetime="detached",
        max_restarts=config.placement.launch_restarts,
        max_task_retries=-1,
        max_concurrency=CALLS,
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(cluster.here, soft=True),
    ).remote(list(command), str(run_dir), str(log), os.getcwd(), environment, held_s)


def follow(keeper: Any, log: Path, said: int, out: IO[str]) -> int:
    """To the end of its launch, whose exit code is returned; of ``log`` ``said`` bytes are known."""
    ended, over = keeper.ended.remote(), False
    while not over:
        over = bool(ray.wait([ended], timeout=LOOK_S)[0])
        said = _say_more(log, said, out, over=over)
    try:
        code = int(ray.get(ended))
        _end(keeper)
    except RayError as error:
        why = " ".join(str(error).split())[:200]
        print(f"miles-async: the launch is lost, and Ray does not start it again: {why}", file=sys.stderr)
        return GIVEN_UP
    return code


def _end(keeper: Any) -> None:
    """Nobody has to ask it any more, and its name is free."""
    ray.kill(keeper, no_restart=True)
    with contextlib.suppress(RayError):
        ray.get(keeper.ended.remote(), timeout=ENDS_S)


def _say_more(log: Path, said: int, out: IO[str], *, over: bool) -> int:
    """The lines in ``log`` behind ``said`` bytes (``over``: also one without an end); returns how many bytes are said then."""
    if not log.exists():
        return said
    with log.open("rb") as file:
        file.seek(said)
        more = file.read()
    more = more if over else more[: more.rfind(b"\n") + 1]
    out.write(more.decode(errors="replace"))
    out.flush()
    return said + len(more)
