"""Memory of every process of a run while ``MEMORY_TOKENS`` (default 10 million) response tokens go through it.

One quickstart-like run (no EOS to learn, so that responses stay long; a checkpoint every 100 steps), sampled every few
seconds: resident memory of each process, Redis' own figure, the length of the sample stream. Reported for each process:
MB after a fifth of the tokens (warm), at the end, the greatest in between, and the growth from the second to the last fifth
as a share: a process that leaks grows with the tokens. ``miles-async bench memory``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import redis

from miles_async.monitor.record_lines import read_metrics
from miles_async.monitor.status import status
from miles_async.runs.state import living

SAMPLE_S = 3.0
WARM_SHARE = 0.2
END_TIMEOUT_S = 60.0
CONFIG = """
[model]
hf_checkpoint = "builtin:digits"
[data]
prompt_data = "builtin:repeat"
[algorithm]
correction = "behaviour"
[run]
num_steps = 1000000
[rollout]
rollout_batch_size = 64
n_samples_per_prompt = 8
rollout_max_response_len = 64
rollout_top_k = 10
[staleness]
max_lag = 2
[learner]
lr = 1e-9
[checkpoint]
save_interval = 100
save_hf = false
[monitor]
live = "off"
"""


def run(tokens: int | None = None) -> dict[str, Any]:
    """Figures of one run of ``tokens`` response tokens."""
    wanted = tokens or int(os.environ.get("MEMORY_TOKENS", "10000000"))
    with tempfile.TemporaryDirectory(prefix="memory-") as directory:
        run_dir, config = Path(directory) / "run", Path(directory) / "run.toml"
        config.write_text(CONFIG)
        command = [sys.executable, "-m", "miles_async.cli.app", "launch", str(config), "--run-dir", str(run_dir)]
        with (Path(directory) / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        samples: list[dict[str, float]] = []
        started = time.monotonic()
        try:
            while (done := samples[-1]["tokens"] if samples else 0.0) < wanted:
                if process.poll() is not None:
                    raise RuntimeError(
                        f"the run ended after {done:.0f} tokens: {(Path(directory) / 'log').read_text()}"
                    )
                with contextlib.suppress(Exception):  # it is starting
                    samples.append(sample(run_dir, process.pid))
                time.sleep(SAMPLE_S)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(END_TIMEOUT_S)
        summary = json.loads((run_dir / "summary.json").read_text())
    return {
        "tokens": int(samples[-1]["tokens"]),
        "steps": summary["steps"],
        "seconds": round(time.monotonic() - started),
        "balanced": summary["balanced"],
        "tokens_per_s": round(summary["tokens_per_s"]),
        "processes_mb": {name: figures(samples, name) for name in samples[-1] if name.startswith(("mb/", "redis/"))},
    }


def sample(run_dir: Path, launch_pid: int) -> dict[str, float]:
    """``tokens`` trained on so far, ``mb/PROCESS`` resident, ``redis/...`` as Redis says."""
    found = status(run_dir)
    pids = {actor["actor"]: actor["pid"] for actor in found["actors"]} | {
        "launch": launch_pid,
        "redis": found["redis_pid"],
    }
    rows = {f"mb/{name}": psutil.Process(pid).memory_info().rss / 2**20 for name, pid in pids.items()}
    state = living(run_dir)
    assert state is not None and state.bus_url is not None
    client = redis.Redis.from_url(state.bus_url)
    with client:
        rows["redis/used_mb"] = client.info("memory")["used_memory"] / 2**20  # type: ignore[index]
        (stream,) = client.keys("*:samples")  # type: ignore[misc]
        rows["redis/samples"] = float(client.xlen(stream))  # type: ignore[arg-type]
    rows["redis/aof_mb"] = sum(path.stat().st_size for path in (run_dir / "redis").rglob("*.aof*")) / 2**20
    values = (line.values.get("n_tokens") or 0.0 for line in read_metrics(run_dir) if line.actor == "learner-0")
    return {**rows, "tokens": sum(values)}


def figures(samples: list[dict[str, float]], name: str) -> dict[str, float]:
    """Of one process or figure: after the warm-up, at the end, greatest, growth between the second and the last fifth."""
    total = samples[-1]["tokens"]
    rows = [(row["tokens"] / total, row[name]) for row in samples if name in row]
    warm = statistics.median(value for share, value in rows if WARM_SHARE <= share < 2 * WARM_SHARE)
    last = statistics.median(value for share, value in rows if share >= 1 - WARM_SHARE)
    return {
        "warm": round(warm, 1),
        "end": round(last, 1),
        "max": round(max(value for share, value in rows if share >= WARM_SHARE), 1),
        "growth": round(last / warm - 1, 3) if warm else 0.0,
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
