"""A run on real SGLang servers of which one is killed in the middle of a weight update, and to which one is added.

    3 servers serve ──► kill -9 of one between two buckets of a broadcast to all ──► `miles-async scale engines=4` ──► 4 serve

What has to hold: the run finishes, the ledger balances, no request is lost, and every token that was trained on has the
log-prob that the weights of its version give it. ``miles-async bench sglang_fleet``; on a CPU, some minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bus import Bus, EngineState, connect
from miles_async.monitor.record_lines import EVENTS_FILE, read_transitions
from miles_async.rewards import RewardSample
from miles_async.runs.state import living

ROOT = Path(__file__).resolve().parent.parent
STEPS, BATCH, SAMPLES, MAX_LAG, ENGINES = 80, 8, 4, 2, 3
START_S, UPDATE_S, RUN_S = 600.0, 120.0, 1500.0

CONFIG = f"""
[model]
hf_checkpoint = "builtin:words"
device = "cpu"
[data]
prompt_data = "builtin:repeat9"
[reward]
rm_type = "benchmarks.bench_sglang_fleet.share_of_vowels"
[algorithm]
correction = "behaviour"
[run]
num_steps = {STEPS}
heartbeat_timeout_s = 120
[rollout]
rollout_batch_size = {BATCH}
n_samples_per_prompt = {SAMPLES}
rollout_max_response_len = 64
[staleness]
max_lag = {MAX_LAG}
[learner]
lr = 1e-3
[checkpoint]
save_interval = {STEPS}
save_hf = false
[engine]
kind = "sglang"
num_engines = {ENGINES}
max_running_requests = 32
start_timeout_s = {START_S:g}
[weights]
bucket_mb = 1
update_waves = 1
[monitor]
live = "off"
tensorboard = false
[topology]
learner = "benchmarks.lib.keeping_learner.KeepingLearner"
broadcaster = "benchmarks.lib.killing_broadcaster.KillingBroadcaster"
"""


def share_of_vowels(sample: RewardSample) -> float:
    """A reward that a random model earns a little of, and can learn."""
    return sum(letter in "aeiou" for letter in sample.response) / max(1, len(sample.response))


def run() -> dict[str, Any]:
    """The figures; ``broken`` names what did not hold."""
    with tempfile.TemporaryDirectory() as directory:
        return play(Path(directory))


def play(directory: Path) -> dict[str, Any]:
    """Launch, kill, add, wait for the end, judge."""
    config, run_dir = directory / "fleet.toml", directory / "run"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "miles_async.cli.app", "launch", str(config), "--run-dir", str(run_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (directory / "launch.log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
        try:
            found = asyncio.run(disturb(process, run_dir))
            code = process.wait(RUN_S)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(60)
                process.kill()
                process.wait()
        log.seek(0)
        return judge(run_dir, found, code, log.read()[-500:])


async def disturb(process: subprocess.Popen[bytes], run_dir: Path) -> dict[str, Any]:
    """Kill one server in an update, add another engine, and return once four of them serve; when and what."""
    started = time.monotonic()
    async with bus_of(run_dir, process) as bus:
        await until_serving(bus, process, ENGINES, least=2)
        found: dict[str, Any] = {"first_serving_s": round(time.monotonic() - started, 1)}
        newest = max(engine.version for engine in (await bus.engines()).values())
        found["killed"] = await until_killed(run_dir, process)
        killed = time.monotonic()
        await until_serving(bus, process, ENGINES - 1, least=newest + 1)
        found["others_have_the_version_after_s"] = round(time.monotonic() - killed, 1)
        found["scale"] = await asyncio.to_thread(scale, run_dir, ENGINES + 1)
        engines = await until_serving(bus, process, ENGINES + 1, least=newest + 1)
        found["all_serving_after_s"] = round(time.monotonic() - killed, 1)
        found["versions_then"] = {name: engine.version for name, engine in sorted(engines.items())}
        return found


@contextlib.asynccontextmanager
async def bus_of(run_dir: Path, process: subprocess.Popen[bytes]) -> AsyncIterator[Bus]:
    """The bus of a run that is being launched."""
    deadline = time.monotonic() + START_S
    while (supervisor := living(run_dir)) is None or supervisor.bus_url is None:
        alive(process, deadline, "the run's bus")
        await asyncio.sleep(0.2)
    bus = await connect(supervisor.bus_url, supervisor.run_id)
    try:
        yield bus
    finally:
        await bus.close()


async def until_serving(
    bus: Bus, process: subprocess.Popen[bytes], count: int, *, least: int
) -> dict[str, EngineState]:
    """The engines, once ``count`` of them serve, each at version ``least`` or newer at some time since."""
    deadline, seen = time.monotonic() + START_S, set[str]()
    while True:
        engines = await bus.engines()
        seen = {name for name in seen if engines[name].state in ("serving", "updating")}
        seen |= {name for name, engine in engines.items() if engine.state == "serving" and engine.version >= least}
        if len(seen) == count:
            return engines
        alive(process, deadline, f"{count} engines to serve version {least} or newer: {engines}")
        await asyncio.sleep(0.05)


async def until_killed(run_dir: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What the broadcaster says it killed."""
    (run_dir / "kill").touch()
    deadline = time.monotonic() + UPDATE_S
    while not (told := run_dir / "killed.json").exists() or not told.read_bytes():
        alive(process, deadline, "a broadcast in which a server is killed")
        await asyncio.sleep(0.05)
    return json.loads(told.read_bytes())


