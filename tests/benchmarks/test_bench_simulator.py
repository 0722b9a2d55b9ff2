"""`bench simulator`: what was published, from its inputs, and fleets by the hundred."""

from __future__ import annotations

import pytest

from benchmarks import bench_simulator
from benchmarks.lib.published import applied_compute, miles_arms


def test_staleness_of_a_queue_that_never_fills_is_the_published_formula() -> None:
    (found,) = applied_compute.compared(applied_compute.RUNS[:1])
    assert found["simulated"] == pytest.approx(found["predicted"], rel=0.02)
    assert abs(found["error"]) < 0.08


def test_an_arm_is_predicted_from_the_inputs_of_its_source() -> None:
    (found,) = miles_arms.compared(miles_arms.ARMS[1:2])
    assert abs(found["error_of_updates"]) < 0.06 and abs(found["error_of_wait_in_steps"]) < 0.06


def test_a_large_fleet_is_simulated_whole() -> None:
    found = bench_simulator.scale(100, 2000)
    assert found["balanced"] and found["groups"] >= 2000 and found["samples"] == 8 * found["groups"]
