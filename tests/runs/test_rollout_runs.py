"""Whole runs with filters: a refused group is replaced, a batch is never short, and the ledger names every group's fate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launching import (
    RECORDING,
    TINY,
    events,
    lags,
    launch,
    left_behind,
    metrics,
    recording_environment,
    summary,
    trained_groups,
    write_config,
)

from miles_async.monitor.record_lines import read_transitions

STEPS, BATCH = 6, 8

REWARDS = """
def graded(sample):
    number = int(sample.group_id.split("-")[1])
    if number % 5 == 0 and sample.index == 1:
        raise OSError("no grader")
    return 0.5 if number % 3 == 0 else 0.5 + 0.1 * sample.index
"""


def run(tmp_path: Path, **sections: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """A finished run with the filter and the rewards above, and its ledger."""
    (tmp_path / "my_rewards.py").write_text(REWARDS)
    rollout = TINY["rollout"] | {"rollout_batch_size": BATCH, "dynamic_sampling_filter": "nonzero_std"}
    config = write_config(
        tmp_path,
        run=TINY["run"] | {"num_steps": STEPS},
        reward={"rm_type": "my_rewards.graded"},
        topology=RECORDING,
        **sections | {"rollout": rollout | sections.get("rollout", {})},
    )
    run_dir = tmp_path / "run"
    result = launch(config, run_dir, env=recording_environment())
    assert result.returncode == 0, result.stderr
    found = summary(run_dir)
    assert found["status"] == "finished" and found["balanced"]
    assert left_behind(run_dir) == []
    return run_dir, found["ledger"]


def check_batches(run_dir: Path, ledger: dict[str, Any]) -> None:
    """What holds in every run with these filters, from the tokens and the record, not from what the run says of itself."""
    steps = trained_groups(run_dir)
    assert sorted(steps) == list(range(1, STEPS + 1))
    ids = [group.group_id for groups in steps.values() for group in groups]
    assert all(len(groups) == BATCH for groups in steps.values()) and len(set(ids)) == STEPS * BATCH
    for group in (group for groups in steps.values() for group in groups):
        number = int(group.group_id.split("-")[1])
        assert number % 3, f"{group.group_id} teaches nothing"
        # the sample that has no grade is left out, and no other one
        assert [sample.rollout_index if sample.rollout_index >= 0 else sample.index for sample in group.samples] == [
            index for index in range(4) if number % 5 or index != 1
        ]
    drops = [line for line in read_transitions(run_dir) if line.kind == "dropped"]
    reasons = [line.reason for line in drops]
    assert ledger["dropped"] == {reason: reasons.count(reason) for reason in set(reasons)}
    assert all(int(line.groups[0].split("-")[1]) % 3 == 0 for line in drops if line.reason == "zero_std")
    assert ledger["trained"] == STEPS * BATCH and ledger["dropped"]["zero_std"] > 0
    assert {(event["data"]["rollout"], event["data"]["reason"]) for event in events(run_dir, "sample_lost")} == {
        (1, "reward_error")
    }


def test_at_bound_0_a_refused_group_is_replaced_within_its_step_and_the_surplus_is_dropped(tmp_path: Path) -> None:
    run_dir, ledger = run(tmp_path, rollout={"over_sampling_batch_size": BATCH + 6}, staleness={"max_lag": 0})
    check_batches(run_dir, ledger)
    assert set(lags(run_dir).values()) == {(0, 0)}
    assert set(ledger["dropped"]) == {"zero_std", "surplus"}


def test_an_asynchronous_run_with_a_filter_drops_what_it_refuses_and_nothing_else(tmp_path: Path) -> None:
    run_dir, ledger = run(
        tmp_path,
        rollout={"rollout_function": "per_sample", "adaptive_in_flight": True, "max_samples_in_flight": 10},
        staleness={"max_lag": 2},
        weights={"pause_mode": "abort"},
    )
    check_batches(run_dir, ledger)
    assert all(least >= 0 and greatest <= 2 for least, greatest in lags(run_dir).values())
    assert set(ledger["dropped"]) == {"zero_std"}
    assert ledger["dealt"] == STEPS * BATCH + ledger["dropped"]["zero_std"]
    reports = [line["values"] for worker in ("rollout-0", "rollout-1") for line in metrics(run_dir, worker)]
    in_flight = [
        (v["rollout/in_flight_samples"], v["rollout/in_flight_limit"]) for v in reports if "rollout/canceled" in v
    ]
    assert in_flight and all(samples <= 10 and 4 <= limit <= 10 for samples, limit in in_flight)
