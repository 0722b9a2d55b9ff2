"""A run of the fault campaign on a Ray cluster of three machines: what its actors are hit by there, and what came of it.

Promises: those of every run of the campaign (``fault_run.py``); besides, a machine that is lost is followed by a new one, so
that there is room again; and a run that has ended has left no actor, no process and no placement group in Ray. Of every second
run Ray keeps the launch.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import ray

from actors.runtime.placement.on_ray.placement import namespace_of
from benchmarks.lib import fault_kinds
from benchmarks.lib.fault_run import FAULTS, FaultRun, Verdict
from benchmarks.lib.ray_machines import RayMachines, end_actors, left_in_ray
from miles_async.monitor.status import status

LAUNCH_RESTARTS = 10  # where Ray keeps the launch
# of six CPUs five are asked for: where a machine is lost, somebody waits until the next one is there
ON_RAY = ("placement.kind=ray",)
MACHINES = 2  # besides the launch's
GIVEN_UP_S = 14.0  # Ray needs about nine to give up who stands still (ray_machines.ENVIRONMENT)
NEXT_S = 3.0  # a new machine joins within that


class RayFaultRun(FaultRun):
    """One launch on ``machines``, where no other one is, and its faults."""

    timeout_s = 420.0

    def __init__(self, machines: RayMachines, directory: Path, seed: int, steps: int, kinds: Sequence[str]) -> None:
        self.machines = machines
        while len(machines.machines) < MACHINES:  # also those that the run before has lost
            machines.add()
        self.kept = seed % 2 == 1
        settings = (*ON_RAY, f"placement.launch_restarts={LAUNCH_RESTARTS if self.kept else 0}")
        other = OF_A_PROCESS if self.kept else OF_A_KEPT_LAUNCH
        super().__init__(directory, seed, steps, [kind for kind in kinds if kind not in other], settings)

    @property
    def special(self) -> dict[str, Callable[[RayFaultRun], bool]]:
        """No fork server is there to be stopped; and what only several machines have."""
        both = {**fault_kinds.KINDS, **KINDS}
        return {name: both[name] for name in both if name != "stopped fork server"}

    def play(self) -> Verdict:
        """Run to the end, faults and all."""
        try:
            return super().play()
        finally:
            end_actors(self.machines.address, namespace_of(self.run_dir))  # of a run that did not end
            ray.shutdown()

    def pid(self, name: str) -> int:
        """Of an actor: a number of this machine, as all of these are."""
        if name == "redis":
            return super().pid(name)
        found = {actor["actor"]: actor["ray"] for actor in status(self.run_dir)["actors"] if "ray" in actor}
        return int(next(where for actor, where in found.items() if actor == name).partition("@")[0])

    def some_machine(self) -> str | None:
        """One that is not the launch's, with an actor on it, if there is one."""
        places = [str(actor["ray"]).partition("@")[2] for actor in status(self.run_dir)["actors"] if "ray" in actor]
        found = sorted(set(places) & set(self.machines.machines))
        return self.rng.choice(found) if found else None

    def _left(self) -> list[str]:
        return [*super()._left(), *left_in_ray(self.machines.address, namespace_of(self.run_dir))]


def lose_machine(run: RayFaultRun) -> bool:
    """The raylet of a machine is killed, and with it all that is there; a moment later a new machine joins."""
    host = run.some_machine()
    if host is None:
        return False
    run.machines.lose(host)
    time.sleep(run.rng.random() * NEXT_S)
    run.machines.add()
    return True


def hang_machine(run: RayFaultRun) -> bool:
    """A machine stands still until Ray has given it up, while a new one joins; then it goes on where it was."""
    host = run.some_machine()
    if host is None:
        return False
    with run.machines.standing_still(host):
        run.machines.add()
        time.sleep(GIVEN_UP_S)
    return True


def kill_launch(run: RayFaultRun) -> bool:
    """The supervisor's process is killed; when nothing of it is left, the run is launched again."""
    run.crash_and_resume(lambda: None)
    return True


def kill_kept_launch(run: RayFaultRun) -> bool:
    """The supervisor's process is killed, and Ray starts another one."""
    os.kill(int(run.supervisor().pid or 0), signal.SIGKILL)
    return True


KINDS: dict[str, Callable[[RayFaultRun], bool]] = {
    "lose machine": lose_machine,
    "hang machine": hang_machine,
    "kill launch": kill_launch,
    "kill kept launch": kill_kept_launch,
}
# what is done to the command's process, which is the launch, or only follows one that Ray would start again
OF_A_PROCESS = ("kill launch", "full disk", "damaged append-only file")
OF_A_KEPT_LAUNCH = ("kill kept launch",)
# what is not done to a run, and why
IMPOSSIBLE = {
    "restart control store": "Ray 2.60.0's control store, started again, aborts when a placement group over several machines "
    "is removed (raylet_client.cc: all bundles in a RemovePlacementGroupBundles batch must target the same node)"
}
ALL_FAULTS = [*FAULTS, *(name for name in fault_kinds.KINDS if name != "stopped fork server"), *KINDS]
