"""The fault campaign: small runs in which random processes are killed at random moments, and what came of it.

Each run trains ``STEPS`` steps while 1 to 4 faults hit it: kill -9 of any actor or of Redis, or a stop (SIGSTOP) for longer
than the lease. Afterwards: it must have finished by itself, its ledger must balance, no group id may be trained in two
steps or be missing, no token may be older than the bound, no process may be left. Seeded: ``FAULT_RUNS`` (default 10) and
``FAULT_SEED`` choose how many and which. ``miles-async bench faults``; exit by exception if a run breaks a promise.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from miles_async.monitor.status import status

STEPS, BATCH, MAX_LAG, LEASE_S = 150, 8, 2, 2.0
STOP_S = 3.0  # of a SIGSTOP: longer than the lease
VICTIMS = ["rollout-0", "rollout-1", "engine-0", "engine-1", "router", "broadcaster", "dealer", "learner-0", "redis"]
STOPPED = ["rollout-0", "engine-1"]
RUN_TIMEOUT_S = 240.0

CONFIG = f"""
[model]
hf_checkpoint = "builtin:digits"
[data]
prompt_data = "builtin:repeat"
[run]
num_steps = {STEPS}
restart_window_s = 60
max_restarts = 10
[rollout]
rollout_batch_size = {BATCH}
n_samples_per_prompt = 4
rollout_max_response_len = 10
lease_s = {LEASE_S}
[staleness]
max_lag = {MAX_LAG}
[learner]
lr = 1e-3
[checkpoint]
save_interval = 20
save_hf = false
[monitor]
live = "off"
tensorboard = false
heartbeat_s = 0.2
[topology]
learner = "benchmarks.recording_learner.RecordingLearner"
"""


class BrokenPromiseError(AssertionError):
    """A run in which something was lost, doubled, too old, or left behind."""


class CampaignRun:
    """One run and its faults."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.seed, self.run_dir = seed, directory / f"run-{seed}"
        self.rng = random.Random(seed)
        config = directory / f"run-{seed}.toml"
        config.write_text(CONFIG)
        self.log = (directory / f"run-{seed}.log").open("w+")
        command = [sys.executable, "-m", "miles_async.cli", "launch", str(config), "--run-dir", str(self.run_dir)]
        command += ["--set", f"run.seed={seed}"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        self.faults: list[tuple[str, float]] = []  # what, and when

    def play(self) -> list[tuple[str, float]]:
        """Run to the end; returns (fault, seconds until the next optimizer step)."""
        kinds = [f"kill {name}" for name in VICTIMS] + [f"stop {name}" for name in STOPPED]
        for fault in self.rng.sample(kinds, self.rng.randint(1, 4)):
            at_least = self._last_step() + self.rng.randint(1, 15)
            self._wait_for_step(at_least)
            time.sleep(self.rng.random() * 0.1)  # anywhere between two steps
            if self.process.poll() is None:
                self._inflict(fault)
        try:
            code = self.process.wait(RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            waits = json.dumps(status(self.run_dir), default=str)
            self.process.kill()
            raise BrokenPromiseError(f"seed {self.seed}: did not end after {self.faults}: {waits}") from None
        if code != 0:
            self.log.seek(0)
            raise BrokenPromiseError(
                f"seed {self.seed}: exit code {code} after {self.faults}: {self.log.read()[-800:]}"
            )
        times = [float(line["time"]) for line in self._metrics()]
        return [(fault, min((t for t in times if t > when), default=when) - when) for fault, when in self.faults]

    def _inflict(self, fault: str) -> None:
        how, name = fault.split()
        with contextlib.suppress(ProcessLookupError, StopIteration, psutil.Error):  # it is being replaced already
            pid = self._pid(name)
            self.faults.append((fault, time.time()))
            if how == "kill":
                os.kill(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(STOP_S)
                os.kill(pid, signal.SIGCONT)

    def _pid(self, name: str) -> int:
        if name == "redis":
            return int(json.loads((self.run_dir / "supervisor.json").read_text())["redis_pid"])
        found = status(self.run_dir)
        return int(next(actor["pid"] for actor in found["actors"] if actor["actor"] == name))

    def _metrics(self) -> Iterator[dict[str, Any]]:
        with contextlib.suppress(FileNotFoundError):
            for line in (self.run_dir / "metrics.jsonl").read_text().splitlines():
                if '"learner-0"' in line:
                    yield json.loads(line)

    def _last_step(self) -> int:
        return max((int(line["step"]) for line in self._metrics()), default=0)

    def _wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + RUN_TIMEOUT_S
        while self.process.poll() is None and self._last_step() < min(step, STEPS - 5):
            if time.monotonic() > deadline:
                raise BrokenPromiseError(f"seed {self.seed}: no step {step} after {self.faults}")
            time.sleep(0.02)

    def check(self) -> None:
        """Raises BrokenPromiseError naming the promise."""
        summary = json.loads((self.run_dir / "summary.json").read_text())
        ids: list[str] = []
        for step in range(1, STEPS + 1):
            lines = set((self.run_dir / "trained" / f"{step:06d}").read_text().splitlines())
            if len(lines) != 1:
                raise BrokenPromiseError(f"seed {self.seed}: step {step} was replayed on other groups: {lines}")
            ids += lines.pop().split()
        promises = {
            "finished": summary["status"] == "finished" and summary["steps"] == STEPS,
            "the ledger balances": summary["balanced"],
            "nothing twice": len(ids) == len(set(ids)),
            "nothing missing": summary["ledger"]["trained"] == len(ids) == STEPS * BATCH,
            "the bound holds": summary["max_token_lag"] <= MAX_LAG,
            "no process left": not _left(self.run_dir),
        }
        if broken := [promise for promise, kept in promises.items() if not kept]:
            raise BrokenPromiseError(f"seed {self.seed} after {self.faults}: not kept: {broken}; {summary}")


def _left(run_dir: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(run_dir) in part for part in process.cmdline()):
                found.append(process.pid)
    return found


def run(runs: int | None = None, seed: int | None = None) -> dict[str, Any]:
    """The table: fault, how often, seconds until the next optimizer step (median, max). Raises BrokenPromiseError."""
    runs = runs or int(os.environ.get("FAULT_RUNS", "10"))
    seed = seed or int(os.environ.get("FAULT_SEED", "1"))
    recoveries: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="faults-") as directory:
        for number in range(seed, seed + runs):
            campaign_run = CampaignRun(Path(directory), number)
            for fault, seconds in campaign_run.play():
                recoveries.setdefault(fault, []).append(seconds)
            campaign_run.check()
            print(f"seed {number}: {', '.join(fault for fault, _ in campaign_run.faults)}", file=sys.stderr)
    table = {
        fault: {
            "count": len(seconds),
            "lost": 0,  # a run that loses or doubles a group ends the campaign
            "twice": 0,
            "recovery_s_median": round(statistics.median(seconds), 2),
            "recovery_s_max": round(max(seconds), 2),
        }
        for fault, seconds in sorted(recoveries.items())
    }
    return {"runs": runs, "first_seed": seed, "steps": STEPS, "faults": table}


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
