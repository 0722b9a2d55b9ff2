"""The simulator: how large a fleet it simulates in which time, and how near it comes to what others have published.

``scale``: SIMULATOR_ENGINES engines (1,000) and SIMULATOR_GROUPS prompt groups (a million, of 8 samples) on one core: CPU
seconds and memory. ``published``: for each source of ``lib/published/`` its runs, what was measured, what is simulated from
inputs of the source, and the error. ``miles-async bench simulator``.
"""

from __future__ import annotations

import json
import os
import resource
import time
from typing import Any

from benchmarks.lib.published import applied_compute, dora, marin, miles_arms, seer, stream_rl, verl_async
from miles_async.simulation.loop import simulate
from miles_async.simulation.reading import parse
from miles_async.simulation.result import figures
from miles_async.staleness.choice import policy_of

ENGINES = 1000
GROUPS = 1_000_000
BATCH_SIZE = 1024
# some 20 samples of an engine run; generation and training take about as long
FLEET = f"""
[rollout]
rollout_batch_size = {BATCH_SIZE}
n_samples_per_prompt = 8
rollout_max_response_len = 8192
num_workers = 64
max_groups_in_flight = 64
[staleness]
policy = "token_mask"
max_lag = 8
[router]
policy = "power_of_two"
[lengths]
mean = 2000
sigma = 0.8
alike = 0.3
prompt_mean = 200
[engines]
step_s = 0.008
step_request_s = 0.0001
cache_tokens = 400000
update_s = 1.0
[learner]
step_s = 1.0
token_s = 0.0000003
"""


def run() -> dict[str, Any]:
    return {
        "scale": scale(
            int(os.environ.get("SIMULATOR_ENGINES", ENGINES)), int(os.environ.get("SIMULATOR_GROUPS", GROUPS))
        ),
        "published": published(),
    }


def published() -> dict[str, Any]:
    """Each source's runs beside their simulations."""
    return {
        "applied_compute": applied_compute.compared(),
        "miles_fully_async": miles_arms.compared(),
        "marin": marin.compared(),
        "verl_fully_async": verl_async.compared(),
        "dora": dora.compared(),
        "seer_baseline": seer.compared(),
        "stream_rl": stream_rl.compared(),
    }


def scale(engines: int, groups: int) -> dict[str, Any]:
    """One simulation of so many engines, of at least so many groups that are trained on."""
    steps = -(-groups // BATCH_SIZE)
    config = parse(FLEET, [f"engines.num_engines={engines}", f"simulation.num_steps={steps}"])
    began = time.process_time()
    found = figures(config, simulate(config, policy_of(config.staleness, config.rollout)))
    cpu_s = time.process_time() - began
    dealt = found["ledger"]["dealt"]
    return {
        "engines": engines,
        "groups": dealt,
        "samples": dealt * config.rollout.n_samples_per_prompt,
        "cpu_s": round(cpu_s, 1),
        "cpu_us_per_group": round(cpu_s * 1e6 / dealt, 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "simulated_s": found["wall_s"],
        "learner_busy": found["learner_busy"],
        "engine_busy": found["engine_busy"],
        "balanced": found["balanced"],
    }


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
