"""Miles, fully asynchronous (Qwen3-4B on DAPO-math, 8 nodes of 8 H100, August 2026): four splits of the nodes under S = 4.

    192 groups of 16 in flight ──► a queue, oldest first ──► batches of 192, the next one taken while one is trained

Inputs of the source: the split (T nodes train, R generate), the train time of each arm, 192 groups in flight, a cap of 16,384
tokens, lengths (mean 6,132, from tokens a second over updates; the 90th percentile 1.45 times the mean, 1 % at the cap), and
the law of the engines' rate, 1 / rate = 1.695 / R + 0.832 s a group. The law fixes both numbers of an engine's speed, since 192
groups in flight last 192 / rate each. What is compared: updates an hour, and how long the learner waits for a batch.

Not compared: the arms S = 1, whose time between two updates is the same for 116 and for 242 s of training, which no queue as
it is described gives; and staleness, of which the source counts 1.00 where ours is 0 or 1, by when a batch is taken.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from miles_async.simulation.draws import DrawnBySeed
from miles_async.simulation.ideal import Unbounded
from miles_async.simulation.loop import simulate
from miles_async.simulation.reading import parse
from miles_async.simulation.result import figures
from miles_async.simulation.settings import SimulationConfig

BATCH = IN_FLIGHT = 192  # groups
SAMPLES = 16
CAP = 16_384  # tokens
MEAN = 6132
SIGMA = 0.334  # of a lognormal whose 90th percentile is 1.45 means
AT_CAP = 0.01
QUEUE = 1000 / BATCH  # batches: the queue holds 1,000 groups
ENGINES_OF_A_NODE = 8
STEPS = 30


class Arm(NamedTuple):
    """train, generate: nodes. Seconds and updates as measured."""

    train: int
    generate: int
    train_s: float
    wait_s: float
    groups_per_s: float
    updates_per_h: float  # over steps 10 to 139


ARMS = (
    Arm(1, 7, 253.0, 8.6, 0.861, 13.30),
    Arm(2, 6, 122.5, 88.0, 0.893, 16.13),
    Arm(3, 5, 86.2, 153.2, 0.818, 15.05),
    Arm(4, 4, 60.9, 186.8, 0.788, 14.56),
)


def compared(arms: Sequence[Arm] = ARMS) -> list[dict[str, float]]:
    """Each arm beside its simulation."""
    return [_compared(arm) for arm in arms]


def _lengths() -> list[float]:
    """500 quantiles of the responses' distribution."""
    z = np.array([statistics.NormalDist().inv_cdf((i + 0.5) / 500) for i in range(500)])
    shape = np.exp(SIGMA * z)
    capped = round(AT_CAP * 500)
    body = shape[:-capped] * (MEAN * 500 - CAP * capped) / shape[:-capped].sum()
    return [*np.minimum(body, CAP).round().tolist(), *[float(CAP)] * capped]


def _settings(*given: str) -> SimulationConfig:
    return parse(
        "",
        [
            f"simulation.num_steps={STEPS}",
            f"rollout.rollout_batch_size={BATCH}",
            f"rollout.n_samples_per_prompt={SAMPLES}",
            f"rollout.rollout_max_response_len={CAP}",
            "rollout.num_workers=1",
            f"rollout.max_groups_in_flight={IN_FLIGHT}",
            "weights.update_waves=1",
            "weights.pause_mode=in_place",
            "lengths.kind=empirical",
            f"lengths.values={_lengths()}",
            "engines.max_running_requests=4096",
            "engines.prefill_token_s=0",
            *given,
        ],
    )


def _speed() -> tuple[float, float]:
    """Seconds of a step, and of each request in it, such that a group lasts 192 * (1.695 / R + 0.832) s.

    A group lasts as long as its longest response; in that time an engine runs, on average, as many requests as it has samples,
    each for its own length: mean over longest of them.
    """
    draws = DrawnBySeed(_settings())
    groups = [draws.group(position).lengths for position in range(4000)]
    longest = statistics.fmean(map(max, groups))
    mean = statistics.fmean(length for group in groups for length in group)
    running = IN_FLIGHT * SAMPLES * mean / longest / ENGINES_OF_A_NODE  # of an engine, times R
    return IN_FLIGHT * 0.832 / longest, IN_FLIGHT * 1.695 / longest / running


def _compared(arm: Arm) -> dict[str, float]:
    step_s, request_s = _speed()
    config = _settings(
        f"engines.num_engines={arm.generate * ENGINES_OF_A_NODE}",
        f"engines.step_s={step_s}",
        f"engines.step_request_s={request_s}",
        f"learner.step_s={arm.train_s}",
    )
    simulated = simulate(config, Unbounded(IN_FLIGHT + round(QUEUE) * BATCH))
    found, record = figures(config, simulated), simulated.record
    wait_s, per_h = record.wait_s / record.steps, 3600 / found["step_s"]
    return {
        **arm._asdict(),
        "simulated_wait_s": round(wait_s, 1),
        "simulated_updates_per_h": round(per_h, 2),
        "error_of_updates": round(per_h / arm.updates_per_h - 1, 3),
        "error_of_wait_in_steps": round((wait_s - arm.wait_s) / (arm.train_s + arm.wait_s), 3),
        "simulated_mean_group_lag": found["mean_group_lag"],
    }
