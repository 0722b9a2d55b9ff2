"""``miles-async launch --slurm | --kuberay | --recipe NAME``: a launch that a scheduler carries out on several machines.

Promises: with ``--dry-run`` the text that would be submitted is printed and nothing else happens; without, the scheduler's own
command is given exactly that text, or one line says that it is not there; no secret is in the text.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from miles_async.cli.load import load
from miles_async.config.schema import ConfigError, RunConfig
from miles_async.config.secrets import masked
from miles_async.config.toml import text_of
from miles_async.config.words import nearest
from miles_async.recipes.job import ON_RAY, Job
from miles_async.recipes.render import RECIPES, Recipe, render
from miles_async.recipes.sizing import Machine, needs, packed
from miles_async.runs import kinds
from miles_async.runs.provenance import without_secrets

GPUS = 8  # of a machine, where nobody says how many
RAY = "2.60.0"  # where this machine has none: what the image has
IMAGE = "miles-async:latest"
SHARED = Path("/shared")  # where a container finds the storage that all machines share


@dataclass(frozen=True)
class Wanted:
    """What the command line says beside the configuration."""

    slurm: bool = False
    kuberay: bool = False
    recipe: str | None = None
    nodes: int | None = None
    gpus_per_node: int | None = None
    cpus_per_node: int | None = None
    image: str | None = None
    template: Path | None = None

    def name(self) -> str | None:
        """Which recipe; None: none, and nothing of one is said. Raises ConfigError."""
        named = [name for name, given in (("slurm", self.slurm), ("rayjob", self.kuberay)) if given]
        if self.recipe is not None:
            if self.recipe not in RECIPES:
                raise ConfigError(
                    f'--recipe "{self.recipe}": there is none{nearest(self.recipe, RECIPES)} ({", ".join(RECIPES)})'
                )
            named.append(self.recipe)
        if len(set(named)) > 1:
            raise ConfigError(f"{' and '.join(sorted(set(named)))}: one recipe at a time")
        if not named:
            for flag in ("nodes", "gpus_per_node", "cpus_per_node", "image", "template"):
                if getattr(self, flag) is not None:
                    raise ConfigError(f"--{flag.replace('_', '-')} belongs to --slurm, --kuberay or --recipe")
        return named[0] if named else None


def prepare(
    config_file: Path, overrides: Sequence[str], run_dir: Path | None, default: Path, wanted: Wanted, name: str
) -> Job:
    """The job of a recipe. ``default``: the run directory where none is given. Raises ConfigError, one line."""
    recipe = RECIPES[name]
    here = recipe.runs_in == "here"
    # what lies in the image or on the cluster's storage cannot be looked at from here
    config = load(config_file, [*overrides, ON_RAY], check=here)
    text = text_of(config_file)
    _refuse_secrets(config, overrides, text if not here else "")
    placement = config.placement
    if placement.start_ray or placement.address is not None:
        key = "start_ray" if placement.start_ray else "address"
        raise ConfigError(f"placement.{key} is set, but a recipe brings a cluster of its own: leave it out")
    asking = needs(config)
    uses_gpus = any(need.num_gpus for need in asking)
    gpus = wanted.gpus_per_node if wanted.gpus_per_node is not None else GPUS if uses_gpus else 0
    machine = Machine(gpus, wanted.cpus_per_node)
    least = len(packed(asking, machine))
    nodes = wanted.nodes if wanted.nodes is not None else max(least, 2 if name == "compose" else 1)
    if nodes < least:
        raise ConfigError(
            f"--nodes {nodes}: the configuration asks for {least} machines of {gpus} GPUs (--gpus-per-node)"
        )
    directory = run_dir if run_dir is not None else default
    if here:
        kinds.refuse_another(directory, kinds.kind_of_config(config))
    return Job(
        config=config,
        config_file=config_file.resolve() if here else SHARED / config_file.name,
        config_text=text,
        overrides=tuple(overrides),
        run_dir=directory.absolute() if here else SHARED / directory,
        work_dir=Path.cwd() if here else SHARED,
        program=_program() if here else "miles-async",
        ray_version=_ray_version(),
        image=wanted.image or IMAGE,
        nodes=nodes,
        machine=machine,
        asking=tuple(asking),
    )


def carry_out(job: Job, name: str, wanted: Wanted, dry_run: bool) -> tuple[dict[str, Any], str]:
    """Submit the job, or only show what would be: a document, and the text for people. Raises ConfigError."""
    recipe = RECIPES[name]
    text = render(job, recipe, wanted.template)
    document = {
        "recipe": name,
        "nodes": job.nodes,
        "run_dir": str(job.run_dir),
        "submit": list(recipe.submit),
        "text": text,
    }
    if dry_run or not recipe.submit:
        return document, text.rstrip("\n")
    document["answer"] = answer = _submit(recipe, text, name)
    return document, answer


def _submit(recipe: Recipe, text: str, name: str) -> str:
    """What the scheduler's command says. Raises ConfigError: it is not there, or it refuses."""
    program = recipe.submit[0]
    if shutil.which(program) is None:
        raise ConfigError(
            f"{program} is not on the PATH: with --dry-run the text is printed, to be submitted elsewhere"
        )
    done = subprocess.run([*recipe.submit], input=text, text=True, capture_output=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise ConfigError(f"{' '.join(recipe.submit)} refused {name}, with code {done.returncode}: {last}")
    return done.stdout.strip()


def _refuse_secrets(config: RunConfig, overrides: Sequence[str], text: str) -> None:
    """What is written down and handed on has no key in it. Raises ConfigError."""
    if list(without_secrets(overrides)) != list(overrides) or (text and masked(config) != config):
        raise ConfigError("a recipe is written down: give keys, and a bus.url with a password, as env:NAME")


def _program() -> str:
    """This program, as every machine that shares the storage finds it."""
    beside = Path(sys.executable).with_name("miles-async")
    return str(beside) if beside.is_file() else "miles-async"


def _ray_version() -> str:
    try:
        return metadata.version("ray")
    except metadata.PackageNotFoundError:
        return RAY
