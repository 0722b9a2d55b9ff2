"""Applied Compute, GRPO of Qwen3-8B (July 2026): the mean staleness of six runs, beside their closed form for it.

    C samples of groups' worth are in flight ──► a queue of at most q batches ──► batches of B groups, in completion order
    rho: what the engines make over what the learner takes. M: mean of a group's longest response over the mean response

Inputs of the source: C, B, q, rho, M. Not from it: samples of a group (8), the shape of the lengths (lognormal; sigma is
such that M comes out), and that engines are as fast with few requests as with many (a slot is the unit of speed).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from miles_async.simulation.ideal import Unbounded
from miles_async.simulation.loop import simulate
from miles_async.simulation.reading import parse
from miles_async.simulation.result import figures

SAMPLES = 8
MEAN = 2000  # tokens of a response
TOKEN_S = 0.01
STEPS = 60
# mean of the longest of 8 lognormal draws over their mean, by sigma (numerically, 10^6 draws each)
SIGMA_OF = {1.42: 0.2610, 1.43: 0.2666, 1.44: 0.2722, 1.45: 0.2778}


class Run(NamedTuple):
    """measured, predicted: mean versions that a group is behind when it is trained, as they say."""

    in_flight: int
    batch: int
    queue: int
    rho: float
    longest: float
    predicted: float
    measured: float


RUNS = (
    Run(120, 240, 2, 0.63, 1.42, 1.34, 1.26),
    Run(240, 120, 2, 0.92, 1.43, 3.86, 3.59),
    Run(128, 128, 2, 1.07, 1.44, 3.29, 3.09),
    Run(240, 120, 1, 0.86, 1.42, 3.34, 3.40),
    Run(120, 120, 1, 0.67, 1.42, 1.95, 1.92),
    Run(128, 128, 1, 1.14, 1.45, 2.24, 2.01),
)


def compared(runs: Sequence[Run] = RUNS) -> list[dict[str, float]]:
    """Each run beside its simulation."""
    return [_compared(run) for run in runs]


def _compared(run: Run) -> dict[str, float]:
    made_s = run.batch * MEAN * TOKEN_S / run.in_flight  # of a batch, where every slot is taken
    config = parse(
        "",
        [
            f"simulation.num_steps={STEPS}",
            f"rollout.rollout_batch_size={run.batch}",
            f"rollout.n_samples_per_prompt={SAMPLES}",
            "rollout.rollout_max_response_len=1000000",
            "rollout.num_workers=1",
            f"rollout.max_samples_in_flight={run.in_flight * SAMPLES}",
            "rollout.request_per_sample=true",
            "weights.update_waves=1",
            "weights.pause_mode=in_place",
            f"lengths.mean={MEAN}",
            f"lengths.sigma={SIGMA_OF[run.longest]}",
            "engines.num_engines=1",
            "engines.max_running_requests=4096",
            f"engines.step_s={TOKEN_S}",
            "engines.step_request_s=0",
            "engines.prefill_token_s=0",
            f"learner.step_s={made_s * run.rho}",
        ],
    )
    in_flight = math.ceil(
        run.in_flight * run.longest
    )  # groups of which a sample is: a group lasts as long as its longest
    # in completion order: admission stops while so many batches are ready
    found = figures(config, simulate(config, Unbounded(in_flight + run.queue * run.batch)))
    simulated = found["mean_group_lag"]
    return {
        **run._asdict(),
        "simulated": simulated,
        "error": round(simulated / run.measured - 1, 3),
        "error_of_their_formula": round(run.predicted / run.measured - 1, 3),
    }
