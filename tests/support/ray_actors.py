"""Actors that a Ray placement starts without a run, and what is seen of them.

``python -m ray_actors RUN_DIR BUS_URL`` is a launch of one: it says its process and its namespace, and waits.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil

from actors.runtime.placement.on_ray.placement import RayPlacement, namespace_of
from actors.runtime.spec import ActorSpec
from miles_async.cli.load import parse
from miles_async.config.schema import RunConfig
from miles_async.monitor.diagnosis import DEAD, Process
from miles_async.monitor.sight import process_of

MINIMAL = """
model = {hf_checkpoint = "builtin:digits"}
data = {prompt_data = "builtin:repeat"}
algorithm = {correction = "behaviour"}
engine = {num_engines = 1}
rollout = {num_workers = 1}
placement = {kind = "ray"}
"""
SEEN_S = 60.0  # a process of Ray has begun by then, also on a busy machine
RUN_ID = "test-ray"


def configured(*overrides: str) -> RunConfig:
    return parse(MINIMAL, overrides)


def idle(placement: RayPlacement, redis_url: str, name: str = "dealer", role: str = "dealer") -> ActorSpec:
    return ActorSpec(
        name=name,
        role=role,
        index=0,
        path="idle_actor.Idle",
        config=placement.config,
        run_dir=placement.run_dir,
        model_path="",
        bus_url=redis_url,
        run_id=RUN_ID,
        incarnation=1,
    )


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SEEN_S):
        while not await holds():  # noqa: ASYNC110  (of another process)
            await asyncio.sleep(0.02)


async def seen(placement: RayPlacement, name: str) -> Process:
    """Once it has a place."""

    async def has_one() -> bool:
        return placement.look()[name].where.startswith("ray ")

    await until(has_one)
    return placement.look()[name]


def pid_of(process: Process) -> int:
    return int(process.where.removeprefix("ray ").partition("@")[0])


def is_gone(process: psutil.Process) -> bool:
    """Or a zombie that nobody has asked for yet."""
    return process_of(process.pid).state in DEAD or not process.is_running()


async def _launch(run_dir: Path, bus_url: str) -> None:
    placement = RayPlacement(configured(), run_dir)
    placement.warm_up()
    await placement.make_room(print)
    placement.start(idle(placement, bus_url))
    print(pid_of(await seen(placement, "dealer")), namespace_of(run_dir), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_launch(Path(sys.argv[1]), sys.argv[2]))
