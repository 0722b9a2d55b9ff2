"""The real loop beside what its staleness policy could do at best: synthetic engines, a learner that waits, one trace.

A run (dealer, ledger, workers, router, broadcaster, learner with its bus) whose engines generate each group for as long as
``lib/schedule/trace.py`` says and whose learner waits SCHEDULE_STEP_S a batch, for each of SCHEDULE_SIGMAS, SCHEDULE_LAGS and
SCHEDULE_POLICY (names with spaces between them, each with keys of [staleness] if it needs some: "fifo elastic,elastic_cap=8");
SCHEDULE_STEPS steps count, those before FIRST do not, nor do SCHEDULE_TAIL further ones (none, unless it is set): in the last
steps of a run less and less is begun. ``share``: the groups a second that the run trained over those of a
simulation of the same policy on the same trace, in which nothing but generation, training and updates takes time
(``lib/schedule/ideal.py``: ``miles-async simulate``); a step has more than one batch where the policy holds the weights.
``of_learner``: over those of a learner that never waits, whatever the policy. ``length_ratio``: of responses as they were made,
trained over dispatched; ``unmasked_length_ratio``: without the tokens that were masked. ``added_ms``: what each link of the
chain takes beyond the ideal (``lib/schedule/latencies.py``), and how much longer than its update an engine is paused.
``cpu_us_per_group``: of all roles but the engines, of which ``by_the_clock`` is what they take each second while nothing
happens (in a last step of IDLE_S). ``miles-async bench schedule``.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.lib import timed_run
from benchmarks.lib.launched import by_role, launched, python_path, step_ends
from benchmarks.lib.schedule.ideal import ideal
from benchmarks.lib.schedule.latencies import latencies
from benchmarks.lib.schedule.trace import BATCH_SIZE, SLOTS, Trace, to_environment
from miles_async.cli.load import load
from miles_async.monitor.record_lines import TRANSITIONS_FILE, read_metrics

LAGS = "0 1 2 4 8"
SIGMAS = "0.6"
POLICY = "fifo"
STEP_S = 0.5
STEPS = 30
SAMPLES = 8
TAIL = 0
FIRST = 2  # the step from whose end on is counted
IDLE_S = 5.0
SETTLED_S = (1.5, 0.5)  # of which the first and the last do not count
CONFIG = timed_run.config(
    BATCH_SIZE,
    SLOTS,
    "benchmarks.lib.schedule.parts.WaitingLearner",
    "benchmarks.lib.schedule.parts.TracedEngine",
    weights={"update_waves": 1},
)


def run(
    lags: list[int] | None = None,
    sigmas: list[float] | None = None,
    steps: int | None = None,
    step_s: float | None = None,
    samples: int | None = None,
    tail: int | None = None,
    policies: list[str] | None = None,
) -> dict[str, Any]:
    """Figures for each sigma, lag and policy; None: as the environment or this file says. Raises RuntimeError: a run failed."""
    ask = os.environ.get
    lags = lags or [int(lag) for lag in ask("SCHEDULE_LAGS", LAGS).split()]
    sigmas = sigmas or [float(sigma) for sigma in ask("SCHEDULE_SIGMAS", SIGMAS).split()]
    steps = steps or int(ask("SCHEDULE_STEPS", STEPS))
    step_s = step_s or float(ask("SCHEDULE_STEP_S", STEP_S))
    samples = samples or int(ask("SCHEDULE_SAMPLES", SAMPLES))
    tail = int(ask("SCHEDULE_TAIL", TAIL)) if tail is None else tail
    policies = policies or ask("SCHEDULE_POLICY", POLICY).split()
    idle_step = FIRST + steps + tail + 1
    runs: dict[str, Any] = {}
    for sigma, lag, policy in itertools.product(sigmas, lags, policies):
        trace = Trace(sigma, step_s, samples, idle_step=idle_step, idle_s=IDLE_S)
        settings = [
            f"run.num_steps={idle_step}",
            f"rollout.n_samples_per_prompt={samples}",
            f"staleness.max_lag={lag}",
            "staleness.hard_bound=false",  # of a policy that has none; of others it changes nothing
            *settings_of(policy),
        ]
        name = f"{policy}, sigma {sigma:g}, max_lag {lag}"
        runs[name] = one(trace, settings, steps)
        print(name, json.dumps(runs[name]), file=sys.stderr)
    return {
        "steps": steps,
        "tail": tail,
        "step_s": step_s,
        "samples_per_group": samples,
        "batch_size": BATCH_SIZE,
        "slots": SLOTS,
        "runs": runs,
        "cores": os.cpu_count(),
    }


def settings_of(policy: str) -> list[str]:
    """Of one word of SCHEDULE_POLICY: the name, and keys of [staleness] behind commas."""
    name, *keys = policy.split(",")
    return [f"staleness.policy={name}", *(f"staleness.{key}" for key in keys)]


def one(trace: Trace, settings: list[str], steps: int) -> dict[str, Any]:
    """The figures of one run."""
    last = FIRST + steps
    with tempfile.TemporaryDirectory() as directory:
        config, run_dir = timed_run.write(Path(directory), CONFIG), Path(directory) / "run"
        best = ideal(load(config, settings), trace)
        cpu, summary = launched(config, run_dir, settings, to_environment(trace) | {"PYTHONPATH": python_path()})
        ends = step_ends(run_dir)
        with (run_dir / TRANSITIONS_FILE).open() as lines:
            transitions = [json.loads(line) for line in lines]
        added, sizes = latencies(transitions, ends, trace, FIRST, last), Counter[int]()
        for line in transitions:
            if line["kind"] in ("batched", "extended"):
                sizes[line["step"]] += len(line["groups"])
        masked = _masked(run_dir, transitions)
    began, ended = ends[FIRST], ends[last]
    took, best_s = ended - began, best.step_ends[last - 1] - best.step_ends[FIRST - 1]
    ratio = (summary["length_bias"] or {}).get("ratio")
    groups, best_groups = sum(sizes[step] for step in range(FIRST + 1, last + 1)), sum(best.sizes[FIRST:last])
    idle_from, idle_to = (ends[trace.idle_step - 1] + seconds for seconds in (SETTLED_S[0], IDLE_S - SETTLED_S[1]))
    idle = by_role(cpu.between(idle_from, idle_to))
    idle_cores = {role: seconds / (idle_to - idle_from) for role, seconds in idle.items()}
    busy = by_role(cpu.between(began, ended))
    return {
        "share": round(groups / took / (best_groups / best_s), 3),
        "of_learner": round(groups / BATCH_SIZE * trace.step_s / took, 3),
        "ideal_of_learner": round(best_groups / BATCH_SIZE * trace.step_s / best_s, 3),  # 1: it never waits
        "groups_per_step": round(groups / steps, 1),
        "ideal_groups_per_step": round(best_groups / steps, 1),
        "steps_per_s": round(steps / took, 3),
        "ideal_steps_per_s": round(steps / best_s, 3),
        "max_token_lag": summary["max_token_lag"],
        "ideal_max_lag": best.max_lag,
        "dropped": sum(summary["ledger"]["dropped"].values()),
        "ideal_dropped": best.dropped,
        "masked": masked,
        "ideal_masked": round(best.masked_share, 4),
        "length_ratio": ratio,
        "unmasked_length_ratio": None if ratio is None else round(ratio * (1 - masked), 3),
        "added_ms": added | {"pause": round((summary["weights_paused_s"] - trace.update_s) * 1e3, 1)},
        "cpu_us_per_group": _sum(busy, groups),
        "by_the_clock": _sum({role: cores * took for role, cores in idle_cores.items()}, groups),
        "roles": {role: round(seconds * 1e6 / groups, 1) for role, seconds in busy.most_common()},
        "idle_ms_per_s": {role: round(cores * 1e3, 1) for role, cores in idle_cores.items()},
        "others_cores": round(cpu.until(ended)["others_cores"], 3),
    }


def _masked(run_dir: Path, transitions: list[dict[str, Any]]) -> float:
    """Share of the tokens of what was trained that were masked."""
    lengths = {line["groups"][0]: sum(line["lengths"]) for line in transitions if line["kind"] == "published"}
    batches = [line["groups"] for line in transitions if line["kind"] in ("batched", "extended")]
    masked = sum(line.values.get("masked_tokens") or 0.0 for line in read_metrics(run_dir))
    return round(masked / sum(lengths[group] for groups in batches for group in groups), 4)


def _sum(seconds: Mapping[str, float], groups: int) -> float:
    """µs of a group, without the engines: what they do stands for a model."""
    return round(sum(s for role, s in seconds.items() if role != "engine") * 1e6 / groups, 1)


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
