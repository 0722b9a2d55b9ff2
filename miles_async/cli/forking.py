"""``miles-async launch --from RUN[@STEP]``: the configuration of a run that begins with another one's weights, their export.

Promises: whatever is wrong with the configuration is said before anything is written; the export is a process of its own: it
loads torch and the model, which a launch has no use for.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from miles_async.config.schema import ConfigError, RunConfig
from miles_async.config.words import toml
from miles_async.resume import fork
from miles_async.resume.fork import Origin

TIMEOUT_S = 3600.0  # of an export


def overrides(origin: Origin | None) -> list[str]:
    """What the configuration of a fork is looked at with: the model that the other run began with, which is like its own."""
    return [] if origin is None else [f"model.hf_checkpoint={toml(origin.model)}"]


def with_weights(config: RunConfig, origin: Origin | None, run_dir: Path, *, dry_run: bool) -> RunConfig:
    """``config`` with the weights of ``origin``, once they are in ``run_dir``. Raises ConfigError: they cannot be had.

    dry_run: nothing is written; where they are not there yet it is the model that the other run began with.
    """
    if origin is None:
        return config
    if fork.read(run_dir) is None:
        does = "would take" if dry_run else "takes"
        print(f"miles-async: {does} the weights of {origin.run} at step {origin.step}", file=sys.stderr)
        if dry_run:
            return config
        fork.keep(run_dir, origin, _convert)
    model = msgspec.structs.replace(config.model, hf_checkpoint=str(fork.model_of(run_dir)))
    return msgspec.structs.replace(config, model=model)


def _convert(checkpoint: Path, directory: Path) -> None:
    command = [sys.executable, "-m", "miles_async", "convert", str(checkpoint), str(directory)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{checkpoint}: its export took more than {TIMEOUT_S:g} s") from None
    if done.returncode:
        cause = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
        raise ConfigError(f"{checkpoint} cannot be exported: {cause.removeprefix('miles-async: ')}")
