"""The campaign of split learners in small: one layout, one kill (``FAULT_LAYOUT=all miles-async bench faults`` has all)."""

from __future__ import annotations

import sys
from pathlib import Path

from warm_start import WarmPopen

ROOT = Path(__file__).parents[2]


def test_a_killed_rank_of_a_split_model_leaves_no_trace_in_the_weights(monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    monkeypatch.chdir(ROOT)  # the runs find the campaign's learner here
    from benchmarks import bench_faults
    from benchmarks.lib.fault_run import FaultRun

    monkeypatch.setattr(FaultRun, "popen", WarmPopen)

    result = bench_faults.of_layouts(["tp2"], seed=1, steps=12, kills=1)  # raises if a promise is broken
    found = result["layouts"]["tp2"]
    assert found["bit_equal"] and sum(row["count"] for row in found["faults"].values()) == 1
