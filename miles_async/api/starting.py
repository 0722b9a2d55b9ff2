"""Starting a run from Python: its configuration, from a file or made in Python, checked and handed to a launch.

Promises: what is wrong with a configuration is raised before anything starts, as the line that the command line says; the
launch is a process in a session of its own.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any, Unpack

from miles_async.api.run import LOG, Run
from miles_async.cli import forking, running
from miles_async.cli.launch_check import check_topology
from miles_async.cli.load import check_all, resolve_paths
from miles_async.cli.load import load as load_config
from miles_async.config import toml
from miles_async.config.overrides import Overrides
from miles_async.config.schema import ConfigError, RunConfig
from miles_async.config.secrets import masked
from miles_async.config.typed import is_section, key_types, table_of
from miles_async.config.words import NONE
from miles_async.config.words import toml as as_toml
from miles_async.resume import fork
from miles_async.runs import kinds

CONFIG = "launch.toml"  # in the run directory: a configuration that was made in Python


def launch(
    config: str | Path | RunConfig,
    *,
    run_dir: str | Path | None = None,
    from_run: str | None = None,
    **overrides: Unpack[Overrides],
) -> Run:
    """Start a run, and return at once.

    config: a TOML file, or a configuration made in Python, whose relative paths are of the working directory. run_dir: as
    ``--run-dir``: one that has a run goes on with it. from_run: as ``--from``. overrides: a section's keys, as
    ``run={"num_steps": 20}``; None unsets a key. Raises ConfigError, and what else ``miles-async launch`` refuses in one line.
    """
    sets = list(_overrides(overrides))
    name = Path("run") if isinstance(config, RunConfig) else Path(config)
    directory = Path(run_dir or running.default_run_dir(name)).absolute()
    origin = fork.origin(directory, from_run)
    if isinstance(config, RunConfig):
        kinds.refuse_another(directory, kinds.kind_of_config(config))
        text = _as_text(config, [*sets, *forking.overrides(origin)])
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = directory / CONFIG
        name.write_text(text)
    else:
        loaded = load_config(name, [*sets, *forking.overrides(origin)])
        kinds.refuse_another(directory, kinds.kind_of_config(loaded))
        check_topology(loaded, load=False)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    words = [part for override in sets for part in ("--set", override)] + (["--from", from_run] if from_run else [])
    command = [sys.executable, "-m", "miles_async.cli.app", "launch", str(name), *words, "--run-dir", str(directory)]
    launched = time.time()
    with (directory / LOG).open("ab") as log:
        # in a session of its own: a Ctrl-C here, or the end of a notebook's kernel, is not the run's
        process = Popen(command, stdin=DEVNULL, stdout=log, stderr=log, env=dict(os.environ), start_new_session=True)
    return Run(directory, process, launched)


def configuration(**sections: Unpack[Overrides]) -> RunConfig:
    """A configuration that :func:`launch` takes, made in Python: the keys of each section, as ``run={"num_steps": 20}``; those
    that are left out have their defaults. Raises ConfigError, as a TOML file with these keys would."""
    return toml.parse("", list(_overrides(sections)))


def _overrides(sections: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """``{"run": {"num_steps": 3}}`` as ``run.num_steps=3``."""
    kinds = key_types()
    for name, value in sections.items():
        key = f"{above}{name}"
        kind = kinds.get(key)
        if isinstance(value, Mapping) and (kind is None or is_section(kind) or table_of(kind) is not None):
            yield from _overrides(value, f"{key}.")
        else:
            value = str(value) if isinstance(value, Path) else value
            yield f"{key}={as_toml(NONE if value is None else value)}"


def _as_text(config: RunConfig, sets: Sequence[str]) -> str:
    """The TOML of a configuration that a launch would take. Raises ConfigError."""
    config = resolve_paths(config, Path.cwd())
    if masked(config) != config:
        raise ConfigError(
            "a configuration is written down for its launch: give keys, and a bus.url with a password, as env:NAME"
        )
    text = toml.dump(config)
    checked = toml.parse(text, sets)
    check_all(resolve_paths(checked, Path.cwd()))
    check_topology(checked, load=False)
    return text
