"""Actors, and a run, on a Ray cluster of three machines: how they start and end, what is said where there is no room; and the
run is that of one machine, also when an actor and a machine are lost on the way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from launching import (
    TINY,
    ask_status,
    begin,
    events,
    launch,
    left_behind,
    metrics,
    recording_environment,
    summary,
    wait_for_step,
    write_config,
)
from ray_actors import RUN_ID, SEEN_S, configured, idle, is_gone, pid_of, seen, until

from actors.runtime.placement.base import NoPlaceError
from actors.runtime.placement.on_ray.placement import RayPlacement, namespace_of
from actors.runtime.spec import ActorId
from benchmarks.lib.ray_machines import ROOT, RayMachines, left_in_ray, ray_machines
from bus import connect
from miles_async.runs import state

STEPS = 16
SYNCHRONOUS: dict[str, dict[str, Any]] = {
    "run": TINY["run"] | {"num_steps": STEPS},
    "staleness": {"max_lag": 0},
    "rollout": TINY["rollout"] | {"num_workers": 1},
    "engine": {"num_engines": 1},
    # an engine's log-probs depend on what it computes at once, in their last bits; the learner's own do not
    "algorithm": {"correction": "none", "old_log_probs": "recompute"},
}
# two machines besides the launch's; the engine is on one of them
ON_RAY: dict[str, dict[str, Any]] = {"placement": {"kind": "ray", "engine.resources.stage": 1.0}}


@pytest.fixture(scope="module")
def machines() -> Iterator[RayMachines]:
    with ray_machines(ROOT / "tests" / "support") as found:
        found.add("127.0.0.2", stage=1)
        found.add("127.0.0.3", stage=1, there=1)
        yield found


@pytest.fixture
async def placement(machines: RayMachines, tmp_path: Path) -> AsyncIterator[RayPlacement]:
    """Of a run that has its places; the dealer's is on a machine that is not the launch's."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    state.write(run_dir, state.RunState(RUN_ID, 1))
    found = RayPlacement(configured("placement.dealer={resources={there=1}}"), run_dir)
    found.warm_up()
    await found.make_room(print)
    yield found
    found.end()
    found.close()
    assert left_in_ray(machines.address, namespace_of(found.run_dir)) == []


async def test_an_actor_runs_where_its_resources_are_and_ends_when_it_is_asked(
    placement: RayPlacement, redis_url: str
) -> None:
    spec = idle(placement, redis_url)
    placement.start(spec)
    ended = asyncio.create_task(placement.ended(spec.id))
    found = await seen(placement, "dealer")
    assert found.where.endswith("@127.0.0.3") and placement.running() == [ActorId("dealer", 1)]
    process = psutil.Process(pid_of(found))
    bus = await connect(redis_url, RUN_ID)

    async def beats() -> bool:
        return [beat.where for beat in await bus.heartbeats()] == [found.where]

    await until(beats)  # from then on it hears signals
    await bus.close()
    placement.terminate(spec.id)
    ending = await asyncio.wait_for(ended, SEEN_S)
    assert ending.in_order, ending
    assert is_gone(process) and placement.running() == []
    placement.start(replace(spec, incarnation=2))  # the one that has ended is not in the way


async def test_the_end_of_a_stopped_process_is_told_when_it_is_gone(placement: RayPlacement, redis_url: str) -> None:
    spec = idle(placement, redis_url)
    placement.start(spec)
    ended = asyncio.create_task(placement.ended(spec.id))
    process = psutil.Process(pid_of(await seen(placement, "dealer")))
    process.suspend()

    async def is_stopped() -> bool:
        return placement.look()["dealer"].state == "stopped"

    await until(is_stopped)
    placement.terminate(spec.id, by_force=True)
    ending = await asyncio.wait_for(ended, SEEN_S)
    assert not ending.in_order and "was killed" in ending.how and "127.0.0.3" in ending.how
    assert is_gone(process)


async def test_what_can_never_be_had_is_refused_with_the_sums(machines: RayMachines, tmp_path: Path) -> None:
    placement = RayPlacement(configured("placement.learner.num_cpus=5", "placement.engine.num_gpus=2"), tmp_path)
    with pytest.raises(NoPlaceError) as caught:
        placement.warm_up()
    placement.close()
    assert "asks for CPU 7, GPU 2; the cluster has CPU 6, GPU 0 on 3 machines; missing: CPU 1, GPU 2" in str(
        caught.value
    )


