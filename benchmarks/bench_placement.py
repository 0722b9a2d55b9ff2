"""The same short job as processes of this machine, and as actors of a Ray cluster that runs here already: what Ray costs.

``examples/quickstart.toml`` for PLACEMENT_STEPS steps, PLACEMENT_REPEATS times with each ``placement.kind``, in turns; medians.
``first_step_s``: from the start of the command to the end of the first optimizer step. ``cpu_ms_per_step``: CPU time of the
loop (every actor, the launch, Redis) from the end of step FIRST on, start and end of the run not in it. ``ray_ms_per_step``:
that of Ray's own processes meanwhile (raylet, control store, agents, idle workers), which is none of the loop's.
``others_cores``: cores that all else on the machine kept busy; a result with more than 0.1 of them says nothing.

The cluster is one machine with CPUS of Ray's CPUs (the job asks for three), with Ray's own settings, but for the report of its
usage. It is started before the first run and is gone at the end. ``miles-async bench placement``.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lib.cpu_times import CpuTimes
from benchmarks.lib.launched import NOTE_INTERVAL_S, ROOT, by_role, launched, python_path, step_ends
from benchmarks.lib.ray_machines import ray_machines

REPEATS = 5
STEPS = 100
FIRST = 10  # the step from whose end on is counted
CPUS = 4
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0"}
LOCAL, RAY = "local", "ray"
LOOP = ("learner", "engine", "rollout", "router", "broadcaster", "dealer", "launch", "redis")
SETTINGS = ("run.target_reward=none", "monitor.live=off")
FIGURES = ("first_step_s", "cpu_ms_per_step", "ray_ms_per_step", "step_ms", "others_cores")


def run(repeats: int | None = None, steps: int | None = None) -> dict[str, Any]:
    """Figures of both, and of Ray over those of this machine. Raises RuntimeError: a run failed."""
    repeats = repeats or int(os.environ.get("PLACEMENT_REPEATS", REPEATS))
    steps = steps or int(os.environ.get("PLACEMENT_STEPS", STEPS))
    runs: dict[str, list[dict[str, Any]]] = {LOCAL: [], RAY: []}
    with ray_machines(cpus=CPUS, settings=ENVIRONMENT) as machines:
        for index in range(repeats):
            for kind in runs if index % 2 == 0 else reversed(runs):
                runs[kind].append(one(kind, steps, machines.pids()))
                print(kind, json.dumps(runs[kind][-1]), file=sys.stderr)
    return {
        **{kind: _medians(found) for kind, found in runs.items()},
        "ratio": {
            name: round(statistics.median(_of(runs[RAY], name)) / statistics.median(_of(runs[LOCAL], name)), 3)
            for name in ("first_step_s", "cpu_ms_per_step")
        },
        "repeats": repeats,
        "steps": steps,
        "runs": runs,
        "cores": os.cpu_count(),
    }


def one(kind: str, steps: int, cluster: Sequence[int]) -> dict[str, Any]:
    """The figures of one run. ``cluster``: the processes of Ray."""
    settings = [*SETTINGS, f"run.num_steps={FIRST + steps + 1}", f"placement.kind={kind}"]
    with contextlib.ExitStack() as stack:
        run_dir = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
        ray = CpuTimes(NOTE_INTERVAL_S)
        stack.enter_context(ray.following(*cluster))
        cpu, _ = launched(ROOT / "examples" / "quickstart.toml", run_dir, settings, {"PYTHONPATH": python_path()})
        ends = step_ends(run_dir)
    started, begin, end = cpu.notes[0][0], ends[FIRST], ends[FIRST + steps]
    loop, rays = parts(cpu.between(begin, end), ray.between(begin, end))
    seconds = sum(loop.values()) + sum(rays.values())
    return {
        "first_step_s": round(ends[1] - started, 3),
        "cpu_ms_per_step": _per_step(loop.values(), steps),
        "ray_ms_per_step": _per_step(rays.values(), steps),
        "step_ms": round((end - begin) / steps * 1e3, 2),
        "others_cores": round(max(0.0, (cpu.machine_between(begin, end) - seconds) / (end - begin)), 3),
        "roles": {role: _per_step([cpu_s], steps) for role, cpu_s in loop.most_common()},
    }


def parts(launch: Mapping[str, float], cluster: Mapping[str, float]) -> tuple[Counter[str], Counter[str]]:
    """CPU seconds by role, of the loop and of Ray. ``launch``: of the command and all below it; ``cluster``: of Ray's processes
    and all below them, where actors are among the workers that have none."""
    loop, ray = by_role(launch), Counter[str]()
    for role, cpu_s in cluster.items():
        (loop if role in LOOP else ray)[role] += cpu_s
    return loop, ray


def _per_step(seconds: Iterable[float], steps: int) -> float:
    """Milliseconds."""
    return round(sum(seconds) / steps * 1e3, 3)


def _of(runs: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [run[name] for run in runs]


def _medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    roles = {role: statistics.median(run["roles"].get(role, 0.0) for run in runs) for role in runs[0]["roles"]}
    return {name: round(statistics.median(_of(runs, name)), 3) for name in FIGURES} | {"roles": roles}


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
