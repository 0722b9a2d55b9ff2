"""The fault campaign: small runs in which random processes are killed at random moments, and what came of it.

Each run trains while 1 to 4 faults hit it: kill -9 of any actor or of Redis, a stop (SIGSTOP) for longer than the lease,
all connections to Redis dropped at once. Every run must finish by itself with a ledger that balances at every checkpoint
and at the end, no group trained twice, none missing, no token older than the bound, no process left
(``fault_run.py`` has the verdict); or end with one line, and do so when it is resumed. ``fault_kinds.py`` has what is more than
a signal: what comes late, is forged or damaged, a full disk. Seeded. ``miles-async bench faults`` with, from the
environment, ``FAULT_RUNS`` (how many, 10), ``FAULT_STEPS`` (of each, 100), ``FAULT_SEED`` (the first, 1), ``FAULT_JOBS`` (at
the same time, 1), ``FAULT_KINDS`` (``all``; ``processes``: signals only; names, with commas between them).

With ``FAULT_PLACEMENT`` (``local``, ``ray``, or both with a comma between them) the runs are processes of this machine, or
actors on a Ray cluster of three machines that is started here, where machines are lost, too (``ray_fault_run.py``); both: the
same seeds, one table beside the other. Runs on Ray come one after the other.

With ``FAULT_LAYOUT`` (``all``, or names of ``layout_runs.py`` with commas between them) the learner is split, and ranks of it
are killed, ``FAULT_KILLS`` times (5) in a run of ``FAULT_STEPS`` (60) at bound 0, whose end has to be that of an undisturbed
run, bit for bit. Raises BrokenPromiseError if a run breaks a promise.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.lib.fault_run import ALL_FAULTS, FAULTS, FaultRun, Verdict
from benchmarks.lib.layout_runs import LAYOUTS, LayoutRun, compared, of_model

LOCAL, RAY = "local", "ray"


class BrokenPromiseError(AssertionError):
    """Runs in which something was lost, doubled, too old, or left behind: which, and the promise."""


def run(
    runs: int | None = None,
    seed: int | None = None,
    jobs: int | None = None,
    steps: int | None = None,
    kinds: str | None = None,
) -> dict[str, Any]:
    """The table: fault, how often, lost, twice, seconds until the next optimizer step (median, max); or of_layouts'."""
    if layouts := os.environ.get("FAULT_LAYOUT"):
        return of_layouts(list(LAYOUTS) if layouts == "all" else layouts.split(","))
    runs = runs or int(os.environ.get("FAULT_RUNS", "10"))
    seed = seed or int(os.environ.get("FAULT_SEED", "1"))
    jobs = jobs or int(os.environ.get("FAULT_JOBS", "1"))
    steps = steps or int(os.environ.get("FAULT_STEPS", "100"))
    named = kinds or os.environ.get("FAULT_KINDS", "all")
    placements = os.environ.get("FAULT_PLACEMENT", LOCAL).split(",")
    if unknown := set(placements) - {LOCAL, RAY}:
        raise ValueError(f"FAULT_PLACEMENT: {', '.join(sorted(unknown))} is none of {LOCAL}, {RAY}")
    found = {where: of_placement(where, range(seed, seed + runs), jobs, steps, named) for where in placements}
    broken = {where: result.pop("broken") for where, result in found.items()}
    result = found[LOCAL] if placements == [LOCAL] else {"placements": found}
    if any(broken.values()):
        raise BrokenPromiseError(json.dumps({"broken": broken, **result}))
    return result


def of_placement(where: str, seeds: range, jobs: int, steps: int, named: str) -> dict[str, Any]:
    """The table of the runs of ``seeds`` there; ``broken``: by seed, which promises were."""
    kinds = chosen(where, named)
    with contextlib.ExitStack() as stack:
        play = FaultRun if where == LOCAL else _on_ray(stack)
        jobs = jobs if where == LOCAL else 1
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        # machines of Ray can join in the main thread only
        each = map if where == RAY else stack.enter_context(ThreadPoolExecutor(jobs)).map
        verdicts = list(each(lambda seed: _play(play(directory, seed, steps, kinds)), seeds))
    result = {"runs": len(seeds), "first_seed": seeds.start, "jobs": jobs, "steps": steps, "faults": table(verdicts)}
    for what in ("resumes", "quarantined"):
        result[what] = sum(getattr(verdict, what) for verdict in verdicts)
    return {**result, "broken": {v.seed: [*v.broken, str(v.recoveries)] for v in verdicts if v.broken}}