async def test_what_has_to_be_together_and_fits_nowhere_is_named(machines: RayMachines, tmp_path: Path) -> None:
    config = configured("learner.num_ranks=4", "learner.tensor_parallel_size=4")
    placement = RayPlacement(config, tmp_path)
    with pytest.raises(
        NoPlaceError, match=r"broadcaster, learner-0.*CPU 4 has to be on one machine, and none has that"
    ):
        placement.warm_up()
    placement.close()


async def test_who_waits_for_room_says_for_what_and_gives_up(machines: RayMachines, tmp_path: Path) -> None:
    holder = RayPlacement(
        configured("placement.learner.num_cpus=2", "placement.engine.num_cpus=2"), tmp_path / "holder"
    )
    waiter = RayPlacement(
        configured("placement.learner.num_cpus=2", "placement.ready_timeout_s=3"), tmp_path / "waiter"
    )
    holder.warm_up()
    await holder.make_room(print)
    said: list[str] = []
    waiter.warm_up()
    with pytest.raises(
        NoPlaceError, match=r"within placement.ready_timeout_s = 3: .*learner \(CPU 2\).*; free in the cluster"
    ):
        await waiter.make_room(said.append)
    assert len(said) == 1 and "waiting for a place in Ray: " in said[0]
    holder.close()
    waiter.close()
    for one in (holder, waiter):
        assert left_in_ray(machines.address, namespace_of(one.run_dir)) == []


@pytest.mark.cluster  # starting four processes of Ray's takes more than its deadline beside the whole suite
async def test_there_is_room_on_machines_that_are_not_taken_back_and_who_is_on_one_is_told(
    machines: RayMachines, tmp_path: Path, redis_url: str
) -> None:
    spot = machines.add(spot=2)
    try:
        run_dir = tmp_path / "run"
        run_dir.mkdir()
        state.write(run_dir, state.RunState(RUN_ID, 1))
        elastic = ("placement.engine={resources={spot=1}}", "placement.elastic={min_engines=1, max_engines=3}")
        placement = RayPlacement(configured(*elastic), run_dir)
        placement.warm_up()
        await placement.make_room(print)
        for index in range(3):  # of the two besides the one whose place is kept there is room for one
            placement.start(replace(idle(placement, redis_url, f"engine-{index}", "engine"), index=index))

        async def two_are_there() -> bool:
            return len((await placement.room("engine")).waiting) == 1

        await until(two_are_there)
        found = await placement.room("engine")
        assert found.free == 0 and not found.noticed
        [waiting] = found.waiting
        placement.terminate(ActorId(waiting, 1))  # it has no place: it leaves at once
        assert not (await asyncio.wait_for(placement.ended(ActorId(waiting, 1)), SEEN_S)).in_order
        there = {actor.name for actor in placement.running()}
        machines.take_back(spot)

        async def they_are_noticed() -> bool:
            return (await placement.room("engine")).noticed == there

        await until(they_are_noticed)
        placement.terminate(ActorId(max(there), 1), by_force=True)
        await asyncio.wait_for(placement.ended(ActorId(max(there), 1)), SEEN_S)
        assert (await placement.room("engine")).free == 0  # nobody is there, and nobody comes
        placement.end()
        placement.close()
    finally:
        machines.lose(spot)
    assert left_in_ray(machines.address, namespace_of(run_dir)) == []


def test_a_launch_that_is_killed_leaves_no_actor_and_no_group(
    machines: RayMachines, tmp_path: Path, redis_url: str
) -> None:
    asked = [sys.executable, "-m", "ray_actors", str(tmp_path / "run"), redis_url]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as begun:
        assert begun.stdout is not None
        pid, namespace = begun.stdout.readline().split()
        assert psutil.pid_exists(int(pid))
        begun.send_signal(signal.SIGKILL)
    until = time.monotonic() + SEEN_S
    while psutil.pid_exists(int(pid)) or (left := left_in_ray(machines.address, namespace)):
        assert time.monotonic() < until, left
        time.sleep(0.05)


