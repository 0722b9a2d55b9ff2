"""Who asks a Ray cluster for what, and who has to be together: pure.

Promises: the ranks of one tensor-parallel group of the learner are on one machine, and so are those of one engine; the
broadcaster is on that of rank 0; a machine has as many of the learner's groups, and of the engines, as fit, and as few
workers as it can; what an actor asks for is in exactly one bundle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from actors.runtime.plan import topology
from miles_async.config.layout import layout_of
from miles_async.config.schema import RunConfig
from miles_async.runs.places import asked, cpus, elastic_bounds

TOGETHER, APART = "PACK", "SPREAD"  # Ray's names of the strategies
BESIDE_RANK_0 = "broadcaster"
# a group for each, and how its bundles lie to each other; the other roles have no group
STRATEGIES = {"learner": TOGETHER, "engine": TOGETHER, "rollout": APART, "eval_engine": TOGETHER}


@dataclass(frozen=True)
class Bundle:
    """What is on one machine: ``resources`` by Ray's names, for the actors ``who``, for people."""

    who: str
    resources: Mapping[str, float]


@dataclass(frozen=True)
class Group:
    """Bundles that are kept for a run as long as it lives, all of them or none."""

    name: str
    strategy: str
    bundles: tuple[Bundle, ...]


@dataclass(frozen=True)
class Seat:
    """What one actor asks for, and where. ``group``: "" is none; ``bundle``: of the group. ``added``: no place is kept for it.
    ``beside_launch``: on the launch's machine, of which it asks nothing."""

    num_cpus: float
    num_gpus: float
    resources: Mapping[str, float] = field(default_factory=dict[str, float])
    group: str = ""
    bundle: int = 0
    apart: bool = False
    added: bool = False
    beside_launch: bool = False

    @property
    def bill(self) -> dict[str, float]:
        """By Ray's names; of nothing nothing."""
        found = {"CPU": self.num_cpus, "GPU": self.num_gpus, **self.resources}
        return {name: amount for name, amount in found.items() if amount}


def seat(config: RunConfig, role: str, index: int) -> Seat:
    """Of one actor; one beyond those that the configuration has (``miles-async scale``) is in no group, nor is one beyond those
    that there have to be (``placement.elastic``)."""
    section, width = asked(config, role), config.engine.tp_size if role == "engine" else 1
    counts, where = topology(config), "learner" if role == BESIDE_RANK_0 else role
    bounds = elastic_bounds(config) if role == "engine" else None
    grouped = where in STRATEGIES and index < (bounds[0] if bounds else counts[role])
    return Seat(
        num_cpus=cpus(config, role) * width,
        num_gpus=section.num_gpus * width,
        resources={name: amount * width for name, amount in section.resources.items()},
        group=where if grouped else "",
        bundle=index // layout_of(config.learner).tensor if role == "learner" and grouped else index if grouped else 0,
        apart=role == "rollout",
        added=role in STRATEGIES and not grouped,
        beside_launch=where not in STRATEGIES and not (cpus(config, role) or section.num_gpus or section.resources),
    )


def in_bundles(config: RunConfig, role: str, count: int) -> int:
    """How many actors of ``role`` there are places for in so many bundles."""
    return count * (layout_of(config.learner).tensor if role == "learner" else 1)


def groups(config: RunConfig) -> list[Group]:
    """Of all roles that have one."""
    found: list[Group] = []
    for name, strategy in STRATEGIES.items():
        bills: dict[int, Counter[str]] = {}
        who: dict[int, list[str]] = {}
        for role, count in topology(config).items():
            for index in range(count):
                one = seat(config, role, index)
                if one.group == name:
                    bills.setdefault(one.bundle, Counter()).update(one.bill)
                    who.setdefault(one.bundle, []).append(f"{role}-{index}" if role in STRATEGIES else role)
        bundles = tuple(Bundle(", ".join(who[number]), dict(bills[number])) for number in sorted(bills))
        if bundles:
            found.append(Group(name, strategy, bundles))
    return found


def bundles(config: RunConfig) -> list[Bundle]:
    """All that a run has to have, also outside of the groups."""
    grouped = [bundle for group in groups(config) for bundle in group.bundles]
    loose = [
        Bundle(role, bill)
        for role, count in topology(config).items()
        for index in range(count)
        if not (one := seat(config, role, index)).group and not one.added and (bill := one.bill)
    ]
    return grouped + loose


def total(bills: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Their sum."""
    found: Counter[str] = Counter()
    for bill in bills:
        found.update(bill)
    return dict(found)
