"""`bench schedule`: a run on a trace is measured against a simulation of its policy on that trace."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest

from benchmarks import bench_schedule
from benchmarks.lib.schedule import trace as traces
from benchmarks.lib.schedule.ideal import ideal
from benchmarks.lib.schedule.latencies import latencies
from benchmarks.lib.schedule.trace import Trace
from benchmarks.lib.timed_run import PLACE
from miles_async.cli.load import parse


@pytest.mark.parametrize("policy, max_lag", [("fifo", 3), ("drop", 1), ("token_mask", 1), ("elastic", 3)])
def test_the_ideal_is_of_the_runs_policy_slots_and_updates(policy: str, max_lag: int) -> None:
    config = parse(
        bench_schedule.CONFIG.replace(PLACE, "builtin:digits"),
        [f"staleness.policy={policy}", f"staleness.max_lag={max_lag}", "run.num_steps=20"],
        check=False,
    )
    trace = Trace(1.2, 1.0, 8)
    found = ideal(config, trace)
    assert len(found.step_ends) == len(found.sizes) == 20 and found.max_lag <= max_lag
    assert (found.dropped > 0) == (policy == "drop") and (found.masked_share > 0) == (
        policy in ("token_mask", "elastic")
    )
    assert max(found.sizes) > traces.BATCH_SIZE if policy == "elastic" else set(found.sizes) == {traces.BATCH_SIZE}
    ahead = config.staleness.admit_lag if policy == "elastic" else max_lag
    begun = min(traces.SLOTS, (ahead + 1) * traces.BATCH_SIZE)
    first = sorted(trace.seconds(position) for position in range(begun))[traces.BATCH_SIZE - 1]
    if policy != "fifo":  # the first batch is the first groups that end
        assert found.step_ends[0] == pytest.approx(first + trace.step_s)


@pytest.mark.parametrize("sigma", [0.6, 1.2])
def test_the_trace_has_the_stated_distribution_and_is_the_same_for_every_reader(sigma: float) -> None:
    trace = Trace(sigma, 0.5, 8)
    seconds = [trace.seconds(position) for position in range(20_000)]
    assert statistics.fmean(seconds) == pytest.approx(traces.MEAN_STEPS * 0.5, rel=0.05)
    assert statistics.stdev(map(math.log, seconds)) == pytest.approx(sigma, rel=0.05)
    assert [trace.draw(seed) for seed in range(16)] == [trace.tokens(0)] * 8 + [trace.tokens(1)] * 8
    assert max(trace.tokens(position) for position in range(20_000)) <= traces.LONGEST


def test_the_environment_hands_the_trace_on(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = Trace(0.6, 0.5, 8, 33, 5.0)
    for name, value in traces.to_environment(trace).items():
        monkeypatch.setenv(name, value)
    assert traces.from_environment() == trace
    assert (trace.train_s(32), trace.train_s(33)) == (0.5, 5.0)


def transition(ms: int, kind: str, *groups: str, step: int = 0, versions: int = 1) -> dict[str, Any]:
    return {
        "id": f"{ms}-0",
        "kind": kind,
        "groups": list(groups),
        "step": step,
        "versions": [[v, 1] for v in range(versions)],
    }


def test_what_each_link_of_the_chain_adds_is_read_from_the_record() -> None:
    trace = Trace(0.6, 1.0, 1)
    a, b = (round(trace.seconds(position) * 1e3) for position in (0, 1))
    record = [
        transition(1000, "admitted", "a"),
        transition(1003, "claimed", "a"),
        transition(1003 + a + 7, "published", "a"),
        transition(1003 + a + 12, "batched", "a", step=1),
        transition(20_040, "admitted", "b"),
        transition(20_042, "claimed", "b"),
        transition(20_042 + b + 50 + 8, "published", "b", versions=2),
        transition(20_042 + b + 50 + 8 + 5, "batched", "b", step=2),
    ]
    ends = {0: 0.9, 1: 20.0, 2: (20_042 + b + 63) / 1e3 + 1.009}
    assert latencies(record, ends, trace, 1, 2) == {"offer": 40, "claim": 2, "generate": 8, "batch": 5, "train": 9}


def test_a_policy_may_bring_keys_of_its_own() -> None:
    assert bench_schedule.settings_of("fifo") == ["staleness.policy=fifo"]
    found = bench_schedule.settings_of("elastic,elastic_cap=8,elastic_admit_lag=3")
    assert found == ["staleness.policy=elastic", "staleness.elastic_cap=8", "staleness.elastic_admit_lag=3"]


def test_a_run_on_the_trace_trains_what_the_ideal_trains_at_no_more_than_its_pace() -> None:
    found = bench_schedule.run(lags=[2], sigmas=[0.6], steps=3, step_s=0.5, samples=2)
    ((name, figures),) = found["runs"].items()
    assert name == "fifo, sigma 0.6, max_lag 2"
    assert 0.0 < figures["share"] <= 1.02
    assert figures["of_learner"] == pytest.approx(figures["share"] * figures["ideal_of_learner"], abs=2e-3)
    assert figures["length_ratio"] == figures["unmasked_length_ratio"] == 1.0 and figures["masked"] == 0.0
    assert figures["max_token_lag"] <= 2 and figures["dropped"] == figures["ideal_dropped"] == 0
    assert {"dealer", "rollout", "learner", "redis", "router", "launch", "broadcaster"} <= figures["roles"].keys()
    assert figures["cpu_us_per_group"] > 0
    assert {"offer", "claim", "generate", "batch", "train", "pause"} == figures["added_ms"].keys()
