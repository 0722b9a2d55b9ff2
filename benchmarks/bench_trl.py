"""Side by side with Hugging Face TRL's GRPOTrainer: same model, prompts, reward, batch, loss and rates.

For each of TRL_JOBS (``lib/trl_jobs.py``: the quickstart, and one with long-tailed answers), each of TRL_REPEATS repeats has
a seed of its own and runs, in turns, ``miles-async launch`` (no live view, otherwise as it is: bus, checkpoints and TensorBoard
included) and ``trl_grpo.py`` with one thread of torch and with two. Time counts from the start of the process to the step
whose 5-step mean reward reaches the target, where the job has one; rates count from the first step on. Medians over the
repeats; each ratio is against the better one of TRL's. ``miles-async bench trl``.

TRL has an environment of its own, see ``requirements/bench.txt``; TRL_PYTHON names its interpreter.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.lib.cpu_times import CpuTimes
from benchmarks.lib.trl_jobs import JOBS, ROOT, Job, for_trl
from miles_async.config.schema import ConfigError
from miles_async.monitor.record_lines import read_events, read_metrics

REPEATS = 3
WINDOW = 5  # steps
TRL_THREADS = (1, 2)
RUN_TIMEOUT_S = 1200.0
STOP_TIMEOUT_S = 60.0
HOW_TO_INSTALL = (
    "python3.11 -m venv .venv-trl && PYTHON=.venv-trl/bin/python requirements/install.sh torch && "
    ".venv-trl/bin/pip install -c requirements/constraints.txt -r requirements/bench.txt"
)


def run(
    repeats: int | None = None, first_seed: int = 1, trl_python: str | None = None, jobs: Sequence[str] | None = None
) -> dict[str, Any]:
    """Figures of both sides for each job; times in seconds. Raises ConfigError where TRL is not installed."""
    python = trl_python or os.environ.get("TRL_PYTHON") or str(ROOT / ".venv-trl" / "bin" / "python")
    repeats = repeats or int(os.environ.get("TRL_REPEATS", REPEATS))
    version = trl_version(python)
    jobs = jobs or os.environ.get("TRL_JOBS", " ".join(JOBS)).split()
    found = {name: compare(name, repeats, first_seed, python) for name in jobs}
    return {"jobs": found, "repeats": repeats, "trl_version": version, "cores": os.cpu_count()}


def compare(name: str, repeats: int, first_seed: int, python: str) -> dict[str, Any]:
    """The figures of one job. A side that did not reach the target in a repeat has ``wall_s`` null there; its median is over
    those that did."""
    runs: dict[str, list[dict[str, Any]]] = {"miles_async": []} | {_trl(n): [] for n in TRL_THREADS}
    for index in range(repeats):
        seed = first_seed + index
        sides = list(runs) if index % 2 == 0 else list(runs)[::-1]
        for side in sides:
            with tempfile.TemporaryDirectory() as directory:
                root = Path(directory)
                job = JOBS[name](root, seed)
                if side == "miles_async":
                    result = run_ours(root, job)
                else:
                    result = run_trl(root, job, python, int(side.removeprefix("trl_threads_")))
            runs[side].append(result | {"seed": seed})
            print(name, side, json.dumps(runs[side][-1]), file=sys.stderr)
    medians = {side: _medians(results) for side, results in runs.items()}
    walls = [medians[_trl(n)]["wall_s"] for n in TRL_THREADS if "wall_s" in medians[_trl(n)]]
    rate = max(medians[_trl(n)]["samples_per_s"] for n in TRL_THREADS)
    return {
        "medians": medians,
        # above 1: miles-async is faster than the better one of TRL's
        "wall_ratio": _ratio(min(walls, default=None), medians["miles_async"].get("wall_s")),
        "samples_per_s_ratio": _ratio(medians["miles_async"]["samples_per_s"], rate),
        "reached": {side: sum(result["wall_s"] is not None for result in results) for side, results in runs.items()},
        "runs": runs,
    }


def run_ours(root: Path, job: Job) -> dict[str, Any]:
    """One launch of the job, in a process tree of its own."""
    run_dir = root / "run"
    command = [sys.executable, "-m", "miles_async.cli.app", "launch", str(job.config_file), "--run-dir", str(run_dir)]
    for setting in job.settings:
        command += ["--set", setting]
    started = time.time()
    output, cpu = _run("miles-async", [*command, "--json"], threads=1, log=root / "log")
    ended = time.time()
    summary = json.loads(output)
    steps = [line for line in read_metrics(run_dir) if line.actor == "learner-0" and "raw_reward" in line.values]
    learner_ready = next(event.time for event in read_events(run_dir) if event.kind == "learner_ready")
    wall = _reached([(line.time - started, line.values["raw_reward"] or 0.0) for line in steps], job.target)
    return {
        "wall_s": wall,
        "steps": len(steps),
        "samples_per_s": summary["samples_per_s"],
        "tokens_per_s": summary["tokens_per_s"],
        "reward_last": summary["reward_last"],
        "response_tokens": statistics.fmean(line.values["response_lengths"] or 0.0 for line in steps),
        "truncated": statistics.fmean(line.values["truncated"] or 0.0 for line in steps),
        "learner_ready_s": learner_ready - started,
        "first_step_s": steps[0].time - started,
        "step_s": (steps[-1].time - steps[0].time) / (len(steps) - 1),
        "train_s": statistics.fmean(line.values["perf/train_time"] or 0.0 for line in steps[1:]),
        "wait_s": statistics.fmean(line.values["perf/train_wait_time"] or 0.0 for line in steps[1:]),
        "weights_update_s": summary["weights_update_s"],
        "weights_paused_s": summary["weights_paused_s"],
        "learner_busy": summary["learner_busy"],
        "engine_busy": summary["engine_busy"],
        "mean_token_lag": summary["mean_token_lag"],
        "stop_s": ended - steps[-1].time,  # checkpoint, export, orderly end; not in wall_s
        **cpu.until(started + wall if wall else steps[-1].time),
    }


def run_trl(root: Path, job: Job, python: str, threads: int) -> dict[str, Any]:
    """One run of ``trl_grpo.py`` on the same; the model is made before its time starts."""
    written = root / "job.json"
    written.write_text(json.dumps(for_trl(job, threads)))
    started = time.time()
    command = [python, str(ROOT / "benchmarks" / "lib" / "trl_grpo.py"), str(written), repr(started)]
    output, cpu = _run("TRL", command, threads, log=root / "log")
    result = json.loads(output.splitlines()[-1])
    return result | cpu.until(started + (result["wall_s"] or result["last_step_s"]))


def trl_version(python: str) -> str:
    """The version of TRL that the interpreter ``python`` has. Raises ConfigError saying how to make such an environment."""
    ask = "import importlib.metadata as m; print(m.version('trl'))"
    with suppress(OSError):
        found = subprocess.run([python, "-c", ask], check=False, capture_output=True, text=True, timeout=60.0)
        if found.returncode == 0:
            return found.stdout.strip()
    raise ConfigError(f"{python} has no TRL (TRL_PYTHON names the interpreter to use); to make it: {HOW_TO_INSTALL}")


def _run(name: str, command: Sequence[str], threads: int, log: Path) -> tuple[str, CpuTimes]:
    """Standard output of ``command``, and what its processes took.

    Raises RuntimeError with the last line of its errors if it fails, TimeoutError past RUN_TIMEOUT_S.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    cpu = CpuTimes()
    with log.open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            with cpu.following(process.pid):
                output, _ = process.communicate(timeout=RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{name} (process {process.pid}) did not end within {RUN_TIMEOUT_S:g} s") from None
        finally:
            _stop(process)
    if process.returncode:
        said = log.read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"{name} ended with code {process.returncode}: {said[-1] if said else 'it said nothing'}")
    return output, cpu


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()  # the supervisor stops its actors in order
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _reached(steps: Sequence[tuple[float, float]], target: float | None) -> float | None:
    """The time of the first step at which the mean reward of the last WINDOW steps is at least ``target``."""
    if target is None:
        return None
    for end in range(WINDOW, len(steps) + 1):
        if statistics.fmean(reward for _, reward in steps[end - WINDOW : end]) >= target:
            return steps[end - 1][0]
    return None


def _medians(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of every figure, over the runs that have it."""
    keys = dict.fromkeys(key for result in results for key in result if key != "seed")
    values = {key: [result[key] for result in results if result.get(key) is not None] for key in keys}
    return {key: round(statistics.median(found), 4) for key, found in values.items() if found}


def _ratio(above: float | None, below: float | None) -> float | None:
    return round(above / below, 3) if above and below else None


def _trl(threads: int) -> str:
    return f"trl_threads_{threads}"


if __name__ == "__main__":
    try:
        print(json.dumps(run(), indent=2))
    except ConfigError as error:
        sys.exit(f"bench_trl: {error}")