def scale(run_dir: Path, engines: int) -> Any:
    command = [sys.executable, "-m", "miles_async.cli.app", "scale", str(run_dir), f"engines={engines}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    if done.returncode:
        return {"failed": done.stderr.strip()[-300:]}
    answer = json.loads(done.stdout)
    return {key: answer[key] for key in ("engines", "starts")}


def alive(process: subprocess.Popen[bytes], deadline: float, whom: str) -> None:
    if process.poll() is not None:
        raise RuntimeError(f"the run ended with code {process.returncode} while it was waited for {whom}")
    if time.monotonic() > deadline:
        raise TimeoutError(f"waited too long for {whom}")


def judge(run_dir: Path, found: dict[str, Any], code: int, log: str) -> dict[str, Any]:
    """What came of it, from the run's own record and the weights it kept."""
    if code:
        return {**found, "broken": [f"exit code {code}: {log}"]}
    from benchmarks.lib.keeping_learner import kept_groups
    from benchmarks.lib.span_check import TOLERANCE, check_spans

    summary = json.loads((run_dir / "summary.json").read_text())
    by_kind: dict[str, set[str]] = {}
    failed, drops = Counter[str](), Counter[str]()
    for line in read_transitions(run_dir):
        by_kind.setdefault(line.kind, set()).update(line.groups)
        if line.kind == "failed":
            failed[f"{line.reason}: {line.detail}"[:200]] += 1
        if line.kind == "dropped":
            drops[line.reason] += len(line.groups)
    events = [json.loads(line) for line in (run_dir / EVENTS_FILE).read_text().splitlines()]
    downs = [event["data"].get("cause", "") for event in events if event["kind"] == "engine_down"]
    spans = check_spans(kept_groups(run_dir), run_dir / "kept")
    lost = by_kind["admitted"] - by_kind["trained"] - by_kind.get("dropped", set()) - by_kind.get("quarantined", set())
    promises = {
        "the run finishes": summary["status"] == "finished" and summary["steps"] == STEPS,
        "the ledger balances": summary["balanced"] is True,
        "every group that was dealt is trained or dropped by name": not lost,
        "no attempt at a group failed": not failed,
        "the bound holds": summary["max_token_lag"] <= MAX_LAG,
        f"every token's log-prob is its version's within {TOLERANCE:g}": spans.wrong == 0 and spans.tokens > 0,
        "the versions can be told apart": spans.told_apart > spans.tokens / 2,
        "some samples cross an update": sum(n for k, n in spans.by_spans.items() if k > 1) > 0,
        "the killed engine was found in its update": any(found["killed"]["engine"] in cause for cause in downs),
    }
    return {
        **found,
        "steps": summary["steps"],
        "wall_s": round(summary["wall_s"], 1),
        "groups": {kind: len(groups) for kind, groups in by_kind.items()},
        "dropped": dict(drops),
        "failed_attempts": dict(failed),
        "lost_groups": len(lost),
        "engine_down": [cause[:200] for cause in downs],
        "tokens": spans.tokens,
        "versions": len(spans.versions),
        "samples_by_number_of_versions": {str(k): n for k, n in sorted(spans.by_spans.items())},
        "worst_log_prob_error": spans.worst,
        "tokens_beyond_tolerance": spans.wrong,
        "tokens_that_the_neighbouring_version_would_get_wrong": spans.told_apart,
        "broken": [promise for promise, kept in promises.items() if not kept],
    }
