"""`bench simulator`: what was published, from its inputs, and fleets by the hundred."""

from __future__ import annotations

import pytest

from benchmarks import bench_simulator
from benchmarks.lib.published import applied_compute, lengths, marin, miles_arms, seer, stream_rl


def test_staleness_of_a_queue_that_never_fills_is_the_published_formula() -> None:
    (found,) = applied_compute.compared(applied_compute.RUNS[:1])
    assert found["simulated"] == pytest.approx(found["predicted"], rel=0.02)
    assert abs(found["error"]) < 0.08


def test_an_arm_is_predicted_from_the_inputs_of_its_source() -> None:
    (found,) = miles_arms.compared(miles_arms.ARMS[1:2])
    assert abs(found["error_of_updates"]) < 0.06 and abs(found["error_of_wait_in_steps"]) < 0.06


def test_arms_of_another_age_and_faster_copies_are_predicted_from_the_synchronous_one() -> None:
    found = marin.compared([arm for arm in marin.ARMS if (arm.name, arm.max_lag) in (("before", 1), ("after", 4))])
    assert all(abs(row["error"]) < 0.05 and not row["fitted"] for row in found)
    assert all(0.1 < row["simulated_dropped"] < 0.25 for row in found)  # "about a fifth"


def test_the_tail_of_a_synchronous_batch_follows_from_its_mean_and_its_longest() -> None:
    (found,) = seer.compared(seer.ARMS[:1])
    assert abs(found["error_of_share"]) < 0.05


def test_a_batch_of_equal_lengths_takes_what_the_formula_says_and_another_one_longer() -> None:
    equal, spread = stream_rl.compared([stream_rl.Case(8, 20, 0.0), stream_rl.Case(8, 20, 0.8)])
    assert equal["error_of_their_formula"] == 0.0 and spread["error_of_their_formula"] < 0.0


def test_lengths_are_those_that_a_source_states() -> None:
    median, sigma = lengths.by_two_shares((2048, 0.146), (4096, 0.036))
    drawn = lengths.quantiles(median, sigma, 1e9)
    for longer, share in ((2048, 0.146), (4096, 0.036)):
        assert sum(value > longer for value in drawn) / len(drawn) == pytest.approx(share, abs=0.003)
    cut = lengths.by_mean_and_cap(6000, 16_000, 0.02)
    assert sum(cut) / len(cut) == pytest.approx(6000, rel=0.001) and cut.count(16_000) == 10
    known = lengths.by_mean_and_median(3536, 1097, 30_720)
    assert sum(known) / len(known) == pytest.approx(3536, rel=0.001) and sorted(known)[250] == pytest.approx(
        1097, rel=0.02
    )


def test_a_large_fleet_is_simulated_whole() -> None:
    found = bench_simulator.scale(100, 2000)
    assert found["balanced"] and found["groups"] >= 2000 and found["samples"] == 8 * found["groups"]
