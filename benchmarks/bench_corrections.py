"""What each off-policy correction learns at lags 0, 1, 4 and 16: the quickstart's task, three seeds, exact lags.

Every run is one of ``lagged_run.py``: the quickstart's model, task, batch, learning rate and entropy bonus, a fixed number of
steps; the figure is the reward of the final weights, freshly sampled. ``CORRECTION_STEPS`` (default 150),
``CORRECTION_JOBS`` (default 2 processes of one thread). ``miles-async bench corrections``.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

LAGS = (0, 1, 4, 16)
SEEDS = (1, 2, 3)
REACHED = 0.9  # of the training reward, mean over 5 steps

# name to what it lays over the quickstart's [algorithm]
METHODS: dict[str, dict[str, Any]] = {
    "uncorrected: behaviour ignored": {"correction": "uncorrected"},
    "PPO-clip on behaviour": {"correction": "behaviour"},
    "decoupled PPO + TIS": {"correction": "tis", "tis_clip": 2.0},
    "A-3PO + TIS": {"correction": "tis", "old_log_probs": "loglinear", "tis_clip": 2.0},
    "IcePop [0.5, 5]": {"correction": "icepop", "tis_clip_low": 0.5, "tis_clip": 5.0},
    "GSPO 3e-4, 4e-4": {"correction": "behaviour", "policy_loss": "gspo", "eps_clip": 3e-4, "eps_clip_high": 4e-4},
    "GSPO 0.2, 0.28": {"correction": "behaviour", "policy_loss": "gspo"},
    "CISPO [0, 5]": {"correction": "behaviour", "policy_loss": "cispo", "eps_clip": 1.0, "eps_clip_high": 4.0},
    "per-span TIS": {"correction": "span_tis", "tis_clip": 2.0},
}


def one(method: str, lag: int, seed: int, steps: int) -> dict[str, Any]:
    """One run, in this process."""
    import torch

    from benchmarks.lib.lagged_run import LaggedRun

    torch.set_num_threads(1)
    overrides = [f"algorithm.{key}={json.dumps(value)}" for key, value in METHODS[method].items()]
    started = time.process_time()
    with LaggedRun(overrides, lag, seed) as run:
        curve = [metrics["raw_reward"] for metrics in run.train(steps)]
        final = run.evaluate()
    means = [statistics.fmean(curve[i - 5 : i]) for i in range(5, len(curve) + 1)]
    reached = next((i + 5 for i, mean in enumerate(means) if mean > REACHED), None)
    return {
        "method": method,
        "lag": lag,
        "seed": seed,
        "final_reward": round(final, 4),
        "best_5_steps": round(max(means), 4),
        "steps_to_0.9": reached,
        "cpu_s": round(time.process_time() - started, 1),
    }


def run() -> dict[str, Any]:
    """All runs, and a table of means with the least and the greatest of the seeds."""
    steps, jobs = int(os.environ.get("CORRECTION_STEPS", "150")), int(os.environ.get("CORRECTION_JOBS", "2"))
    cells = [(method, lag, seed) for seed in SEEDS for lag in LAGS for method in METHODS]
    runs = []
    with ProcessPoolExecutor(jobs) as pool:
        for result in pool.map(one, *zip(*cells, strict=True), [steps] * len(cells)):
            print(json.dumps(result), file=sys.stderr, flush=True)
            runs.append(result)
    table = [
        {"method": method}
        | {
            f"lag {lag}": {
                "mean": round(statistics.fmean(finals), 3),
                "min": min(finals),
                "max": max(finals),
            }
            for lag in LAGS
            for finals in [[r["final_reward"] for r in runs if (r["method"], r["lag"]) == (method, lag)]]
        }
        for method in METHODS
    ]
    return {"steps": steps, "seeds": list(SEEDS), "table": table, "runs": runs}


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
