"""How many machines a configuration comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.runtime.placement.on_ray import layout
from miles_async.cli.load import load, parse
from miles_async.config.schema import ConfigError, RunConfig
from miles_async.recipes.sizing import Machine, Need, needs, packed

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path for path in ROOT.glob("examples/**/*.toml") if "[model]" in path.read_text())
BASE = '[model]\nhf_checkpoint = "none"\n[data]\nprompt_data = "none"\n'


def config(**keys: Any) -> RunConfig:
    return parse(BASE, [f"{key.replace('__', '.')}={value}" for key, value in keys.items()], check=False)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_a_recipe_counts_is_what_a_run_asks_ray_for(path: Path) -> None:
    found = load(path, ["placement.kind=ray", "placement.router.num_cpus=0.5"], check=False)
    asked = layout.total(bundle.resources for bundle in layout.bundles(found))
    asking = needs(found)
    assert sum(need.number * need.num_cpus for need in asking) == asked["CPU"]
    assert sum(need.number * need.num_gpus for need in asking) == asked.get("GPU", 0)
    largest = max(bundle.resources.get("GPU", 0) for bundle in layout.bundles(found))
    assert max(need.num_gpus * need.together for need in asking) == largest


def test_an_engine_asks_for_the_gpus_of_all_its_ranks() -> None:
    wide = config(engine__kind="sglang", engine__num_engines=3, engine__tp_size=4, placement__engine__num_gpus=1)
    assert Need("engine", 3, 4.0, 4.0) in needs(wide)
    assert len(packed(needs(wide), Machine(8, None))) == 2


@pytest.mark.parametrize(
    "asking, expected",
    [
        ([], 1),
        ([Need("learner", 8, 0, 1)], 1),
        ([Need("learner", 8, 0, 1), Need("engine", 4, 0, 2)], 2),
        ([Need("learner", 12, 0, 1, 4), Need("engine", 4, 0, 1)], 2),
        ([Need("learner", 8, 0, 1, 4), Need("engine", 3, 0, 3)], 3),  # 4+3, 4+3, 3
        ([Need("engine", 3, 0, 5)], 3),  # no two fit beside each other
        ([Need("rollout", 40, 1, 0)], 3),
        ([Need("learner", 8, 2, 1), Need("rollout", 16, 1, 0)], 2),
        ([Need("engine", 16, 0, 0.5)], 1),
    ],
)
def test_actors_are_packed_into_machines_of_8_gpus_and_16_cpus(asking: list[Need], expected: int) -> None:
    cores = packed(asking, Machine(8, 16))
    assert len(cores) == expected and max(cores) <= 16
    assert sum(cores) == sum(need.number * need.num_cpus for need in asking)


def test_what_fits_on_no_machine_names_the_key_that_asks_for_it() -> None:
    with pytest.raises(ConfigError, match=r"placement\.engine\.num_gpus: one of them .* 16 GPUs, and a machine has 8"):
        packed([Need("engine", 1, 0, 16)], Machine(8, None))
    with pytest.raises(ConfigError, match=r"placement\.learner\.num_gpus: 16 of them compute together"):
        packed([Need("learner", 16, 0, 1, 16)], Machine(8, None))
    with pytest.raises(
        ConfigError, match=r"placement\.rollout\.num_cpus: .* 4 CPUs, and a machine has 2 \(--cpus-per-node\)"
    ):
        packed([Need("rollout", 1, 4, 0)], Machine(0, 2))
