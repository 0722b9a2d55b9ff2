"""StreamRL's formula for a batch: latency of a token with BS requests, times the mean length, times ceil(M / BS).

Inputs: BS slots, M responses. Not from the source, which names no workload with it: the shape of the lengths. Where all are
equally long a simulation is the formula; where they are not, slots that are free are filled at once, and the longest response
is waited for: two errors of the formula that have opposite signs. What it says of a run of theirs (asynchronous over
colocated, 1.30 to 2.66 times) has no inputs with it, and is not simulated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from miles_async.simulation.loop import simulate
from miles_async.simulation.reading import parse
from miles_async.staleness.choice import policy_of

MEAN, TOKEN_S = 1_000, 0.02


class Case(NamedTuple):
    """sigma: of a lognormal; 0: all equally long."""

    slots: int
    responses: int
    sigma: float


CASES = tuple(Case(64, responses, sigma) for sigma in (0.0, 0.4, 0.8) for responses in (64, 96, 256, 1024))


def compared(cases: Sequence[Case] = CASES) -> list[dict[str, Any]]:
    """Each case beside its simulation."""
    rows = []
    for case in cases:
        formula = TOKEN_S * MEAN * math.ceil(case.responses / case.slots)
        found = _simulated(case)
        rows.append(
            {
                **case._asdict(),
                "formula_s": formula,
                "simulated_s": round(found, 2),
                "error_of_their_formula": round(formula / found - 1, 3),
            }
        )
    return rows


def _simulated(case: Case) -> float:
    """Seconds until all responses are there."""
    config = parse(
        "",
        [
            "simulation.num_steps=1",
            "simulation.warmup_steps=0",
            f"rollout.rollout_batch_size={case.responses}",
            "rollout.n_samples_per_prompt=1",
            "rollout.rollout_max_response_len=1000000",
            "rollout.num_workers=1",
            f"rollout.max_groups_in_flight={case.slots}",
            "staleness.max_lag=0",
            f"lengths.kind={'lognormal' if case.sigma else 'constant'}",
            f"lengths.mean={MEAN}",
            f"lengths.sigma={case.sigma}",
            "engines.num_engines=1",
            "engines.max_running_requests=4096",
            "engines.prefill_token_s=0",
            f"engines.step_s={TOKEN_S}",
            "engines.step_request_s=0",
            "learner.step_s=0",
        ],
    )
    return simulate(config, policy_of(config.staleness, config.rollout)).record.ended
