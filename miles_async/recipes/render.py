"""From a job and a template to a recipe's text. Pure but for the reading of templates.

Promises: the same job gives the same text; a template that asks for something that there is not, or that is none, is one line.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import NamedTuple

import jinja2

from miles_async.config.schema import ConfigError
from miles_async.recipes.job import Job
from miles_async.recipes.sizing import describe

_TEMPLATES = Path(__file__).parent / "templates"


class Recipe(NamedTuple):
    """``template``: its file. ``submit``: the command that is given the text; empty: people do. ``runs_in``: where the
    launch finds its files: "here" (storage that this machine shares with the cluster) or "image"."""

    template: str
    submit: tuple[str, ...]
    runs_in: str
    says: str


RECIPES = {
    "slurm": Recipe("slurm.sbatch.j2", ("sbatch",), "here", "a job script for sbatch"),
    "rayjob": Recipe("rayjob.yaml.j2", ("kubectl", "apply", "-f", "-"), "image", "a RayJob of KubeRay"),
    "raycluster": Recipe(
        "raycluster.yaml.j2", ("kubectl", "apply", "-f", "-"), "image", "a RayCluster of KubeRay that stays"
    ),
    "compose": Recipe(
        "compose.yaml.j2",
        ("docker", "compose", "-f", "-", "up", "--detach"),
        "image",
        "machines of docker compose on one",
    ),
    "ray-start": Recipe("ray-start.sh.j2", (), "here", "the commands for each machine"),
}


def render(job: Job, recipe: Recipe, template: Path | None = None) -> str:
    """The recipe's text. ``template``: one in the place of ours, with the same names. Raises ConfigError."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell and YAML, which `sh` and `yaml` quote
    )
    environment.filters |= {"sh": lambda value: shlex.quote(str(value)), "yaml": _yaml}
    where = recipe.template if template is None else str(template)
    try:
        found = (
            environment.get_template(recipe.template)
            if template is None
            else environment.from_string(template.read_text())
        )
        text = found.render(job=job, sizing=describe(job.asking, job.machine, job.nodes))
        return text.rstrip("\n") + "\n"
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"{where}, line {error.lineno}: {error.message}") from None
    except jinja2.TemplateError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--template {where}: {getattr(error, 'strerror', None) or error}") from None


def _yaml(value: object) -> str:
    """A scalar for YAML, which reads JSON's."""
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
