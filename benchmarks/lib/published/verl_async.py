"""verl, fully asynchronous (Qwen2.5-Math-7B on DAPO, H20): half of 32, 64 and 128 GPUs train, half generate, staleness 0.5.

    512 prompts of 16 in four batches, 28k tokens ──► engines are updated after the four; half as many again may be open

Inputs of the source: an asynchronous run's own update, and how long the synchronous run generates a batch on 32 and on 128
GPUs (357.4 and 177.9 s), of which what does not shrink with the GPUs is the longest response's. Fitted on one arm, 32 GPUs,
for the others: the work of a token, since by the synchronous numbers 16 GPUs would need 478 s for a batch, and an
asynchronous step takes some 300: engines that share their GPUs with a learner are slower than those that do not. Not from it:
the lengths (a lognormal of 8,000 tokens, 3 % at the cap), and that all GPUs of a half are engines of one each.

A step is the wait and the update here; the source's own seconds of a step are others (294.8, 189.3 and 150.6), less than the
update alone for 32 GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.lib.published.lengths import by_mean_and_cap, solved
from miles_async.simulation.ideal import Unbounded
from miles_async.simulation.loop import simulate
from miles_async.simulation.reading import parse
from miles_async.simulation.result import figures

BATCHES, BATCH, SAMPLES, CAP = 4, 128, 16, 28_672
OPEN = BATCHES * BATCH * 3 // 2  # prompts
AT_CAP, MEAN = 0.03, 8_000
SYNC = ((32, 357.4), (128, 177.9))  # GPUs, seconds of a batch
STEPS = 16


class Arm(NamedTuple):
    """Of all GPUs. Seconds: of the learner's update, and of its wait for batches, for 512 prompts."""

    gpus: int
    update_s: float
    wait_s: float


ARMS = (Arm(32, 313.8, 21.3), Arm(64, 157.0, 28.5), Arm(128, 113.2, 33.1))
FITTED = ARMS[0]


def compared(arms: Sequence[Arm] = ARMS) -> list[dict[str, Any]]:
    """Each arm beside its simulation."""
    work_s = solved(lambda work_s: _step_s(FITTED, work_s) - FITTED.update_s - FITTED.wait_s, 100.0, 10_000.0, 8)
    rows = []
    for arm in arms:
        step_s, measured = _step_s(arm, work_s), arm.update_s + arm.wait_s
        rows.append(
            {
                **arm._asdict(),
                "simulated_wait_s": round(step_s - arm.update_s, 1),
                "error": round(step_s / measured - 1, 3),
                "fitted": arm == FITTED,
            }
        )
    return rows


def _step_s(arm: Arm, work_s: float) -> float:
    """Of 512 prompts. work_s: of all tokens of 512 prompts, on one GPU."""
    lengths = by_mean_and_cap(MEAN, CAP, AT_CAP)
    (few, slow), (many, fast) = SYNC
    longest_s = fast - (slow - fast) / (1 / few - 1 / many) / many
    config = parse(
        "",
        [
            f"simulation.num_steps={STEPS}",
            "simulation.warmup_steps=8",
            f"rollout.rollout_batch_size={BATCH}",
            f"rollout.n_samples_per_prompt={SAMPLES}",
            f"rollout.rollout_max_response_len={CAP}",
            "rollout.num_workers=1",
            f"rollout.max_samples_in_flight={OPEN * SAMPLES}",
            "rollout.request_per_sample=true",
            f"staleness.max_lag={BATCHES}",
            "weights.update_waves=1",
            f"weights.update_interval={BATCHES}",
            "weights.pause_mode=in_place",
            "lengths.kind=empirical",
            f"lengths.values={lengths}",
            f"engines.num_engines={arm.gpus // 2}",
            "engines.max_running_requests=4096",
            "engines.prefill_token_s=0",
            f"engines.step_s={longest_s / CAP}",
            f"engines.step_request_s={work_s / (BATCHES * BATCH * SAMPLES * MEAN)}",
            f"learner.step_s={arm.update_s / BATCHES}",
        ],
    )
    return figures(config, simulate(config, Unbounded(OPEN)))["step_s"] * BATCHES
