"""How many machines a configuration comes to: what each role asks for, packed into machines. Pure.

Promises: the ranks that compute a layer together, and the ranks of one engine, are on one machine; what fits on none is refused
with the key that asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from miles_async.config.schema import ConfigError, RunConfig
from miles_async.engines.kinds.table import number_of
from miles_async.runs.places import asked, cpus


class Need(NamedTuple):
    """``number`` actors of a role; ``together``: so many of them on one machine. CPUs and GPUs are of one, an
    engine's those of all its ranks."""

    role: str
    number: int
    num_cpus: float
    num_gpus: float
    together: int = 1


class Machine(NamedTuple):
    """What one machine has. ``cpus`` None: nobody has said."""

    gpus: int
    cpus: int | None


def needs(config: RunConfig) -> list[Need]:
    """What a run's actors ask for, those that ask for nothing left out."""
    generates, evaluates = config.rollout.generates, config.eval.eval_interval is not None
    counts = {
        "learner": (config.learner.num_ranks, config.learner.tensor_parallel_size),
        "engine": (number_of(config.engine) if generates else 0, 1),
        "eval_engine": ((len(config.eval.urls) or config.eval.num_engines) if evaluates else 0, 1),
        "rollout": (config.rollout.num_workers, 1),
        **{role: (int(generates), 1) for role in ("broadcaster", "router")},
        "dealer": (1, 1),
        "evaluator": (int(evaluates), 1),
    }
    ranks = {"engine": config.engine.tp_size}
    found = [
        Need(
            role,
            count,
            cpus(config, role) * ranks.get(role, 1),
            asked(config, role).num_gpus * ranks.get(role, 1),
            together,
        )
        for role, (count, together) in counts.items()
    ]
    return [need for need in found if need.number and (need.num_cpus or need.num_gpus)]


def packed(asking: Sequence[Need], machine: Machine) -> list[float]:
    """The CPUs that are asked for on each ``machine`` that it takes: first fit, the largest first.

    Raises ConfigError: something fits on none.
    """
    for need in asking:
        _refuse_too_large(need, machine)
    parts = [
        (need.num_gpus * need.together, need.num_cpus * need.together)
        for need in asking
        for _ in range(math.ceil(need.number / need.together))
    ]
    most = math.inf if machine.cpus is None else machine.cpus
    used: list[list[float]] = []
    for gpus, cores in sorted(parts, reverse=True):
        for one in used:
            if one[0] + gpus <= machine.gpus and one[1] + cores <= most:
                break
        else:
            one = [0.0, 0.0]
            used.append(one)
        one[0] += gpus
        one[1] += cores
    return [cores for _, cores in used] or [0.0]


def _refuse_too_large(need: Need, machine: Machine) -> None:
    both = (
        ("num_gpus", "GPUs", need.num_gpus, machine.gpus, "--gpus-per-node"),
        ("num_cpus", "CPUs", need.num_cpus, machine.cpus, "--cpus-per-node"),
    )
    for key, what, one, there, flag in both:
        if there is not None and one * need.together > there:
            who = f"{need.together} of them compute together" if need.together > 1 else "one of them"
            raise ConfigError(
                f"placement.{need.role}.{key}: {who} on one machine, which is {one * need.together:g} {what}, and a machine "
                f"has {there} ({flag})"
            )


def describe(asking: Sequence[Need], machine: Machine, count: int) -> list[str]:
    """The arithmetic, a line each, for people."""
    rows = [
        f"{need.number} x {need.role}: {need.num_gpus:g} GPU, {need.num_cpus:g} CPU each"
        + (f", {need.together} on one machine" if need.together > 1 else "")
        for need in asking
    ]
    gpus, cores = (
        sum(need.number * need.num_gpus for need in asking),
        sum(need.number * need.num_cpus for need in asking),
    )
    has = f"{machine.gpus} GPU" + (f", {machine.cpus} CPU" if machine.cpus is not None else "")
    return [*rows, f"{gpus:g} GPU, {cores:g} CPU: {count} machine{'s' if count > 1 else ''} of {has}"]
