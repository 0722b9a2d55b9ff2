"""Seer's baseline (veRL, synchronous rollout on H800): how much of a batch's time its tail takes, of three models.

Inputs of the source: requests, samples of a group, GPUs, mean and longest length. Not from it: the shape of the lengths (a
lognormal of that mean with 1 % at the longest, as Miles' has it), one engine for each GPU, for each eight or for each
thirty-two, and that an engine's step takes as long whatever it runs. The seconds of a step are such that the batch's time
comes out: what is compared is the tail, which is the time for the last tenth of the requests. What Seer itself does
(responses that are divided, drafts from the group) is not simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.lib.published.lengths import by_mean_and_cap
from miles_async.simulation.loop import simulate
from miles_async.simulation.reading import parse
from miles_async.staleness.choice import policy_of

AT_CAP = 0.01
TAIL = 0.1  # of the requests


class Arm(NamedTuple):
    """Seconds of a batch's rollout, and of its tail."""

    model: str
    engines: int
    requests: int
    samples: int
    mean: int
    longest: int
    rollout_s: float
    tail_s: float


ARMS = (
    Arm("Moonlight, 32 GPUs", 32, 3_200, 8, 22_386, 65_536, 3_910, 1_817),
    Arm("Qwen2-VL-72B, 128 GPUs", 16, 9_600, 16, 7_615, 40_960, 3_957, 2_301),
    Arm("Kimi-K2, 256 GPUs", 8, 6_400, 8, 38_959, 98_304, 12_202, 3_144),
)


def compared(arms: Sequence[Arm] = ARMS) -> list[dict[str, Any]]:
    """Each arm beside its simulation."""
    rows = []
    for arm in arms:
        ends = _ends(arm)
        tail = 1 - ends[int(len(ends) * (1 - TAIL))] / ends[-1]
        row = {
            **arm._asdict(),
            "tail_share": round(arm.tail_s / arm.rollout_s, 3),
            "simulated_tail_share": round(tail, 3),
        }
        rows.append(row | {"error_of_share": round(tail - arm.tail_s / arm.rollout_s, 3)})
    return rows


def _ends(arm: Arm) -> list[float]:
    """When each response of a batch ended, ascending, in any unit: each is a group of its own here."""
    config = parse(
        "",
        [
            "simulation.num_steps=1",
            "simulation.warmup_steps=0",
            "simulation.transitions=true",
            f"rollout.rollout_batch_size={arm.requests}",
            "rollout.n_samples_per_prompt=1",
            f"rollout.rollout_max_response_len={arm.longest}",
            "rollout.num_workers=1",
            f"rollout.max_groups_in_flight={arm.requests}",
            "staleness.max_lag=0",
            "lengths.kind=empirical",
            f"lengths.values={by_mean_and_cap(arm.mean, arm.longest, AT_CAP)}",
            f"engines.num_engines={arm.engines}",
            "engines.max_running_requests=4096",
            "engines.prefill_token_s=0",
            f"engines.step_s={arm.rollout_s / arm.longest}",
            "engines.step_request_s=0",
        ],
    )
    loop = simulate(config, policy_of(config.staleness, config.rollout))
    lines = loop.moments.transitions or []
    return sorted(int(line["id"].partition("-")[0]) / 1e3 for line in lines if line["kind"] == "published")
