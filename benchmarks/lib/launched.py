"""A run as a process tree of its own, followed: what benchmarks measure from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.lib.cpu_times import CpuTimes
from miles_async.monitor.record_lines import read_metrics

ROOT = Path(__file__).resolve().parents[2]
NOTE_INTERVAL_S = 0.2
TIMEOUT_S = 900.0
# of processes that are no actors; else as they are called
ROLES = {
    "python": "launch",
    "python3": "launch",
    "miles-async fork server": "launch",
    "miles-async fork server of learners": "launch",
    "redis-server": "redis",
    "valkey-server": "redis",
}


def launched(
    config: Path, run_dir: Path, settings: list[str], environment: Mapping[str, str], root: Path = ROOT
) -> tuple[CpuTimes, dict[str, Any]]:
    """A launch of ``config``, as it was followed, and its summary. ``environment``: beside the one of this process.
    ``root``: the checkout that is launched; the path that Python imports from has to begin with it.

    Raises RuntimeError with its errors if it fails, subprocess.TimeoutExpired past TIMEOUT_S.
    """
    command = [sys.executable, "-m", "miles_async.cli.app", "launch", str(config), "--run-dir", str(run_dir), "--json"]
    for setting in settings:
        command += ["--set", setting]
    offline = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    cpu = CpuTimes(NOTE_INTERVAL_S)
    process = subprocess.Popen(command, cwd=root, env=os.environ | offline | environment, **pipes)
    with cpu.following(process.pid):
        try:
            output, errors = process.communicate(timeout=TIMEOUT_S)
        except BaseException:
            process.terminate()  # the supervisor stops its actors in order
            process.communicate()
            raise
    if process.returncode:
        raise RuntimeError(f"the run ended with code {process.returncode}: {errors.strip() or 'it said nothing'}")
    return cpu, json.loads(output)


def python_path(*first: Path) -> str:
    """``first`` and the checkout before what is on the path already."""
    paths = [*map(str, first), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.pathsep.join(path for path in paths if path)


def step_ends(run_dir: Path) -> dict[int, float]:
    """When each step had ended, in seconds since the epoch."""
    lines = read_metrics(run_dir)
    return {line.step: line.time for line in lines if line.actor == "learner-0" and "raw_reward" in line.values}


def by_role(seconds: Mapping[str, float]) -> Counter[str]:
    """CPU seconds by what bench tables call the roles."""
    named: Counter[str] = Counter()
    for role, cpu_s in seconds.items():
        named[ROLES.get(role, role)] += cpu_s
    return named
