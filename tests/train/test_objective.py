"""The objective's loss, gradient and metrics against a slow loop over samples in float64, for all that can be combined."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from rl_reference import Reference, advantages, correction_weights, mean_weights, old, step_mean
from rl_step import Row, config, near, random_rows, step

from miles_async.config.schema import ConfigError, RunConfig, old_log_probs
from miles_async.rl.builtin.table import CORRECTIONS

POLICY_LOSSES = ("ppo_clip", "gspo", "cispo", "truncated_reinforce", "dppo")
AGGREGATIONS = ("token", "sample", "constant")
# bounds within the spread of the rows' ratios, so that each clip, mask and rejection holds some tokens and not others
BOUNDS = {
    "tis_clip": 1.3,
    "tis_clip_low": 0.6,
    "rs_upper": 1.3,
    "rs_veto_threshold": 0.55,
    "opsm_delta": 0.05,
    "m2po_threshold": 0.1,
    "dppo_tv_threshold": 0.02,
}
DUAL_CLIP = {"eps_clip_c": 1.3}  # of ppo_clip and gspo
ROWS = random_rows(14)


def allowed() -> list[tuple[tuple[str, ...], str]]:
    """Every single correction and every pair, with every denominator that goes with it."""
    found = []
    names = [*itertools.combinations(CORRECTIONS, 1), *itertools.combinations(CORRECTIONS, 2)]
    for chosen, mode in itertools.product(names, ("rollout", "recompute", "loglinear")):
        try:
            config(correction=list(chosen), old_log_probs=mode)
        except ConfigError:
            continue
        found.append((chosen, mode))
    return found


def agree(cfg: RunConfig, reference: Reference, corrections: tuple[str, ...]) -> None:
    ours, theirs = step(cfg, ROWS), reference.step(cfg, corrections)
    what = f"{cfg.algorithm.correction} {cfg.algorithm.loss_aggregation}"
    assert near(ours.loss, theirs.loss, 1e-6), f"{what}: {ours.loss} is not {theirs.loss}"
    for row, mine, other in zip(ROWS, ours.gradient, theirs.gradient, strict=True):
        assert mine == pytest.approx(other, abs=1e-6), f"{what}: gradient of {row}"


def test_the_combinations_that_a_configuration_allows_are_those_meant():
    found = allowed()
    single = {mode: {names[0] for names, m in found if m == mode and len(names) == 1} for _, mode in found}
    weighing = {"tis", "icepop", "mis", "rs", "veto", "opsm", "m2po", "span_tis"}
    assert single == {
        "rollout": {"behaviour", "opsm"},
        "recompute": weighing | {"uncorrected"},
        "loglinear": weighing | {"uncorrected"},
    }
    assert len(found) == 2 + 1 + 2 * (9 + math.comb(8, 2))


@pytest.mark.parametrize("policy_loss", POLICY_LOSSES)
def test_loss_and_gradient_are_those_of_the_loop_for_every_combination(policy_loss: str):
    single = [(names, mode) for names, mode in allowed() if len(names) == 1]
    for (names, mode), aggregation in itertools.product(single, AGGREGATIONS):
        check(policy_loss, names, mode, aggregation)


def test_two_corrections_multiply_whichever_they_are():
    pairs = [(names, mode) for names, mode in allowed() if len(names) == 2]
    others = itertools.cycle(itertools.product(POLICY_LOSSES, AGGREGATIONS))
    for (names, mode), (policy_loss, aggregation) in zip(pairs, others, strict=False):
        check(policy_loss, names, mode, aggregation)


@functools.cache
def reference(policy_loss: str, mode: str) -> Reference:
    return Reference(ROWS, policy_loss, mode, config(correction="behaviour", **BOUNDS, **DUAL_CLIP).algorithm)


def check(policy_loss: str, names: tuple[str, ...], mode: str, aggregation: str) -> None:
    chosen = {"policy_loss": policy_loss, "correction": list(names), "loss_aggregation": aggregation}
    dual = DUAL_CLIP if policy_loss in ("ppo_clip", "gspo") else {}
    agree(config(old_log_probs=mode, **chosen, **BOUNDS, **dual), reference(policy_loss, mode), names)


@pytest.mark.parametrize("normalize", [False, True], ids=["as-they-are", "mean-1"])
@pytest.mark.parametrize("mode", ["truncate", "clip", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_every_level_and_mode_of_mis_and_rejection_is_the_loops(level: str, mode: str, normalize: bool):
    bounds = (
        BOUNDS | DUAL_CLIP | {"rs_level": level, "mis_level": level, "mis_mode": mode, "mis_batch_normalize": normalize}
    )
    for lower in (None, 0.8):
        cfg = config(correction=["mis", "rs"], mis_lower=lower, rs_lower=lower, mis_upper=1.2, **bounds)
        agree(cfg, Reference(ROWS, "ppo_clip", "recompute", cfg.algorithm), ("mis", "rs"))


@pytest.mark.parametrize("mode", ["recompute", "loglinear"])
@pytest.mark.parametrize("name", [*CORRECTIONS][2:])
def test_the_rows_have_tokens_that_each_bound_holds_and_others(name: str, mode: str):
    cfg = config(correction=name, **BOUNDS).algorithm
    weights = correction_weights(name, ROWS, mode, advantages(ROWS, cfg), cfg)
    kept = [w for row, ws in zip(ROWS, weights, strict=True) for w, m in zip(ws, row.mask, strict=True) if m]
    bounds = {0.0, cfg.tis_clip, cfg.tis_clip_low, cfg.mis_upper}
    assert 0 < sum(w in bounds for w in kept) < len(kept)


def test_a_run_without_lag_needs_no_correction_and_takes_the_engines_log_probs():
    cfg = config(max_lag=0)
    assert old_log_probs(cfg.algorithm) == "rollout"
    agree(cfg, Reference(ROWS, "ppo_clip", "rollout", cfg.algorithm), ())


def test_the_estimator_gspo_brings_its_loss():
    cfg = config(advantage_estimator="gspo", correction="tis", eps_clip=3e-4, eps_clip_high=4e-4)
    agree(cfg, Reference(ROWS, "gspo", "recompute", cfg.algorithm), ("tis",))


def mean(cfg: RunConfig, value: Callable[[Row, int], float]) -> float:
    return step_mean(ROWS, cfg, value)


def low_var(x: float) -> float:
    return min(math.exp(x) - 1 - x, 10.0)


@pytest.mark.parametrize("aggregation", ["token", "sample"])
def test_metrics_have_miles_names_and_are_means_over_the_step(aggregation: str):
    cfg = config(
        correction=["tis", "opsm"], use_kl_loss=True, kl_loss_type="k3", loss_aggregation=aggregation, **BOUNDS
    )
    ours = step(cfg, ROWS).metrics

    def rho(row: Row, t: int) -> float:
        return math.exp(row.before[t] - row.behaviour[t])

    assert ours["entropy_loss"] == pytest.approx(mean(cfg, lambda row, t: row.entropy[t]), abs=1e-6)
    assert ours["ppo_kl"] == pytest.approx(mean(cfg, lambda row, t: row.before[t] - row.logprobs[t]), abs=1e-6)
    assert ours["ois"] == pytest.approx(mean(cfg, lambda row, t: math.exp(row.logprobs[t] - row.before[t])), abs=1e-6)
    assert ours["tis"] == pytest.approx(mean(cfg, rho), abs=1e-6)
    assert ours["tis_abs"] == pytest.approx(mean(cfg, lambda row, t: abs(rho(row, t) - 1)), abs=1e-6)
    assert ours["tis_clipfrac"] == pytest.approx(mean(cfg, lambda row, t: not 0.6 <= rho(row, t) <= 1.3), abs=1e-6)
    assert ours["kl_loss"] == pytest.approx(
        mean(cfg, lambda row, t: math.expm1(row.reference[t] - row.logprobs[t]) + row.logprobs[t] - row.reference[t]),
        abs=1e-6,
    )
    advantage = dict(zip(ROWS, advantages(ROWS, cfg.algorithm), strict=True))

    def held(row: Row, t: int) -> bool:
        ratio = math.exp(row.logprobs[t] - row.before[t])
        return ratio > 1.2 if advantage[row] > 0 else ratio < 0.8 and advantage[row] < 0

    assert ours["pg_clipfrac"] == pytest.approx(mean(cfg, held), abs=1e-6)
    kept = correction_weights("opsm", ROWS, "recompute", list(advantage.values()), cfg.algorithm)
    rejected = {row: 1 - weights[0] for row, weights in zip(ROWS, kept, strict=True)}
    assert ours["opsm_clipfrac"] == pytest.approx(mean(cfg, lambda row, t: rejected[row]), abs=1e-6)
    reference = Reference(ROWS, "ppo_clip", "recompute", cfg.algorithm).step(cfg, ("tis", "opsm"))
    assert ours["pg_loss"] == ours["loss"] == pytest.approx(reference.loss, abs=1e-6)


def test_the_mismatch_is_that_of_learner_and_engine_also_where_the_engine_is_the_denominator():
    cfg = config(correction="behaviour")
    ours = step(cfg, ROWS).metrics
    apart = [(row, t) for row in ROWS for t in range(len(row)) if row.mask[t] and row.versions[t] == 5]
    assert apart
    assert ours["on_policy_logprob_abs_diff"] == pytest.approx(
        sum(abs(row.logprobs[t] - row.behaviour[t]) for row, t in apart) / len(apart), abs=1e-6
    )
    assert ours["train_rollout_logprob_abs_diff"] == pytest.approx(
        mean(cfg, lambda row, t: abs(row.logprobs[t] - row.behaviour[t])), abs=1e-6
    )
    assert ours["train_rollout_kl"] == pytest.approx(
        mean(cfg, lambda row, t: low_var(row.logprobs[t] - row.behaviour[t])), abs=1e-6
    )


def test_ess_is_the_mean_over_samples_of_the_share_of_tokens_that_count():
    cfg = config(correction="tis", loss_aggregation="sample")

    def share(row: Row) -> float:
        w = [math.exp(p - o) for p, o, m in zip(row.logprobs, old(row, "recompute"), row.mask, strict=True) if m]
        return sum(w) ** 2 / (len(w) * sum(x * x for x in w)) if w else 0.0

    # branches of one rollout share its part of the mean by their tokens, as in every other metric
    expected = mean(cfg, lambda row, t: share(row))
    assert step(cfg, ROWS).metrics["ess_ratio"] == pytest.approx(expected, abs=1e-6)
    apart = [replace(row, rollout=i) for i, row in enumerate(ROWS)]
    found = step(cfg, apart).metrics["ess_ratio"]
    assert found == pytest.approx(sum(share(row) for row in ROWS) / len(ROWS), abs=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_entropy_and_kl_are_parts_of_the_loss_with_their_coefficients(aggregation: str):
    plain = step(config(correction="tis", loss_aggregation=aggregation), ROWS)
    cfg = config(
        correction="tis",
        loss_aggregation=aggregation,
        entropy_coef=0.3,
        use_kl_loss=True,
        kl_loss_coef=0.7,
        kl_loss_type="k2",
    )
    both = step(cfg, ROWS)
    entropy = mean(cfg, lambda row, t: row.entropy[t])
    kl = mean(cfg, lambda row, t: (row.logprobs[t] - row.reference[t]) ** 2 / 2)
    assert both.loss == pytest.approx(plain.loss - 0.3 * entropy + 0.7 * kl, abs=1e-6)
    for row, before, after, weights in zip(ROWS, plain.gradient, both.gradient, mean_weights(ROWS, cfg), strict=True):
        pull = [w * (p - r) for w, p, r in zip(weights, row.logprobs, row.reference, strict=True)]
        assert after == pytest.approx([g + 0.7 * k for g, k in zip(before, pull, strict=True)], abs=1e-6)


def test_a_kl_with_coefficient_zero_is_measured_and_changes_nothing():
    cfg = config(correction="tis", use_kl_loss=True)
    measured, plain = step(cfg, ROWS), step(config(correction="tis"), ROWS)
    assert "kl_loss" in measured.metrics and "kl_loss" not in plain.metrics
    assert measured.loss == plain.loss and measured.gradient == plain.gradient


def test_sft_is_the_mean_negative_log_likelihood_whatever_the_rewards():
    cfg = config(loss_type="sft_loss", loss_aggregation="sample")
    rows = [replace(row, reward=math.e * i) for i, row in enumerate(ROWS)]  # siblings disagree: nobody asks
    ours = step(cfg, rows)
    assert ours.loss == pytest.approx(mean(cfg, lambda row, t: -row.logprobs[t]), abs=1e-6)
    for weights, gradient in zip(mean_weights(ROWS, cfg), ours.gradient, strict=True):
        assert gradient == pytest.approx([-w for w in weights], abs=1e-7)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3", "low_var_kl"])
@pytest.mark.parametrize("policy_loss", POLICY_LOSSES)
def test_log_probs_as_far_apart_as_floats_let_them_give_finite_numbers(policy_loss: str, kind: str):
    far = itertools.cycle([0.0, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4])

    def wild(row: Row) -> Row:
        return replace(
            row,
            behaviour=tuple(-abs(next(far)) - 1 for _ in row.mask),
            before=tuple(-abs(next(far)) - 1 for _ in row.mask),
            logprobs=tuple(next(far) for _ in row.mask),
            reference=tuple(next(far) for _ in row.mask),
        )

    for corrections in (["tis", "veto"], ["icepop", "opsm"], ["mis", "rs"], ["m2po", "span_tis"]):
        cfg = config(
            correction=corrections,
            policy_loss=policy_loss,
            use_kl_loss=True,
            kl_loss_coef=0.1,
            kl_loss_type=kind,
            use_unbiased_kl=True,
            mis_level="sequence",
            mis_batch_normalize=True,
        )
        found = step(cfg, [wild(row) for row in ROWS])
        assert all(math.isfinite(value) for value in found.metrics.values()), found.metrics
        assert all(math.isfinite(value) for gradient in found.gradient for value in gradient)
