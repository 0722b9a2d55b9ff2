"""What policies decide in a simulation: as the ideal of ``bench schedule`` has it, within their bound, without a deadlock."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from simulations import BATCH, STEPS, TOKEN_S, Asked, run, settings

from miles_async.config.schema import ConfigError
from miles_async.simulation.asking import judges_each, window_of
from miles_async.simulation.draws import DrawnBySeed
from miles_async.simulation.loop import Simulated, StuckError
from miles_async.simulation.result import figures, result
from miles_async.simulation.settings import SimulationConfig
from miles_async.staleness.choice import BUILT_IN, policy_of
from miles_async.staleness.fifo import Fifo
from miles_async.staleness.policies import STALE_IN_FLIGHT, StalenessPolicy, bound_of

OPEN_ENDED = ("count", "ready_first", "pace")
WORLDS = st.fixed_dictionaries(
    {
        "simulation": st.fixed_dictionaries(
            {"seed": st.integers(0, 10**6), "num_steps": st.integers(1, 10), "warmup_steps": st.just(0)}
        ),
        "rollout": st.fixed_dictionaries(
            {
                "rollout_batch_size": st.integers(1, 5),
                "over_sampling_batch_size": st.sampled_from([None, 7]),
                "n_samples_per_prompt": st.integers(1, 3),
                "num_workers": st.integers(1, 2),
                "max_groups_in_flight": st.integers(1, 6),
                "request_per_sample": st.booleans(),
                "partial_rollout": st.booleans(),
                "lease_s": st.just(2.0),
            }
        ),
        "staleness": st.fixed_dictionaries(
            {
                "policy": st.sampled_from(BUILT_IN),
                "max_lag": st.integers(0, 3),
                "too_old": st.sampled_from([None, "drop", "requeue", "mask"]),
                "capacity": st.sampled_from([None, 5, 20]),
            }
        ),
        "weights": st.fixed_dictionaries(
            {
                "pause_mode": st.sampled_from(["retract", "in_place", "abort"]),
                "update_waves": st.integers(1, 2),
                "update_interval": st.integers(1, 2),
            }
        ),
        "router": st.fixed_dictionaries(
            {"policy": st.sampled_from(["least_inflight", "power_of_two", "consistent_hash"])}
        ),
        "lengths": st.fixed_dictionaries(
            {"mean": st.just(50.0), "sigma": st.sampled_from([0.0, 1.2]), "prompt_mean": st.just(20.0)}
        ),
        "environment": st.fixed_dictionaries(
            {
                "turns": st.integers(1, 3),
                "tool_s": st.just(0.3),
                "tool_sigma": st.just(1.0),
                "tool_tokens": st.just(10),
                "reward_s": st.just(0.1),
                "reward_sigma": st.just(1.0),
                "refused": st.sampled_from([0.0, 0.4]),
            }
        ),
        "engines": st.fixed_dictionaries(
            {
                "num_engines": st.integers(1, 3),
                "max_running_requests": st.sampled_from([2, 256]),
                "cache_tokens": st.sampled_from([None, 400]),
                "slow": st.sampled_from([[], [5.0]]),
                "update_s": st.sampled_from([0.0, 0.4]),
            }
        ),
        "failures": st.fixed_dictionaries(
            {
                "engine_interval_s": st.sampled_from([None, 8.0]),
                "engine_down_s": st.just(2.0),
                "worker_interval_s": st.sampled_from([None, 9.0]),
                "worker_down_s": st.just(1.0),
                "learner_interval_s": st.sampled_from([None, 10.0]),
                "learner_down_s": st.just(2.0),
            }
        ),
    }
)


def world(found: dict) -> SimulationConfig:
    """The settings of a drawn world, of which what a run refuses is made good."""
    rollout, staleness = found["rollout"], found["staleness"]
    if staleness["policy"] != "fifo" or (rollout["over_sampling_batch_size"] or 7) < rollout["rollout_batch_size"]:
        rollout["over_sampling_batch_size"] = None
    interval = min(found["weights"]["update_interval"], staleness["max_lag"] + 1)
    if staleness["policy"] == "elastic":
        interval = min(interval, max(1, (staleness["max_lag"] + 1) // 2))
    found["weights"]["update_interval"] = interval
    staleness["hard_bound"] = staleness["policy"] not in OPEN_ENDED
    if staleness["policy"] not in ("windowed", "recycle"):
        staleness["capacity"] = None
    config = msgspec.convert(found, SimulationConfig)
    try:
        policy_of(config.staleness, config.rollout)
    except ConfigError:  # what it does not do with a group that is too old
        staleness["too_old"] = None
    return msgspec.convert(found, SimulationConfig)


def generated(simulated: Simulated) -> int:
    """Tokens that the engines made."""
    return sum(engine.tokens for engine in simulated.fleet.engines)


def trained_or_not(simulated: Simulated) -> int:
    """What became of them: trained, masked, dropped with their group, lost with an engine or a worker, or in an open one."""
    record, groups = simulated.record, simulated.ledger.open.values()
    under_way = sum(sample.made for group in groups for request in group.requests for sample in request.samples)
    return record.tokens + record.masked + record.dropped_tokens + simulated.fleet.lost_tokens + under_way


@given(WORLDS)
@examples(max_examples=150, deadline=None)
def test_whatever_happens_the_bound_is_kept_no_group_is_lost_and_the_run_ends(found: dict) -> None:
    config = world(found)
    asked = Asked(policy_of(config.staleness, config.rollout))
    simulated = run(config, policy=asked)
    figured = figures(config, simulated)
    assert simulated.version == config.simulation.num_steps
    assert len(asked.batches) == simulated.version or asked.holds
    assert figured["balanced"]
    if not asked.surplus:  # of a group that is dropped while it is generated, what follows is nobody's
        assert generated(simulated) == trained_or_not(simulated)
    trained = [position for batch in asked.batches for position in batch]
    assert len(set(trained)) == len(trained) == figured["ledger"]["trained"]
    assert len(trained) == len(asked.batches) * config.rollout.rollout_batch_size
    assert not set(trained) & set(asked.dropped)
    bound = bound_of(asked)
    if figured["max_token_lag"] is not None:
        assert figured["max_token_lag"] <= bound
        assert figured["max_overrun"] == max(0, figured["max_token_lag"] - config.staleness.max_lag)
    if not asked.masks:
        assert max(asked.lags) <= bound


def test_what_a_group_had_made_when_it_was_ended_in_flight_is_counted_as_dropped() -> None:
    one_at_a_time = ("rollout.rollout_batch_size=1", "rollout.n_samples_per_prompt=1", "rollout.num_workers=1")
    lengths = ("lengths.mean=1500", "lengths.sigma=0", "staleness.max_lag=0")  # longer than a step
    few = ("rollout.max_groups_in_flight=1", "staleness.policy=windowed", "simulation.num_steps=2")
    simulated = run(settings(*one_at_a_time, *lengths, *few))
    assert simulated.record.dropped == {STALE_IN_FLIGHT: 1} and 0 < simulated.record.dropped_tokens < 1500
    assert generated(simulated) == trained_or_not(simulated)


@given(WORLDS)
@examples(max_examples=15, deadline=None)
def test_a_policy_that_is_known_here_decides_as_if_it_were_asked_each_time(found: dict) -> None:
    config = world(found)
    policy = policy_of(config.staleness, config.rollout)
    assert judges_each(policy) and (window_of(policy, 4) is None) == (
        config.staleness.policy not in ("fifo", "in_order")
    )
    asked = Asked(policy)  # an object of another class: it is asked each time
    assert not judges_each(asked) and window_of(asked, 4) is None
    seldom, often = run(config, policy=policy), run(config, policy=asked)
    assert figures(config, seldom) == figures(config, often)


@pytest.mark.parametrize("policy", BUILT_IN)
def test_it_is_asked_whenever_its_answer_may_have_changed(policy: str) -> None:
    given = ("lengths.mean=2200", "lengths.sigma=1.2", "rollout.max_groups_in_flight=12", f"staleness.policy={policy}")
    config = settings(*given, "engines.update_s=0.05", f"staleness.hard_bound={str(policy not in OPEN_ENDED).lower()}")
    known = policy_of(config.staleness, config.rollout)
    assert figures(config, run(config, policy=known)) == figures(config, run(config, policy=Asked(known)))


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not() -> None:
    given = ("lengths.sigma=1.2", "staleness.policy=drop", "rollout.max_groups_in_flight=12")
    one, again, other = (msgspec.json.encode(result(settings(*given, f"simulation.seed={seed}"))) for seed in (1, 1, 2))
    assert one == again != other


def test_the_share_of_the_ideal_is_what_the_bound_costs() -> None:
    given = ("lengths.mean=2200", "lengths.sigma=1.2", "rollout.max_groups_in_flight=12", "simulation.num_steps=100")
    shares = {
        lag: result(settings(*given, f"staleness.max_lag={lag}", "simulation.timeline=false"))["share_of_ideal"]
        for lag in (0, 2, 16)
    }
    assert 0 < shares[0] < shares[2] < shares[16] <= 1.01


class Miser(Fifo):
    def admit(self, state: object) -> int:
        return 0


class Wasteful(Fifo):
    def evict(self, ready, version):
        return [(group.group_id, "stale") for group in ready]


@pytest.mark.parametrize("policy", [Miser(1), Wasteful(1)])
def test_a_policy_that_cannot_progress_is_named_in_one_line(policy: StalenessPolicy) -> None:
    with pytest.raises(
        StuckError, match=r"staleness\.policy = .* cannot progress: .* at version 0, 0 of \d+ open"
    ) as error:
        run(settings(), lambda _: 1.0, policy)
    assert "\n" not in str(error.value)


class Hasty(Fifo):
    """Ready groups in the order in which they are ready, whatever their age."""

    def evict(self, ready, version):
        return []

    def select(self, ready, open_order, version, batch_size):
        return tuple(group.group_id for group in ready[:batch_size]) if len(ready) >= batch_size else None


def test_a_simulation_says_what_lag_a_policy_without_a_bound_has() -> None:
    given = ("lengths.mean=2200", "lengths.sigma=1.2", "rollout.max_groups_in_flight=12", "staleness.max_lag=3")
    assert max(run(settings(*given), policy=Hasty(3)).record.lag_groups) > 3


@pytest.mark.parametrize("policy", OPEN_ENDED)
def test_what_is_beyond_the_bound_is_reported_in_how_often_and_how_far(policy: str) -> None:
    given = ("lengths.mean=2200", "lengths.sigma=1.2", "rollout.max_groups_in_flight=12", "staleness.max_lag=2")
    found = result(settings(*given, f"staleness.policy={policy}", "staleness.hard_bound=false"))
    assert found["max_overrun"] == found["max_token_lag"] - 2 > 0
    assert 0 < found["overrun_token_share"] < 1 and 0 < found["overrun_group_share"] < 1
    assert found["overrun_token_share"] == pytest.approx(found["overrun_tokens"] / found["n_tokens"], abs=1e-6)
    assert found["dropped_share"] == found["masked_share"] == 0
    kept = result(settings(*given))
    assert kept["overrun_tokens"] == kept["max_overrun"] == 0


def test_a_prompt_that_is_made_again_is_as_long_by_what_is_its_own_and_comes_before_new_ones() -> None:
    given = ("lengths.mean=2200", "lengths.sigma=1.2", "rollout.max_groups_in_flight=12", "staleness.max_lag=1")
    drawn = DrawnBySeed(settings(*given, "lengths.alike=0.5", "lengths.prompt_mean=9", "lengths.prompt_sigma=1"))
    first, again = drawn.group(3), drawn.group(3, 1)
    assert first.prompt == again.prompt and first.lengths != again.lengths and again == drawn.group(3, 1)
    whole = DrawnBySeed(settings(*given, "lengths.alike=1.0"))
    assert whole.group(3).lengths == whole.group(3, 2).lengths
    rate, mean = {}, {}
    for becomes in ("drop", "requeue"):
        found = result(settings(*given, "staleness.policy=drop", f"staleness.too_old={becomes}", "lengths.alike=1.0"))
        rate[becomes], mean[becomes] = found["groups_per_s"], found["length_bias"]["trained_mean"]
        assert found["balanced"] and found["drops"]["stale"] > 0
    # long answers are begun again until the learner is slow enough for them
    assert rate["requeue"] < rate["drop"] and mean["requeue"] > mean["drop"]


def test_held_weights_train_what_would_have_grown_too_old() -> None:
    given = ("lengths.mean=2200", "lengths.sigma=1.2", "rollout.max_groups_in_flight=12", "staleness.max_lag=3")
    held = result(settings(*given, "staleness.policy=elastic", "staleness.elastic_cap=99"))
    masked = result(settings(*given, "staleness.policy=token_mask"))
    assert held["masked_tokens"] == 0 < masked["masked_tokens"] and held["max_token_lag"] <= 3
    assert held["dropped_share"] == 0 and held["groups_per_step"] > BATCH
    assert max(line["values"]["batches"] for line in held["timeline"]) > 1


def test_what_grows_too_old_in_part_is_masked_in_that_part() -> None:
    given = ("lengths.mean=2200", "lengths.sigma=1.2", "rollout.max_groups_in_flight=12", "staleness.max_lag=1")
    masked = result(settings(*given, "staleness.policy=token_mask"))
    dropped = result(settings(*given, "staleness.policy=drop", "rollout.partial_rollout=false"))  # to the end of each
    assert 0 < masked["masked_share"] < dropped["wasted_share"]
    assert masked["length_bias"]["ratio"] > dropped["length_bias"]["ratio"]
    assert masked["timeline"][-1]["values"]["max_token_lag"] <= 1


def test_the_timeline_has_the_names_of_a_runs_metrics() -> None:
    from miles_async.monitor.metrics.table import TABLE

    metrics = [metric for _, _, found in TABLE for metric in found]
    given = ("staleness.policy=drop", "lengths.sigma=1.2", "staleness.max_lag=1", "rollout.max_groups_in_flight=12")
    lines = result(settings(*given, "lengths.mean=2200"))["timeline"]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    names = {name for line in lines for name in line["values"]}
    assert "drops/stale" in names and not [n for n in names if not any(metric.is_called(n) for metric in metrics)]


@pytest.mark.parametrize("kind", ["constant", "lognormal", "pareto"])
def test_lengths_have_the_mean_that_was_asked_for(kind: str) -> None:
    config = settings(f"lengths.kind={kind}", "lengths.mean=200", "lengths.alpha=3.0", "rollout.n_samples_per_prompt=8")
    draws = DrawnBySeed(config)
    lengths = [length for position in range(4000) for length in draws.group(position).lengths]
    assert sum(lengths) / len(lengths) == pytest.approx(200, rel=0.03)


def test_lengths_are_alike_as_far_as_they_are_said_to_be() -> None:
    config = settings("lengths.mean=200", "lengths.sigma=1.0", "lengths.alike=0.5", "rollout.n_samples_per_prompt=2")
    draws = DrawnBySeed(config)
    pairs = [[math.log(length) for length in draws.group(position).lengths] for position in range(8000)]
    mean = sum(map(sum, pairs)) / 16_000
    covariance = sum((a - mean) * (b - mean) for a, b in pairs) / 8000
    assert covariance == pytest.approx(0.5, abs=0.06)


def test_lengths_that_were_measured_are_drawn_with_equal_chance() -> None:
    config = settings("lengths.kind=empirical", "lengths.values=[10, 20, 60]")
    draws = DrawnBySeed(config)
    drawn = [draws.group(position).lengths[0] for position in range(6000)]
    assert {value: round(drawn.count(value) / 6000, 1) for value in (10, 20, 60)} == {10: 0.3, 20: 0.3, 60: 0.3}


def test_a_learner_that_dies_trains_again_what_it_did_since_its_checkpoint() -> None:
    given = ("failures.learner_interval_s=20", "failures.learner_down_s=3", "learner.save_interval=5")
    whole, broken = run(settings(), lambda _: 0.5), run(settings(*given), lambda _: 0.5)
    assert broken.record.ended > whole.record.ended + 3 and broken.record.tokens == whole.record.tokens


def test_an_engine_that_dies_costs_tokens_and_no_group() -> None:
    given = ("engines.num_engines=2", "failures.engine_interval_s=5", "failures.engine_down_s=1", "staleness.max_lag=2")
    found = run(settings(*given), lambda _: 1000 * TOKEN_S)
    assert found.fleet.failovers > 0 and found.fleet.lost_tokens > 0
    assert found.record.tokens == STEPS * 4 * 1000


def test_tokens_that_die_with_their_worker_are_counted_as_lost() -> None:
    given = ("rollout.num_workers=2", "rollout.lease_s=2", "failures.worker_interval_s=8", "failures.worker_down_s=1")
    found = run(settings(*given), lambda _: 1000 * TOKEN_S)
    assert found.fleet.lost_tokens > 0 and generated(found) == trained_or_not(found)


def test_what_is_too_old_for_any_step_is_ended_while_it_is_generated_where_it_could_have_gone_on() -> None:
    given = ("lengths.mean=2200", "lengths.sigma=1.2", "rollout.max_groups_in_flight=12")

    def dropped(policy: str, *more: str) -> dict[str, int]:
        return result(settings(*given, f"staleness.policy={policy}", *more))["ledger"]["dropped"]

    assert dropped("drop")["stale_in_flight"] > 0
    assert dropped("drop", "staleness.too_old=requeue")["stale_in_flight"] > 0
    assert dropped("drop", "rollout.partial_rollout=false").keys() == {"stale"}
    assert dropped("fifo") == dropped("token_mask") == {}
