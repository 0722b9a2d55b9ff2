"""A simulation keeps to closed forms where there are any."""

from __future__ import annotations

import pytest
from simulations import BATCH, STEPS, TOKEN_S, pace, run, settings


@pytest.mark.parametrize("update_s", [0.0, 0.25])
def test_without_lag_generation_training_and_update_follow_each_other(update_s: float) -> None:
    found = run(settings("staleness.max_lag=0", f"engines.update_s={update_s}"), lambda _: 3.0)
    assert pace(found) == pytest.approx(3.0 + 1.0 + update_s)


def test_fewer_slots_than_groups_are_so_many_rounds() -> None:
    found = run(settings("staleness.max_lag=0", "rollout.max_groups_in_flight=2"), lambda _: 3.0)
    assert pace(found) == pytest.approx(2 * 3.0 + 1.0)


@pytest.mark.parametrize("lag", [1, 2, 3, 5])
@pytest.mark.parametrize("seconds", [0.5, 2.0, 7.0])
def test_as_many_batches_as_the_bound_allows_are_on_their_way(lag: int, seconds: float) -> None:
    """Batch j begins with version j - L, so that L + 1 steps take one generation and one training, or the learner is busy."""
    found = run(settings(f"staleness.max_lag={lag}"), lambda _: seconds)
    assert pace(found) == pytest.approx(max(1.0, (seconds + 1.0) / (lag + 1)))


def test_with_lag_enough_the_slots_are_the_bound() -> None:
    found = run(settings("staleness.max_lag=8", "rollout.max_groups_in_flight=6"), lambda _: 3.0)
    assert pace(found) == pytest.approx(BATCH * 3.0 / 6, rel=0.05)


def test_generation_stands_still_during_an_update() -> None:
    """The learner is never the bound, every step has one update: of its time as much as generation and pause say."""
    given = ("staleness.max_lag=8", "rollout.max_groups_in_flight=4", "engines.update_s=0.5", "learner.step_s=0.1")
    assert pace(run(settings(*given), lambda _: 1.0)) == pytest.approx(1.0 + 0.5, rel=0.05)


def test_a_step_of_an_engine_takes_longer_for_each_request_that_runs() -> None:
    """Four groups of 1,000 tokens at a time, and no lag: a step is as long as the engine says."""
    found = run(settings("staleness.max_lag=0", "engines.step_request_s=0.0005"), lambda _: 1000 * TOKEN_S)
    assert pace(found) == pytest.approx(1000 * (TOKEN_S + BATCH * 0.0005) + 1.0)


def test_the_speed_changes_when_a_request_ends() -> None:
    """Samples of 1,000 and 3,000 tokens: two run, then one does."""
    given = ("staleness.max_lag=0", "engines.step_request_s=0.0005", "rollout.rollout_batch_size=2")
    found = run(settings(*given), lambda position: (1000 + 2000 * (position % 2)) * TOKEN_S)
    assert pace(found) == pytest.approx(1000 * (TOKEN_S + 2 * 0.0005) + 2000 * (TOKEN_S + 0.0005) + 1.0)


def test_a_context_that_grows_slows_its_engine() -> None:
    """sum over i < n of (a + c i), as n steps of a fluid: a n + c n^2 / 2."""
    given = ("staleness.max_lag=0", "engines.step_context_s=0.000001", "rollout.rollout_batch_size=1")
    found = run(settings(*given), lambda _: 1000 * TOKEN_S)
    assert pace(found) == pytest.approx(1000 * TOKEN_S + 1e-6 * 1000**2 / 2 + 1.0)


def test_what_was_measured_takes_the_place_of_the_formula() -> None:
    """40 tokens a second with two requests: 0.05 s a step; with four, half way to 0.15 s with six."""
    given = ("staleness.max_lag=0", "engines.measured_running=[2, 6]", "engines.measured_tokens_per_s=[40, 40]")
    found = run(settings(*given), lambda _: 10 * TOKEN_S)
    assert pace(found) == pytest.approx(10 * 0.1 + 1.0)


def test_prompts_are_prefilled_once_for_the_samples_of_a_request() -> None:
    given = (
        "staleness.max_lag=0",
        "engines.prefill_token_s=0.001",
        "lengths.kind=constant",
        "lengths.mean=10",
        "lengths.prompt_mean=500",
        "rollout.rollout_batch_size=1",
        "rollout.n_samples_per_prompt=4",
    )
    assert pace(run(settings(*given))) == pytest.approx(0.5 + 10 * TOKEN_S + 1.0)
    assert pace(run(settings(*given, "engines.prefix_cache=false"))) == pytest.approx(4 * 0.5 + 10 * TOKEN_S + 1.0)