def test_a_run_that_is_too_large_for_the_cluster_is_one_line(machines: RayMachines, tmp_path: Path) -> None:
    config = write_config(tmp_path, placement=ON_RAY["placement"] | {"learner.num_gpus": 8})
    result = launch(config, tmp_path / "run")
    assert result.returncode == 1 and result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith(f"miles-async: the Ray cluster at {machines.address} is too small: the run asks for CPU ")
    assert "GPU 8" in line.partition("; missing: ")[2]


def test_a_launch_starts_no_cluster_unless_it_is_told_to(
    machines: RayMachines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, placement={"kind": "ray"})
    monkeypatch.delenv("RAY_ADDRESS")
    result = launch(config, tmp_path / "run")
    assert result.returncode == 2 and "Name its head in placement.address or RAY_ADDRESS" in result.stderr
    result = launch(config, tmp_path / "run", "--set", "placement.address=127.0.0.1:1")
    assert result.returncode == 1 and "miles-async: no Ray answers at 127.0.0.1:1: " in result.stderr


STARTS = """
import os, signal
import psutil
from actors.runtime.placement.on_ray.cluster import Cluster
from miles_async.config.schema import Placement
cluster = Cluster(Placement(kind="ray", start_ray=True), "test")
cluster.attach([])
for signum in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(signum, lambda *_: None)
started = psutil.Process().children(recursive=True)
os.killpg(0, signal.SIGTERM)
os.killpg(0, signal.SIGHUP)
print(len(cluster.machines()), sum(process.name() in ("gcs_server", "raylet") for process in started))
cluster.close()
print([process.name() for process in started if process.is_running() and process.status() != psutil.STATUS_ZOMBIE])
"""


def test_a_ray_that_a_launch_starts_hears_nothing_that_is_said_to_its_group_and_ends_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    asked = [sys.executable, "-c", STARTS]
    ended = subprocess.run(asked, capture_output=True, text=True, start_new_session=True, timeout=300, check=False)
    assert (ended.returncode, ended.stdout.splitlines()[-2:]) == (0, ["1 2", "[]"]), ended.stderr


def places(run_dir: Path) -> dict[str, tuple[int, str]]:
    """The process and the machine of each actor that has said so."""
    found = {actor["actor"]: actor["ray"].partition("@") for actor in ask_status(run_dir)["actors"] if "ray" in actor}
    return {name: (int(pid), host) for name, (pid, _, host) in found.items()}


def learnt(run_dir: Path) -> list[dict[str, float]]:
    """What a step came to, without what it took."""
    names = ("loss", "raw_reward", "grad_norm")
    steps = {line["step"]: line["values"] for line in metrics(run_dir) if "loss" in line["values"]}
    return [{name: steps[step][name] for name in names} for step in sorted(steps)]


def restarts(run_dir: Path) -> list[tuple[str, str]]:
    """Who was replaced, and why."""
    return [(event["data"]["actor"], event["data"]["cause"]) for event in events(run_dir, "restarted")]


def test_a_run_on_ray_is_the_run_of_one_machine_also_where_a_worker_and_a_machine_are_lost(
    machines: RayMachines, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    here, there = tmp_path / "here" / "run", tmp_path / "run"
    assert launch(write_config(tmp_path / "here", **SYNCHRONOUS), here, env=recording_environment()).returncode == 0
    process = begin(write_config(tmp_path, **SYNCHRONOUS, **ON_RAY), there)
    try:
        wait_for_step(there, 2, process)
        before = places(there)
        assert set(before) == {"router", "broadcaster", "engine-0", "rollout-0", "dealer", "learner-0"}
        assert before["broadcaster"][1] == before["learner-0"][1] != before["engine-0"][1]
        assert before["router"][1] == before["dealer"][1] == machines.address.partition(":")[0]
        os.kill(before["rollout-0"][0], signal.SIGKILL)
        machines.lose(before["engine-0"][1])
        _, err = process.communicate(timeout=150)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert summary(there)["balanced"]
    # the engine twice, where Ray had given its next life to the machine before it knew that it is gone
    causes = restarts(there)
    on_it = {name for name, (_, host) in before.items() if host == before["engine-0"][1]}
    assert {actor for actor, _ in causes} == {"rollout-0"} | on_it, causes
    assert all(cause.startswith(f"{actor}: its ") for actor, cause in causes), causes
    assert len(learnt(there)) == STEPS and learnt(there) == learnt(here)
    assert left_behind(there) == [] and left_in_ray(machines.address, namespace_of(there)) == []
