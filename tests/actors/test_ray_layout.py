"""Who is together on a Ray cluster, and the sums: pure, without one."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from actors.runtime.placement.on_ray import layout, sums
from actors.runtime.placement.on_ray.groups import Groups
from actors.runtime.plan import topology
from miles_async.cli.load import parse
from miles_async.config.schema import RunConfig

MINIMAL = """
model = {hf_checkpoint = "builtin:digits"}
data = {prompt_data = "builtin:repeat"}
algorithm = {correction = "behaviour"}
placement = {kind = "ray"}
"""
WIDE = (
    "learner.num_ranks=8",
    "learner.tensor_parallel_size=2",
    "learner.pipeline_parallel_size=2",
    "rollout.num_workers=3",
    "placement.learner={num_gpus=1, num_cpus=4}",
    "placement.engine={num_gpus=1, resources={fast=1}}",
    "placement.broadcaster.num_cpus=2",
)


def configured(*overrides: str) -> RunConfig:
    return parse(MINIMAL, overrides)


def test_tensor_parallel_ranks_and_the_broadcaster_with_rank_0_are_on_one_machine() -> None:
    config = configured(*WIDE)
    groups = {group.name: group for group in layout.groups(config)}
    assert {name: group.strategy for name, group in groups.items()} == {
        "learner": "PACK",
        "engine": "PACK",
        "rollout": "SPREAD",
    }
    assert [bundle.who for bundle in groups["learner"].bundles] == [
        "broadcaster, learner-0, learner-1",
        "learner-2, learner-3",
        "learner-4, learner-5",
        "learner-6, learner-7",
    ]
    assert [bundle.resources for bundle in groups["learner"].bundles] == [{"CPU": 10, "GPU": 2}] + [
        {"CPU": 8, "GPU": 2}
    ] * 3
    assert [layout.seat(config, "learner", rank).bundle for rank in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_all_that_a_run_asks_for_is_asked_for_once() -> None:
    config = configured(*WIDE, "placement.dealer.num_cpus=0.5", "placement.router.resources={edge=1}")
    seats = [layout.seat(config, role, index) for role, count in topology(config).items() for index in range(count)]
    asked = layout.total(bundle.resources for bundle in layout.bundles(config))
    assert asked == layout.total(seat.bill for seat in seats)
    assert asked == {"CPU": 8 * 4 + 2 + 2 + 3 + 0.5, "GPU": 10, "fast": 2, "edge": 1}
    assert [seat.beside_launch for seat in seats if not seat.group] == [False, False]
    assert layout.seat(configured(), "router", 0).beside_launch  # of which it asks nothing


def test_an_engine_has_all_its_ranks_and_one_that_is_added_has_no_kept_place() -> None:
    config = configured("placement.engine={num_gpus=1}")
    config = replace(config, engine=replace(config.engine, kind="sglang", num_engines=2, tp_size=4))
    kept, added = layout.seat(config, "engine", 1), layout.seat(config, "engine", 2)
    assert (kept.group, kept.bundle, kept.added, kept.bill) == ("engine", 1, False, {"CPU": 4, "GPU": 4})
    assert (added.group, added.added, added.bill) == ("", True, kept.bill)


def test_with_elastic_engines_places_are_kept_for_those_that_there_have_to_be() -> None:
    config = configured("engine.num_engines=3", "placement.elastic={min_engines=2, max_engines=8}")
    assert [len(group.bundles) for group in layout.groups(config) if group.name == "engine"] == [2]
    assert [layout.seat(config, "engine", index).group for index in range(4)] == ["engine", "engine", "", ""]
    assert layout.seat(config, "engine", 2).added
    # a cluster that has room for two engines has room for the run
    fixed = configured("engine.num_engines=2")
    assert layout.total(b.resources for b in layout.bundles(config)) == layout.total(
        b.resources for b in layout.bundles(fixed)
    )


def test_places_of_the_learner_are_as_many_as_its_bundles_have_ranks() -> None:
    config = configured(*WIDE)
    assert [layout.in_bundles(config, role, 3) for role in ("learner", "engine", "rollout")] == [6, 3, 3]


def test_bundles_that_are_on_a_machine_come_first_and_what_was_first_of_them_stays_there() -> None:
    groups = Groups(configured("learner.num_ranks=3", "rollout.rollout_batch_size=6"), "", None)  # type: ignore[arg-type]
    seen = [[1, 2], [0, 1, 2], [0, 2], [0, 1, 2]]  # as bundles are lost, and there again
    firsts = []
    for there in seen:
        groups.there = lambda _, there=there: (there, ())  # type: ignore[method-assign,assignment]
        groups.rearrange("learner")
        firsts.append([groups.bundle("learner", place) for place in range(3)])
    assert firsts == [[1, 2, 0], [1, 2, 0], [2, 0, 1], [2, 0, 1]]
    assert groups.bundle("engine", 1) == 1


def test_how_many_more_have_room_on_a_machine_is_told_by_what_it_has_least_of() -> None:
    machine = {"CPU": 3.0, "GPU": 0.9999999, "stage": 1.0}
    assert sums.copies({"CPU": 1}, machine) == 3 and sums.copies({"CPU": 1, "GPU": 0.5}, machine) == 2
    assert sums.copies({"CPU": 1, "other": 1}, machine) == 0


def test_what_is_free_is_shown_without_what_ray_keeps_for_itself() -> None:
    free = {
        "CPU": 0.5,
        "edge": 1.0,
        "memory": 2e10,
        "node:10.0.0.1": 1.0,
        "CPU_group_0_a1": 2.0,
        "bundle_group_a1": 999.0,
    }
    assert sums.shown(free) == "CPU 0.5, edge 1"


@pytest.mark.parametrize(
    ("machines", "said"),
    [
        ([{"CPU": 4}, {"CPU": 1}], ""),
        ([{"CPU": 2}, {"CPU": 2}], "asks for CPU 5; the cluster has CPU 4 on 2 machines; missing: CPU 1 ("),
        ([], "the cluster has CPU 0 on 0 machines; missing: CPU 5 ("),
        ([{"CPU": 1}] * 5, "broadcaster, learner-0: CPU 2 has to be on one machine, and none has that: m0 CPU 1"),
    ],
)
def test_what_is_missing_is_said_and_only_what_could_never_be_placed(
    machines: list[dict[str, float]], said: str
) -> None:
    bundles = layout.bundles(configured("placement.broadcaster.num_cpus=1", "rollout.num_workers=1"))
    found = sums.missing(bundles, [sums.Machine(f"m{number}", total) for number, total in enumerate(machines)])
    assert said in found and bool(found) == bool(said)
