"""Launching real runs from tests: a small configuration, the command line as a process, and what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from warm_start import WarmPopen

from benchmarks.lib.group_files import read_groups
from benchmarks.lib.growing_record import GrowingRecord
from bus.codec import VERSIONS, unpack
from bus.messages import Group
from miles_async.cli.load import load
from miles_async.config import toml
from miles_async.config.schema import corrections
from miles_async.data import load_prompts, prompt_at
from miles_async.monitor.diagnosis import role_of
from miles_async.monitor.metrics.table import declared
from miles_async.monitor.record_lines import METRICS_FILE, read_metrics
from miles_async.monitor.status import status
from miles_async.runs.launches import CONFIG_FILE
from miles_async.runs.state import read
from miles_async.text.tokenizer import Tokenizer

# the quickstart's model and task, cut down to seconds
TINY: dict[str, dict[str, Any]] = {
    "model": {"hf_checkpoint": "builtin:digits", "parity_check": False},
    "data": {"prompt_data": "builtin:repeat"},
    "run": {"num_steps": 4, "seed": 3, "stop_timeout_s": 20.0},
    "rollout": {"rollout_batch_size": 8, "n_samples_per_prompt": 4, "rollout_max_response_len": 10},
    "algorithm": {"correction": "behaviour"},
    "learner": {"lr": 1e-3},
    "checkpoint": {"save_interval": 50, "save_hf": False},
    "monitor": {"live": "off", "tensorboard": False, "heartbeat_s": 0.2},
}


def write_config(directory: Path, **sections: dict[str, Any]) -> Path:
    """A TOML file with TINY and ``sections`` laid over it."""
    lines = []
    for section in TINY | sections:
        lines.append(f"[{section}]")
        merged = {**TINY.get(section, {}), **sections.get(section, {})}
        lines += [f"{key} = {json.dumps(value)}" for key, value in merged.items()]
    path = directory / "run.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def command(config: Path, run_dir: Path, *extra: str) -> list[str]:
    return [sys.executable, "-m", "miles_async.cli.app", "launch", str(config), "--run-dir", str(run_dir), *extra]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **extra}


def begin(config: Path, run_dir: Path) -> subprocess.Popen[str]:
    """Start a run and return at once; classes of tests/ can be in its topology."""
    return WarmPopen(
        command(config, run_dir),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=recording_environment(),
    )


def launch(
    config: Path, run_dir: Path, *extra: str, timeout: float = 300, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run to the end; the output is in the result."""
    asked = command(config, run_dir, *extra)
    process = WarmPopen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env or environment())
    with process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    assert undeclared(run_dir) == set()
    return subprocess.CompletedProcess(asked, process.returncode, out, err)


def undeclared(run_dir: Path) -> set[tuple[str, str]]:
    """Actors and names of metrics in the record that no table declares. Functions of a user may name theirs as they like."""
    if not (run_dir / CONFIG_FILE).exists() or not (run_dir / METRICS_FILE).exists():
        return set()
    config = toml.read(run_dir / CONFIG_FILE)
    learner, algorithm = config.learner, config.algorithm
    paths = [learner.train_backend, learner.log_function, algorithm.policy_loss, *corrections(algorithm)]
    free = {"learner"} if any("." in (path or "") for path in paths) else set()
    free |= {"evaluator"} if config.eval.eval_function else set()
    free |= {"broadcaster"} if "." in config.weights.transport else set()
    lines = (line for line in read_metrics(run_dir) if role_of(line.actor) not in free)
    return {(line.actor, name) for line in lines for name in line.values if not declared(name, role_of(line.actor))}


def summary(run_dir: Path) -> dict[str, Any]:
    assert undeclared(run_dir) == set()
    return json.loads((run_dir / "summary.json").read_text())


def metrics(run_dir: Path, actor: str = "learner-0") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line.get("actor") == actor]


