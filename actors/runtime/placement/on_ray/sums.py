"""What is asked of a cluster beside what it has: the line that says what is missing, before anybody waits. Pure.

Promises: what is refused could never be placed on these machines, however empty they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.runtime.placement.on_ray.layout import Bundle, total

NEARLY_NONE = 1e-6  # sums of fractions are not exact
# what every machine has a share of, and nobody here asks for
OF_RAY = ("memory", "object_store_memory", "node:", "accelerator_type:")
IN_A_GROUP = "_group_"  # what is kept for one, under names of its own


@dataclass(frozen=True)
class Machine:
    """``total``: of an empty one."""

    name: str
    total: Mapping[str, float]


def missing(bundles: Sequence[Bundle], machines: Sequence[Machine]) -> str:
    """Why they can never all be placed; empty: they may be."""
    wants, has = total(bundle.resources for bundle in bundles), total(machine.total for machine in machines)
    lacks = {name: amount - has.get(name, 0.0) for name, amount in wants.items()}
    if short := {name: amount for name, amount in lacks.items() if amount > NEARLY_NONE}:
        return (
            f"the run asks for {shown(wants)}; the cluster has {shown(_of_interest(has, wants))} on "
            f"{_machines(len(machines))}; missing: {shown(short)} (fewer ranks, engines or workers, or less in placement.ROLE)"
        )
    for bundle in bundles:
        if not any(fits(bundle.resources, machine.total) for machine in machines):
            largest = ", ".join(
                f"{machine.name} {shown(_of_interest(machine.total, wants))}" for machine in machines[:4]
            )
            more = f" and {len(machines) - 4} more" if len(machines) > 4 else ""
            return (
                f"{bundle.who}: {shown(bundle.resources)} has to be on one machine, and none has that: {largest}{more}"
            )
    return ""


def fits(bill: Mapping[str, float], room: Mapping[str, float]) -> bool:
    """Whether all of it is there."""
    return all(amount <= room.get(name, 0.0) + NEARLY_NONE for name, amount in bill.items())


def copies(bill: Mapping[str, float], room: Mapping[str, float]) -> int:
    """How many times all of ``bill`` is in ``room``, of one machine. It asks for something."""
    return min(int((room.get(name, 0.0) + NEARLY_NONE) / amount) for name, amount in bill.items())


def shown(bill: Mapping[str, float]) -> str:
    """For people: "CPU 4, GPU 1"."""
    ours = {name: amount for name, amount in bill.items() if not name.startswith(OF_RAY) and IN_A_GROUP not in name}
    return ", ".join(f"{name} {amount:.6g}" for name, amount in sorted(ours.items())) or "nothing"


def _of_interest(bill: Mapping[str, float], wants: Mapping[str, float]) -> dict[str, float]:
    return {name: bill.get(name, 0.0) for name in wants}


def _machines(count: int) -> str:
    return f"{count} machine" if count == 1 else f"{count} machines"
