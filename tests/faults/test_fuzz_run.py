"""A slice of the fuzz campaign (``miles-async bench fuzz``): a live run under 2,000 malformed messages and requests."""

from __future__ import annotations

from benchmarks.bench_fuzz import run


def test_a_live_run_refuses_and_counts_every_malformed_message_and_loses_nothing() -> None:
    report = run(messages=2000, seed=7)  # raises BrokenPromiseError
    assert report["messages"] >= 2000 and report["crashes"] == 0 and report["balanced"]
    assert report["entries_left"]["dead"] == 0 and report["entries_left"]["metrics"] < 20
