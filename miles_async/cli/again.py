"""How to go on with a run that was stopped: the command, for people to copy."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from miles_async.runs.provenance import without_secrets


def command(config_file: Path, overrides: Sequence[str], run_dir: Path) -> str:
    """The launch that goes on with the run in ``run_dir``; what is secret in ``overrides`` is masked."""
    return shlex.join(["miles-async", *words(config_file, without_secrets(overrides), run_dir)])


def words(config_file: Path, overrides: Sequence[str], run_dir: Path) -> list[str]:
    """The same for the program, which is not named."""
    sets = [part for override in overrides for part in ("--set", override)]
    return ["launch", str(config_file), *sets, "--run-dir", str(run_dir)]
