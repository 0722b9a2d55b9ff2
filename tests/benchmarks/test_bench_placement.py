"""`bench placement`: what is of the loop counts as that wherever it runs; several trees of processes are followed."""

from __future__ import annotations

import subprocess
import time

from benchmarks.bench_placement import parts
from benchmarks.lib.cpu_times import CpuTimes


def test_an_actor_below_ray_is_of_the_loop_and_rays_own_processes_are_not() -> None:
    loop, ray = parts(
        {"python": 1.0, "redis-server": 0.5},
        {"learner": 2.0, "engine": 3.0, "raylet": 0.25, "worker-0a-01": 0.125, "python": 0.0625},
    )
    assert loop == {"launch": 1.0, "redis": 0.5, "learner": 2.0, "engine": 3.0}
    assert ray == {"raylet": 0.25, "worker-0a-01": 0.125, "python": 0.0625}
    here, idle = parts({"python": 1.0, "learner": 2.0}, {"raylet": 0.25})
    assert here == {"launch": 1.0, "learner": 2.0} and idle == {"raylet": 0.25}


def test_several_trees_of_processes_are_followed_while_one_of_them_lives() -> None:
    with (
        subprocess.Popen(["cat"], stdin=subprocess.PIPE) as cat,
        subprocess.Popen(["tee"], stdin=subprocess.PIPE) as tee,
    ):
        cpu = CpuTimes(0.01)
        with cpu.following(cat.pid, tee.pid):
            _wait_for(cpu, 2)
            cat.communicate()
            _wait_for(cpu, len(cpu.notes) + 2)
            tee.communicate()
    begin, end = cpu.notes[0][0], cpu.notes[-1][0]
    assert cpu.between(begin, end).keys() == {"cat", "tee"} and cpu.machine_between(begin, end) >= 0.0


def _wait_for(cpu: CpuTimes, notes: int) -> None:
    until = time.monotonic() + 60
    while len(cpu.notes) < notes:
        assert time.monotonic() < until, f"{notes} notes within a minute"
        time.sleep(0.01)
