"""The recipes of ``examples/cluster``, as ``miles-async launch`` writes them for what is beside them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from miles_async.cli.load import load
from miles_async.cli.recipes import IMAGE, RAY
from miles_async.recipes.job import ON_RAY, Job
from miles_async.recipes.render import RECIPES, render
from miles_async.recipes.sizing import Machine, needs, packed

EXAMPLES = Path(__file__).parents[1] / "examples"
SHARED = Path("/shared")


def example(config_file: Path, machine: Machine, nodes: int | None = None) -> Job:
    """A launch of the example on machines that have ``/shared`` in common."""
    config = load(config_file, [ON_RAY], check=False)
    asking = needs(config)
    return Job(
        config=config,
        config_file=SHARED / config_file.name,
        config_text=config_file.read_text(),
        overrides=(),
        run_dir=SHARED / "runs" / config_file.stem,
        work_dir=SHARED,
        program="/shared/venv/bin/miles-async",
        ray_version=RAY,
        image=IMAGE,
        nodes=nodes or len(packed(asking, machine)),
        machine=machine,
        asking=tuple(asking),
    )


def _page(name: str, config: str, machine: Machine, nodes: int | None = None) -> str:
    return render(example(EXAMPLES / config, machine, nodes), RECIPES[name])


GPUS = Machine(gpus=8, cpus=None)
CPUS = Machine(gpus=0, cpus=2)
PAGES: dict[str, Callable[[], str]] = {
    "grpo.sbatch": partial(_page, "slurm", "cluster/grpo.toml", GPUS),
    "rayjob.yaml": partial(_page, "rayjob", "cluster/grpo.toml", GPUS),
    "raycluster.yaml": partial(_page, "raycluster", "cluster/grpo.toml", GPUS),
    "compose.yaml": partial(_page, "compose", "quickstart.toml", CPUS, 2),
}
