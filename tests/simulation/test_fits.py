"""What a calibration is made of gives back what times and lengths were made with."""

from __future__ import annotations

import numpy as np
import pytest

from miles_async.simulation.assignment import Pause
from miles_async.simulation.draws import DrawnBySeed
from miles_async.simulation.fits import costs_of, lengths_of
from miles_async.simulation.generation_fit import Fleet, Generation, engine_fit
from miles_async.simulation.reading import parse


def drawn(*overrides: str, count: int = 400) -> list[list[int]]:
    """The lengths of so many groups of eight."""
    config = parse("", ["rollout.rollout_max_response_len=100000", *overrides])
    draws = DrawnBySeed(config)
    return [draws.group(position).lengths for position in range(count)]


def test_costs_are_found_whatever_a_few_outliers_say_and_are_never_negative() -> None:
    rng = np.random.default_rng(1)
    once, tokens = np.ones(60), rng.uniform(1e3, 1e4, 60)
    took = 0.5 * once + 2e-4 * tokens
    took[[7, 31]] += 40.0  # the machine stood still
    assert costs_of([once, tokens], took).costs == pytest.approx((0.5, 2e-4), rel=1e-6)
    falling = costs_of([once, tokens], 5.0 - 1e-4 * tokens)
    assert falling.costs[1] == 0.0 and falling.costs[0] > 0


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_lognormal_lengths_are_found_with_what_is_alike_in_a_group(alike: float) -> None:
    fit = lengths_of(drawn("lengths.mean=700", "lengths.sigma=0.8", f"lengths.alike={alike}", count=1000))
    assert fit.kind == "lognormal" and fit.values == []
    assert fit.mean == pytest.approx(700, rel=0.05) and fit.sigma == pytest.approx(0.8, rel=0.05)
    assert fit.alike == pytest.approx(alike, abs=0.06)


def test_lengths_of_another_kind_are_kept_as_they_are() -> None:
    groups = drawn("lengths.kind=pareto", "lengths.mean=300", "lengths.alpha=1.6")
    fit = lengths_of(groups)
    every = [length for group in groups for length in group]
    assert fit.kind == "empirical" and len(fit.values) == 512 and fit.values == sorted(fit.values)
    assert np.mean(fit.values) == pytest.approx(np.mean(every), rel=0.01)
    assert lengths_of([[5, 5], [5, 5]])[:2] == ("constant", 5.0)


def generations(step_s: float, request_s: float, prefill_s: float, overhead_s: float, at_once: int) -> list[Generation]:
    """An engine that runs alone: rounds of 1 to ``at_once`` groups of one sample, all of a round equally long."""
    rng, clock, found = np.random.default_rng(2), 0.0, []
    for _ in range(40):
        count, length, prompt = (
            int(rng.integers(1, at_once + 1)),
            int(rng.integers(50, 200)),
            int(rng.integers(20, 200)),
        )
        lasts = overhead_s + length * (step_s + count * request_s) + count * prompt * prefill_s
        found += [Generation(clock, clock + lasts, (length,), prompt) for _ in range(count)]
        clock += lasts + 0.01
    return found


def test_the_time_of_a_token_is_split_into_what_a_step_a_request_and_a_prefill_cost() -> None:
    made = engine_fit(generations(0.02, 0.001, 0.0005, 0.03, 12), [], [], Fleet(1))
    assert made[:4] == pytest.approx((0.02, 0.001, 0.0005, 0.03), rel=0.02)
    assert made.error < 0.01 and made.running[0] < 4 and made.running[1] > 8


def test_the_pauses_of_an_engine_are_none_of_its_tokens_time() -> None:
    paused = [0.4 + 0.3 * (n % 3) for n in range(20)]
    groups = [Generation(10.0 * n, 10.0 * n + 2.0 + 0.1 * n + paused[n], (100 + 5 * n,), 0) for n in range(20)]
    found = engine_fit(groups, [], [Pause(0, 10.0 * n + 1.0, 10.0 * n + 1.0 + paused[n]) for n in range(20)], Fleet(1))
    assert found.step_s == pytest.approx(0.02, rel=1e-3) and found.overhead_s == pytest.approx(0.0, abs=1e-3)