def test_a_retracting_update_prefills_again_what_runs_and_one_in_place_does_not() -> None:
    """A long group runs beside short ones, so that each update finds its context."""
    given = ("staleness.max_lag=2", "engines.prefill_token_s=0.0001", "rollout.rollout_batch_size=1")
    lengths = {0: 10.0}
    ends: dict[str, float] = {}
    for mode in ("retract", "in_place"):
        config = settings(*given, "staleness.policy=token_mask", f"weights.pause_mode={mode}", "simulation.num_steps=6")
        ends[mode] = run(config, lambda position: lengths.get(position, 0.4)).record.ended
    assert ends["retract"] > ends["in_place"]


def test_turns_and_tools_take_their_time_and_their_prefill() -> None:
    """Three turns of ten tokens, two calls of 2 s whose answers are 100 tokens, which are prefilled; then a reward of 0.5 s."""
    given = (
        "staleness.max_lag=0",
        "engines.prefill_token_s=0.001",
        "lengths.kind=constant",
        "lengths.mean=30",
        "environment.turns=3",
        "environment.tool_s=2.0",
        "environment.tool_tokens=100",
        "environment.reward_s=0.5",
        "rollout.rollout_batch_size=1",
    )
    assert pace(run(settings(*given))) == pytest.approx(30 * TOKEN_S + 2 * (2.0 + 0.1) + 0.5 + 1.0)
    without = 30 * TOKEN_S + 2 * 2.0 + 0.1 * 1 + 0.1 * 2 + (10 + 20) * 0.001 + 0.5 + 1.0
    assert pace(run(settings(*given, "engines.prefix_cache=false"))) == pytest.approx(without)


def test_a_full_cache_retracts_and_everything_still_ends() -> None:
    """At 52.5 tokens each four samples fill 210 tokens: two are retracted with 52, and go on when the others have 100."""
    given = (
        "staleness.max_lag=0",
        "engines.cache_tokens=210",
        "engines.cache_free=0.0",
        "rollout.rollout_max_response_len=100",
    )
    found = run(settings(*given), lambda _: 100 * TOKEN_S)
    assert found.fleet.engines[0].retractions == 2 * STEPS
    assert pace(found) == pytest.approx(0.1 + 0.048 + 1.0)
    assert found.record.tokens == found.record.groups * 100


def test_a_slow_engine_gets_less_of_the_work() -> None:
    given = ("staleness.max_lag=4", "engines.num_engines=2", "engines.slow=[3.0]", "learner.step_s=0.01")
    config = settings(*given, "rollout.max_groups_in_flight=8", "staleness.policy=drop")
    slow, fast = run(config, lambda _: 1.0).fleet.engines
    assert fast.tokens > 2 * slow.tokens


def test_links_add_up() -> None:
    given = ("links.admit_s=0.1", "links.publish_s=0.2", "links.batch_s=0.3", "links.offer_s=0.4")
    found = run(settings("staleness.max_lag=0", *given), lambda _: 3.0)
    assert pace(found) == pytest.approx(3.0 + 1.0 + 1.0)


def test_replicas_wait_for_the_one_that_has_most() -> None:
    """Of groups of 100, 200, 300 and 400 tokens two replicas have 500 each, where they are balanced; else 700 at most."""
    given = ("staleness.max_lag=0", "learner.token_s=0.001", "learner.replicas=2")

    def seconds(position: int) -> float:
        return 100 * (1 + position % BATCH) * TOKEN_S

    assert pace(run(settings(*given), seconds)) == pytest.approx(0.4 + 1.0 + 0.5)
    assert pace(run(settings(*given, "learner.balance_data=false"), seconds)) == pytest.approx(0.4 + 1.0 + 0.7)


def test_micro_batches_are_those_of_the_learner() -> None:
    """Four sequences of 300 tokens in micro-batches of at most 600."""
    given = ("staleness.max_lag=0", "learner.micro_batch_s=0.25", "learner.max_tokens_per_micro_batch=600")
    assert pace(run(settings(*given), lambda _: 0.3)) == pytest.approx(0.3 + 1.0 + 2 * 0.25)