def first_prompts(config_file: Path, run_dir: Path, count: int) -> Counter[str]:
    """How often each prompt (``epoch-index``) is among the first ``count`` that are dealt: what a run without drops trains
    on, whether it was interrupted or not."""
    config = load(config_file, check=False)
    total = len(load_prompts(config, Tokenizer(run_dir / "inputs" / "model")))
    places = (prompt_at(p, total, config.run.seed, config.data.rollout_shuffle) for p in range(count))
    return Counter(f"{epoch}-{index}" for epoch, index in places)


def trained_prompts(run_dir: Path) -> Counter[str]:
    """How often each prompt (``epoch-index``) was trained on, from what a RecordingLearner wrote."""
    groups = (group for step in trained_groups(run_dir).values() for group in step)
    return Counter(group.group_id.rpartition("-")[0] for group in groups)


def lags(run_dir: Path) -> dict[int, tuple[int, int]]:
    """The least and the greatest lag of the tokens of every step."""
    found = {}
    for step, groups in trained_groups(run_dir).items():
        of = [step - 1 - unpack(sample.versions, VERSIONS) for group in groups for sample in group.samples]
        found[step] = (min(int(lag.min()) for lag in of), max(int(lag.max()) for lag in of))
    return found


def left_behind(run_dir: Path) -> list[str]:
    """Processes that still have the run directory in their command line, environment or open files."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid():
                continue
            mine = any(str(run_dir) in part for part in process.cmdline())
            if mine or any(file.path.startswith(str(run_dir)) for file in process.open_files()):
                found.append(f"{process.pid} {' '.join(process.cmdline())[:200]}")
        except psutil.Error:
            continue
    return found


RECORDING = {"learner": "recording_learner.RecordingLearner"}  # a [topology] section; needs tests/ on PYTHONPATH


def recording_environment() -> dict[str, str]:
    return environment(PYTHONPATH=str(Path(__file__).parent))


def trained_groups(run_dir: Path) -> dict[int, list[Group]]:
    """What a RecordingLearner wrote: the groups of every step, in the order of ranks."""
    steps: dict[int, list[Group]] = {}
    for path in sorted((run_dir / "trained").iterdir()):
        steps.setdefault(int(path.name.split("-")[0]), []).extend(read_groups(path))
    return steps


def wait_until(holds: Callable[[], bool], what: str, process: subprocess.Popen[str], timeout: float = 150) -> None:
    """Until ``holds()``, while ``process`` runs."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError(f"no {what} within {timeout} s")


def wait_until_gone(run_dir: Path, timeout: float = 15) -> None:
    """Until no process of a killed launch is left."""
    deadline = time.monotonic() + timeout
    while left := left_behind(run_dir):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until the run's metrics have ``step``."""
    record = GrowingRecord(run_dir)
    wait_until(lambda: any(line["step"] >= step for line in record.more()), f"step {step}", process)


def kill_at_step(config: Path, run_dir: Path, step: int) -> None:
    """A run whose launch is killed (kill -9) once its metrics have ``step``; no process of it is left."""
    process = begin(config, run_dir)
    wait_for_step(run_dir, step, process)
    process.kill()
    process.communicate()
    wait_until_gone(run_dir)


def ask_status(run_dir: Path) -> dict[str, Any]:
    """What ``miles-async status`` says of a run that is alive; without a process for each time that it is asked."""
    return status(run_dir)


def kill(run_dir: Path, actor: str) -> None:
    """kill -9 of one process of a run that is alive; ``actor`` may be "redis"."""
    os.kill(pid_of(run_dir, actor), signal.SIGKILL)


def pid_of(run_dir: Path, actor: str) -> int:
    """The process of an actor of a run that is alive, or of its "redis"."""
    if actor == "redis":
        found = read(run_dir)
        assert found is not None and found.redis_pid is not None
        return found.redis_pid
    return next(a["pid"] for a in ask_status(run_dir)["actors"] if a["actor"] == actor)


def bus_url(run_dir: Path) -> str:
    """Where the bus of a run is that is alive."""
    found = read(run_dir)
    assert found is not None and found.bus_url is not None
    return found.bus_url


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]