def chosen(where: str, named: str) -> list[str]:
    """The faults that ``FAULT_KINDS`` names. Raises ValueError: there is none of that name there."""
    known, impossible = ALL_FAULTS, dict[str, str]()
    if where == RAY:
        from benchmarks.lib import ray_fault_run  # costs Ray

        known, impossible = ray_fault_run.ALL_FAULTS, ray_fault_run.IMPOSSIBLE
    kinds = {"processes": FAULTS, "all": known}.get(named) or named.split(",")
    if refused := [f"{kind}: {impossible[kind]}" for kind in kinds if kind in impossible]:
        raise ValueError(f"FAULT_KINDS: {refused[0]}")
    if unknown := set(kinds) - set(known):
        raise ValueError(f"FAULT_KINDS: {', '.join(sorted(unknown))} is none of {', '.join(known)}")
    return list(kinds)


def _on_ray(stack: contextlib.ExitStack) -> Callable[..., FaultRun]:
    """On a cluster that ends with ``stack``."""
    from benchmarks.lib.ray_fault_run import RayFaultRun
    from benchmarks.lib.ray_machines import ray_machines

    return functools.partial(RayFaultRun, stack.enter_context(ray_machines()))


def of_layouts(
    names: Sequence[str], seed: int | None = None, steps: int | None = None, kills: int | None = None
) -> dict[str, Any]:
    """For each layout: what its undisturbed run differs in from one process', whether its end is that of the run with kills,
    and seconds from a kill to the next optimizer step."""
    if unknown := set(names) - set(LAYOUTS):
        raise ValueError(f"FAULT_LAYOUT: {', '.join(sorted(unknown))} is none of {', '.join(LAYOUTS)}")
    seed = seed or int(os.environ.get("FAULT_SEED", "1"))
    steps = steps or int(os.environ.get("FAULT_STEPS", "60"))
    kills = kills or int(os.environ.get("FAULT_KILLS", "5"))
    with tempfile.TemporaryDirectory(prefix="faults-") as directory:
        root, alone = Path(directory), dict[bool, LayoutRun]()
        broken, found = dict[str, list[str]](), dict[str, Any]()
        for name in names:
            mixture = LAYOUTS[name].mixture
            if mixture not in alone:
                one = "one process" + (", a mixture" if mixture else "")
                alone[mixture] = LayoutRun(root / one, seed, steps, of_model(root, seed, mixture=mixture))
                broken[one] = alone[mixture].play().broken
            found[name] = _layout(root, name, alone[mixture], kills)
    broken |= {name: of_layout.pop("broken") for name, of_layout in found.items()}
    result = {"first_seed": seed, "steps": steps, "kills": kills, "layouts": found}
    if any(broken.values()):
        raise BrokenPromiseError(json.dumps({"broken": broken, **result}))
    return result


def _layout(root: Path, name: str, one: LayoutRun, kills: int) -> dict[str, Any]:
    settings = (*one.settings, *LAYOUTS[name].settings)
    split = LayoutRun(root / name, one.seed, one.steps, settings)
    undisturbed = split.play()
    killed = LayoutRun(root / f"{name}-killed", one.seed, one.steps, settings, kills)
    disturbed = killed.play()
    print(f"{name}: {disturbed.recoveries}", file=sys.stderr)
    broken = [*undisturbed.broken, *disturbed.broken]
    found = {"broken": []} if broken else compared(one, split, killed)
    return {**found, "broken": broken + found["broken"], "faults": table([disturbed])}


def _play(run: FaultRun) -> Verdict:
    verdict = run.play()
    faults = ", ".join(f"{fault} ({seconds:.1f} s)" for fault, seconds in verdict.recoveries)
    print(
        f"seed {verdict.seed}: {faults}{'; BROKEN: ' if verdict.broken else ''}{verdict.broken or ''}", file=sys.stderr
    )
    return verdict


def table(verdicts: Iterable[Verdict]) -> dict[str, dict[str, float]]:
    """One row for each fault. ``lost`` and ``twice`` count for every fault of the run in which they happened."""
    rows: dict[str, list[tuple[float, Verdict]]] = {}
    for verdict in verdicts:
        for fault, seconds in verdict.recoveries:
            rows.setdefault(fault, []).append((seconds, verdict))
    return {
        fault: {
            "count": len(found),
            "lost": sum(verdict.lost for _, verdict in found),
            "twice": sum(verdict.twice for _, verdict in found),
            "recovery_s_median": round(statistics.median(seconds for seconds, _ in found), 2),
            "recovery_s_max": round(max(seconds for seconds, _ in found), 2),
        }
        for fault, found in sorted(rows.items())
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
