"""Marin, Snowball (67B-A2B, GSM8K, September 2026): ten arms of 100 updates, ages 0 to 4 before and after the weight copies
were made fast, and four of 25 updates, with other caps and with copies at every second update.

    32 groups of 4, a cap of 4,096 tokens, 8 engines; a group that is older than the bound is discarded and made again ("drop")

Inputs of the source: batch, cap, engines; how many responses are cut at 2,048 (14.6 %) and at 4,096 (3.6 %), which is a
lognormal; of 25 updates in 955.6 s, with fast copies, the learner's own time, 26.4 %, and that of the copies, 15.5 %; an
engine's rate with 16 requests (8 engines with 128: 6,166 tokens/s); the copies of the weights before, 21.15 s an update, and
19.3 s in the runs of 25 updates (40.2 % of 1,202.4 s). Fitted, for each of the two series on its synchronous arm: what a step
of an engine takes with few requests. Not from it: how many requests may run (no bound beyond the age's), that an engine's
step is a line in what it runs, and that the learner does not wait for its copies (the engines do).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.lib.published.lengths import by_two_shares, quantiles, solved
from miles_async.simulation.loop import simulate
from miles_async.simulation.reading import parse
from miles_async.simulation.result import figures
from miles_async.staleness.choice import policy_of

CAP, ENGINES = 4096, 8
LEARNER_S = (1 - 0.736) * 955.6 / 25
RUNNING = 16
STEP_AT_RUNNING_S = RUNNING * ENGINES / 6166  # of an engine, with RUNNING requests
SLOW_S, FAST_S = 21.15, 0.155 * 955.6 / 25  # of the copies for an update, before and after
SHORT_S = 0.402 * 1202.4 / 25  # the same in the runs of 25 updates
STEPS = 60


class Arm(NamedTuple):
    """wall_s: of all updates. copies_s: for one of them, in which the engines generate nothing. interval: updates between two
    copies."""

    name: str
    max_lag: int
    copies_s: float
    wall_s: float
    updates: int = 100
    cap: int = CAP
    interval: int = 1


LONG = Arm("before", 0, SLOW_S, 8524)
SHORT = Arm("25 updates", 0, SHORT_S, 1652.8, 25)
ARMS = (
    LONG,
    *(Arm("before", lag, SLOW_S, wall) for lag, wall in enumerate((5583, 5093, 4913, 4301), 1)),
    *(Arm("after", lag, FAST_S, wall) for lag, wall in enumerate((6235, 4360, 3544, 3142, 2942))),
    SHORT,
    Arm("25 updates", 1, SHORT_S, 1182.2, 25),
    Arm("25 updates, every second copied", 1, SHORT_S, 959.7, 25, interval=2),
    Arm("25 updates, cap 2,048", 1, SHORT_S, 914.4, 25, cap=2048),
)


def compared(arms: Sequence[Arm] = ARMS) -> list[dict[str, Any]]:
    """Each arm beside its simulation."""
    fitted = {arm.updates: _fitted(arm) for arm in (LONG, SHORT) if any(arm.updates == other.updates for other in arms)}
    rows = []
    for arm in arms:
        found = _simulated(arm, fitted[arm.updates])
        wall_s = found["step_s"] * arm.updates
        rows.append(
            {
                **arm._asdict(),
                "simulated_wall_s": round(wall_s),
                "error": round(wall_s / arm.wall_s - 1, 3),
                "simulated_dropped": found["dropped_share"],
                "simulated_mean_group_lag": found["mean_group_lag"],
                "fitted": arm in (LONG, SHORT),
            }
        )
    return rows


def _fitted(arm: Arm) -> float:
    """The seconds of a step of an engine without requests, such that the arm takes as long as it did."""
    return solved(lambda step_s: _simulated(arm, step_s)["step_s"] - arm.wall_s / arm.updates, 0.001, 0.02, 12)


def _simulated(arm: Arm, step_s: float) -> dict[str, Any]:
    """step_s: of an engine without requests."""
    median, sigma = by_two_shares((2048, 0.146), (4096, 0.036))
    config = parse(
        "",
        [
            f"simulation.num_steps={STEPS}",
            "rollout.rollout_batch_size=32",
            "rollout.n_samples_per_prompt=4",
            f"rollout.rollout_max_response_len={arm.cap}",
            "rollout.max_samples_in_flight=4096",
            "rollout.request_per_sample=true",
            "staleness.policy=drop",
            f"staleness.max_lag={arm.max_lag}",
            "weights.update_waves=1",
            f"weights.update_interval={arm.interval}",
            "weights.pause_mode=in_place",
            "lengths.kind=empirical",
            f"lengths.values={quantiles(median, sigma, arm.cap)}",
            f"engines.num_engines={ENGINES}",
            "engines.prefill_token_s=0",
            f"engines.step_s={step_s}",
            f"engines.step_request_s={(STEP_AT_RUNNING_S - step_s) / RUNNING}",
            f"engines.update_s={arm.copies_s}",
            f"learner.step_s={LEARNER_S}",
        ],
    )
    return figures(config, simulate(config, policy_of(config.staleness, config.rollout)))
