"""The short fault campaign: six runs, each hit by one to four random faults (``make test-faults`` runs more of them)."""

from __future__ import annotations

import sys
from pathlib import Path

from warm_start import WarmPopen

ROOT = Path(__file__).parents[2]


def test_six_runs_hit_by_random_faults_lose_nothing_and_train_nothing_twice(monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    monkeypatch.chdir(ROOT)  # the runs find the campaign's learner here
    from benchmarks import bench_faults
    from benchmarks.lib.fault_run import FaultRun

    monkeypatch.setattr(FaultRun, "popen", WarmPopen)

    result = bench_faults.run(runs=6, seed=1, steps=60, kinds="processes")  # raises if a promise is broken
    assert sum(row["count"] for row in result["faults"].values()) >= 6
    assert all(row["lost"] == row["twice"] == 0 for row in result["faults"].values())
