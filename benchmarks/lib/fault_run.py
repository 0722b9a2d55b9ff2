"""One run of the fault campaign: a small job, the faults that hit it, and what came of it.

Promises: the same seed plans the same faults; the verdict is read from what the run itself left on disk (the groups of
every step, every transition of the ledger, the counts at every checkpoint), not from what it says of itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import redis

from benchmarks.lib import fault_kinds
from benchmarks.lib.growing_record import GrowingRecord
from bus.errors import NoRedisError
from bus.ledger import balanced
from miles_async.monitor.record_lines import read_transitions
from miles_async.monitor.status import status
from miles_async.runs.state import RunState, read

BATCH, MAX_LAG, LEASE_S, SAVE_INTERVAL = 8, 2, 2.0, 20
STOP_S = 3.0  # of a SIGSTOP: longer than the lease
ACTORS = ["rollout-0", "rollout-1", "engine-0", "engine-1", "router", "broadcaster", "dealer", "learner-0"]
FAULTS = [f"{how} {name}" for how in ("kill", "stop") for name in [*ACTORS, "redis"]] + [
    "disconnect everybody",
    "damage checkpoint",
]
ALL_FAULTS = [*FAULTS, *fault_kinds.KINDS]
RUN_TIMEOUT_S = 240.0
LEFT_S = 30.0
MAX_RESUMES = 3  # of a run that has said in one line why it ended

# who would be hit is being replaced already, or where it is nobody tells at the moment
NOT_NOW = (ProcessLookupError, StopIteration, KeyError, psutil.Error, NoRedisError)

CONFIG = f"""
[model]
hf_checkpoint = "builtin:digits"
[data]
prompt_data = "builtin:repeat"
[algorithm]
correction = "behaviour"
[run]
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
save_interval = {SAVE_INTERVAL}
save_hf = false
[monitor]
live = "off"
tensorboard = false
heartbeat_s = 0.2
[topology]
learner = "benchmarks.lib.recording_learner.RecordingLearner"
"""


@dataclass
class Verdict:
    """What a run did. ``recoveries``: for each fault, seconds until the next optimizer step."""

    seed: int
    recoveries: list[tuple[str, float]] = field(default_factory=list)
    lost: int = 0  # groups dealt and neither trained nor dropped
    twice: int = 0  # groups in two steps
    broken: list[str] = field(default_factory=list)  # promises not kept, in words
    resumes: int = 0  # after an end with one line
    quarantined: int = 0  # groups that were recorded in a batch and taken out of it


class FaultRun:
    """One launch and its faults."""

    popen = subprocess.Popen  # how launches are started
    timeout_s = RUN_TIMEOUT_S

    def __init__(
        self, directory: Path, seed: int, steps: int, kinds: Sequence[str] = FAULTS, settings: Sequence[str] = ()
    ) -> None:
        """settings: ``section.key=value``, laid over CONFIG."""
        self.kinds = kinds
        self.seed, self.steps, self.run_dir = seed, steps, directory / f"run-{seed}"
        self.rng = random.Random(seed)
        config = directory / f"run-{seed}.toml"
        config.write_text(CONFIG)
        self.log = (directory / f"run-{seed}.log").open("w+")
        self._command = [
            sys.executable,
            "-m",
            "miles_async.cli.app",
            "launch",
            str(config),
            "--run-dir",
            str(self.run_dir),
        ]
        for setting in (f"run.seed={seed}", f"run.num_steps={steps}", *settings):
            self._command += ["--set", setting]
        self.process = self._launch()
        self.faults: list[tuple[str, float]] = []  # what, and when
        self._record, self._step = GrowingRecord(self.run_dir), 0

    @property
    def special(self) -> Mapping[str, Callable[[Any], bool]]:
        """The faults that are more than a signal."""
        return fault_kinds.KINDS

    def _launch(self) -> subprocess.Popen[bytes]:
        return self.popen(self._command, stdout=self.log, stderr=subprocess.STDOUT)

    def play(self) -> Verdict:
        """Run to the end, faults and all."""
        verdict = Verdict(self.seed)
        self._trouble()
        try:
            code = self._end(verdict)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(Exception):
                verdict.broken.append(f"it did not end: {json.dumps(status(self.run_dir), default=str)}")
            self.process.kill()
            self.process.wait()
            verdict.broken.append("it did not end by itself")
            return verdict
        times = sorted(float(line["time"]) for line in GrowingRecord(self.run_dir).more())
        verdict.recoveries = [(fault, next((t for t in times if t > when), when) - when) for fault, when in self.faults]
        if code:
            verdict.broken.append(f"exit code {code}: {self._said()[-800:]}")
        else:
            self._check(verdict)
        return verdict

    def _trouble(self) -> None:
        """One to four faults, each at a random moment."""
        for fault in self.rng.sample(self.kinds, min(len(self.kinds), self.rng.randint(1, 4))):
            self._wait_for_step(self._last_step() + self.rng.randint(1, 15))
            self._inflict_between_steps(fault)

    def _inflict_between_steps(self, fault: str) -> None:
        time.sleep(self.rng.random() * 0.1)  # anywhere between two steps
        if self.process.poll() is None:
            self._inflict(fault)

    def _end(self, verdict: Verdict) -> int:
        """The exit code. A run that said in one line why it ended is resumed. Raises TimeoutExpired."""
        code = self.process.wait(self.timeout_s)
        while code == 1 and verdict.resumes < MAX_RESUMES and "Traceback" not in self._said():
            verdict.resumes += 1
            self.process = self._launch()
            code = self.process.wait(self.timeout_s)
        return code

    def _said(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()

    def crash_and_resume(self, damage: Callable[[], None]) -> None:
        """The launch is killed; when none of its processes lives, ``damage`` is done, and the run goes on."""
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + LEFT_S
        while self._left() and time.monotonic() < deadline:
            time.sleep(0.05)
        damage()
        self.process = self._launch()

    def _inflict(self, fault: str) -> None:
        if fault in self.special:
            began = time.time()
            with contextlib.suppress(*NOT_NOW, OSError, redis.RedisError):
                if self.special[fault](self):
                    self.faults.append((fault, began))
            return
        how, name = fault.split()
        with contextlib.suppress(*NOT_NOW):
            if how == "disconnect":
                return self._disconnect(fault)
            if how == "damage":
                self._damage_newest_checkpoint()
                how, name = "kill", "learner-0"
            pid = self.pid(name)
            self.faults.append((fault, time.time()))
            if how == "kill":
                os.kill(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(STOP_S)
                os.kill(pid, signal.SIGCONT)

    def _damage_newest_checkpoint(self) -> None:
        """64 bytes in the middle of its shard are others: whoever loads it next has to go back to the one before."""
        root = self.run_dir / "checkpoints"
        with contextlib.suppress(OSError):  # there is none yet, or it is being removed
            shard = next((root / (root / "latest").read_text().strip()).glob("*.distcp"))
            with shard.open("r+b") as file:
                file.seek(shard.stat().st_size // 2)
                file.write(os.urandom(64))

    def _disconnect(self, fault: str) -> None:
        """Redis drops every connection at once, as a network would."""
        client = redis.Redis.from_url(str(self.supervisor().bus_url))
        self.faults.append((fault, time.time()))
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        client.close()

    def supervisor(self) -> RunState:
        state = read(self.run_dir)
        assert state is not None
        return state

    def pid(self, name: str) -> int:
        if name == "redis":
            return int(self.supervisor().redis_pid or 0)
        found = status(self.run_dir)
        return int(next(actor["pid"] for actor in found["actors"] if actor["actor"] == name))

    def _last_step(self) -> int:
        self._step = max([self._step, *(int(line["step"]) for line in self._record.more())])
        return self._step

    def _wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + self.timeout_s
        while self.process.poll() is None and self._last_step() < min(step, self.steps - 5):
            if time.monotonic() > deadline:
                return  # play() will find that it does not end
            time.sleep(0.02)

    def _check(self, verdict: Verdict) -> None:
        summary = json.loads((self.run_dir / "summary.json").read_text())
        times, replays = self._trained()
        dealt, settled, dropped = self._settled()
        verdict.lost = len(dealt - settled)
        verdict.twice = sum(1 for count in times.values() if count > 1)
        verdict.quarantined = summary["ledger"]["dropped"].get("quarantined", 0)
        trained = self.steps * BATCH - verdict.quarantined
        counts = [json.loads(line) for line in (self.run_dir / "checkpoint_counts.jsonl").read_text().splitlines()]
        promises = {
            "it finishes": summary["status"] == "finished" and summary["steps"] == self.steps,
            "a replayed step has the same groups": replays,
            "the ledger balances at the end": summary["balanced"],
            "the ledger balances at every checkpoint": all(map(balanced, counts)),
            "every checkpoint is made": len(counts) >= self.steps // SAVE_INTERVAL,
            "nothing is trained twice": verdict.twice == 0,
            "nothing is lost": verdict.lost == 0 and len(times) == summary["ledger"]["trained"] == trained,
            "nothing dropped is trained": not dropped & set(times),
            "the bound holds": summary["max_token_lag"] <= MAX_LAG,
            "nothing is left": not self._left(),
        }
        verdict.broken += [promise for promise, kept in promises.items() if not kept]

    def _trained(self) -> tuple[Counter[str], bool]:
        """In how many steps each group was, and whether every replay of a step had the same groups."""
        times: Counter[str] = Counter()
        same, quarantined = True, self._by_kind().get("quarantined", set())
        for step in range(1, self.steps + 1):
            lines = (self.run_dir / "trained" / f"{step:06d}").read_text().splitlines()
            # a group that could not be trained is no part of its step, from the moment on at which that was seen
            groups = {frozenset(line.split()) - quarantined for line in lines}
            same = same and len(groups) == 1
            times.update({group for line in groups for group in line})
        return times, same

    def _settled(self) -> tuple[set[str], set[str], set[str]]:
        """Ids dealt, ids trained or dropped, ids dropped, by the record of transitions."""
        by_kind = self._by_kind()
        dropped = by_kind.get("dropped", set()) | by_kind.get("quarantined", set())
        return by_kind["admitted"], by_kind["trained"] | dropped, dropped

    def _by_kind(self) -> dict[str, set[str]]:
        by_kind: dict[str, set[str]] = {}
        for line in read_transitions(self.run_dir):
            by_kind.setdefault(line.kind, set()).update(line.groups)
        return by_kind

    def _left(self) -> list[str]:
        found: list[str] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if any(str(self.run_dir) in part for part in process.cmdline()):
                    found.append(str(process.pid))
        return found
