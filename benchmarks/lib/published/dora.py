"""DORA (Qwen2.5-32B, 64 and 128 H800): rollout beside training, in the time of the synchronous run's training.

    512 prompts of 16, 2K + 30K tokens; long responses go on over several versions

Inputs of the source: lengths at step 100 (mean 3,536, the longest 28 medians = 30,720), the share of the synchronous step
that is rollout (65 and 73 %), and how much longer than the synchronous one its own training takes (from speed-up and rollout
share: 1.61 and 1.46 times, since fewer GPUs train). Not from it: that all GPUs are engines of one each in the synchronous
run, and as many fewer in the other as its training is longer; versions that may be open (2 beyond the newest); that an
engine's step takes as long whatever it runs, as a bubble of 75 to 88 % says. Time is in the synchronous training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.lib.published.lengths import by_mean_and_median
from miles_async.simulation.loop import simulate
from miles_async.simulation.reading import parse
from miles_async.simulation.result import figures
from miles_async.staleness.choice import policy_of

BATCH, SAMPLES, CAP = 512, 16, 30_720
MEAN, MEDIAN = 3_536, 30_720 / 28
STEPS, TRAIN_S = 12, 100.0


class Arm(NamedTuple):
    """sync_rollout, rollout: shares of a step that wait for rollout. speed_up: of a step over the synchronous one."""

    gpus: int
    sync_rollout: float
    rollout: float
    speed_up: float


ARMS = (Arm(64, 0.65, 0.12, 1.56), Arm(128, 0.73, 0.24, 1.93))


def compared(arms: Sequence[Arm] = ARMS) -> list[dict[str, Any]]:
    """Each arm beside its simulation, synchronous and not."""
    rows = []
    for arm in arms:
        sync_step_s = TRAIN_S / (1 - arm.sync_rollout)
        train_s = sync_step_s / arm.speed_up * (1 - arm.rollout)
        token_s = (sync_step_s - TRAIN_S) / CAP
        sync = _simulated(arm.gpus, 0, token_s, TRAIN_S)
        found = _simulated(max(1, round(arm.gpus * (1 - TRAIN_S / train_s))), 2, token_s, train_s)
        rows.append(
            {
                **arm._asdict(),
                "simulated_sync_rollout": round(1 - sync["learner_busy"], 3),
                "simulated_rollout": round(1 - found["learner_busy"], 3),
                "simulated_speed_up": round(sync["step_s"] / found["step_s"], 3),
                "error_of_speed_up": round(sync["step_s"] / found["step_s"] / arm.speed_up - 1, 3),
                "simulated_mean_token_lag": found["mean_token_lag"],
            }
        )
    return rows


def _simulated(engines: int, max_lag: int, token_s: float, train_s: float) -> dict[str, Any]:
    config = parse(
        "",
        [
            f"simulation.num_steps={STEPS}",
            "simulation.warmup_steps=3",
            f"rollout.rollout_batch_size={BATCH}",
            f"rollout.n_samples_per_prompt={SAMPLES}",
            f"rollout.rollout_max_response_len={CAP}",
            "rollout.num_workers=1",
            f"rollout.max_groups_in_flight={BATCH * 3}",
            "rollout.request_per_sample=true",
            "staleness.policy=token_mask",
            f"staleness.max_lag={max_lag}",
            "weights.update_waves=1",
            "weights.pause_mode=in_place",
            "lengths.kind=empirical",
            f"lengths.values={by_mean_and_median(MEAN, MEDIAN, CAP)}",
            f"engines.num_engines={engines}",
            "engines.max_running_requests=4096",
            "engines.prefill_token_s=0",
            f"engines.step_s={token_s}",
            "engines.step_request_s=0",
            f"learner.step_s={train_s}",
        ],
    )
    return figures(config, simulate(config, policy_of(config.staleness, config.rollout)))
