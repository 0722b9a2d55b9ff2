"""What a configuration's algorithm may not say: each refusal is one line with the key, its value and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
from rl_step import config

from miles_async.config.schema import ConfigError, old_log_probs
from miles_async.rl.builtin.table import CORRECTIONS


def refusal(**algorithm: Any) -> str:
    with pytest.raises(ConfigError) as error:
        config(**algorithm)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("correction", [None, []])
@pytest.mark.parametrize("max_lag", [1, 16])
def test_a_run_with_lag_has_to_name_its_correction_and_is_told_which_there_are(max_lag: int, correction: Any):
    message = refusal(max_lag=max_lag, correction=correction)
    assert message.startswith("algorithm.correction is missing") and f"staleness.max_lag = {max_lag}" in message
    listed = message.partition(": one or several of ")[2].partition(", or a path")[0].split(", ")
    assert tuple(listed) == tuple(CORRECTIONS)
    assert config(max_lag=0, correction=correction).algorithm.correction == correction


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_every_correction_that_is_listed_is_taken(correction: str):
    for max_lag in (0, 1):
        config(max_lag=max_lag, correction=correction)
        config(max_lag=max_lag, correction=[correction])


@pytest.mark.parametrize(
    ("chosen", "mode"),
    [
        ({}, "rollout"),
        ({"correction": []}, "rollout"),
        ({"correction": "behaviour"}, "rollout"),
        ({"correction": ["opsm", "behaviour"]}, "rollout"),
        ({"correction": "uncorrected"}, "recompute"),
        ({"correction": "tis"}, "recompute"),
        ({"correction": "opsm"}, "recompute"),
        ({"correction": ["rs", "veto"]}, "recompute"),
        ({"correction": "tis", "old_log_probs": "loglinear"}, "loglinear"),
        ({"old_log_probs": "recompute"}, "recompute"),
        ({"correction": "opsm", "old_log_probs": "rollout"}, "rollout"),
    ],
)
def test_the_denominator_is_what_the_correction_needs_where_it_is_not_named(chosen: dict[str, Any], mode: str):
    assert old_log_probs(config(max_lag=0, **chosen).algorithm) == mode


REFUSED: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"correction": ["uncorrected", "tis"]},
        ["algorithm.correction = ['uncorrected', 'tis']", '"uncorrected"', "no other"],
    ),
    (
        {"correction": "behaviour", "old_log_probs": "recompute"},
        ["algorithm.correction = ['behaviour']", "algorithm.old_log_probs", '"rollout"', '"recompute"'],
    ),
    (
        {"correction": ["behaviour", "tis"]},
        ["algorithm.correction = ['behaviour', 'tis']", "['tis']", '"recompute" or "loglinear"'],
    ),
    (
        {"correction": ["opsm", "icepop"], "old_log_probs": "rollout"},
        ["algorithm.correction", "['icepop']", 'algorithm.old_log_probs = "rollout"', '"recompute" or "loglinear"'],
    ),
    (
        {"correction": "uncorrected", "old_log_probs": "rollout"},
        ["algorithm.correction = ['uncorrected']", 'algorithm.old_log_probs = "rollout"'],
    ),
    (
        {"correction": "tis", "kl_coef": 0.1, "use_kl_loss": True, "kl_loss_coef": 0.1, "advantage_estimator": "ppo"},
        ["algorithm.kl_coef", "algorithm.kl_loss_coef", "one place"],
    ),
    ({"correction": "tis", "kl_loss_coef": 0.1}, ["algorithm.kl_loss_coef = 0.1", "algorithm.use_kl_loss = true"]),
    *(
        (
            {"correction": "tis", "kl_coef": 0.1, "advantage_estimator": name},
            ["algorithm.kl_coef = 0.1", f'"{name}"', "use_kl_loss and kl_loss_coef"],
        )
        for name in ("grpo", "gspo", "dr_grpo", "rloo")
    ),
    *(
        (
            {"correction": "tis", "normalize_advantages": False, "advantage_estimator": name},
            [f'algorithm.advantage_estimator = "{name}"', "normalize_advantages = true"],
        )
        for name in ("reinforce_plus_plus", "reinforce_plus_plus_baseline")
    ),
]


@pytest.mark.parametrize(("algorithm", "words"), REFUSED)
def test_what_would_silently_do_something_else_is_refused(algorithm: dict[str, Any], words: list[str]):
    message = refusal(**algorithm)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "algorithm",
    [
        {"correction": "tis", "use_kl_loss": True},
        {"correction": "tis", "use_kl_loss": True, "kl_loss_coef": 0.1},
        {"correction": "tis", "kl_coef": 0.1, "advantage_estimator": "reinforce_plus_plus"},
        {"correction": "tis", "kl_coef": 0.1, "advantage_estimator": "ppo"},
        {"correction": "tis", "kl_coef": 0.1, "advantage_estimator": "mine.py:estimator"},
        {"correction": "mine.py:correction"},
        {"correction": ["mine.py:correction", "tis"]},
        {"loss_type": "sft_loss"},
        {"correction": "tis", "use_kl_loss": True, "use_unbiased_kl": True},
        *({"correction": "tis", "policy_loss": n, "eps_clip_c": 3.0} for n in ("ppo_clip", "gspo", "mine.py:loss")),
        {"correction": "tis", "eps_clip_c": 3.0},
        *({"correction": "tis", "advantage_estimator": n, "normalize_advantages": True} for n in ("grpo", "rloo")),
    ],
)
def test_what_means_what_it_says_is_taken(algorithm: dict[str, Any]):
    config(**algorithm)


def test_a_correction_that_is_named_twice_is_refused():
    # it would weigh by the square of the ratio
    assert "algorithm.correction = ['tis', 'tis']" in refusal(correction=["tis", "tis"])


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ({"correction": "tis", "tis_clip": 0.5, "tis_clip_low": 0.8}, ["tis_clip = 0.5", "0.8"]),  # all weigh 0.5
        ({"correction": "icepop", "tis_clip": 0.5, "tis_clip_low": 0.8}, ["tis_clip = 0.5", "0.8"]),
        # below mis_lower's default
        ({"correction": "mis", "mis_mode": "clip", "mis_upper": 0.4}, ["mis_upper = 0.4", "0.5"]),
        # the lower bound is 1 / 0.9
        ({"correction": "rs", "rs_upper": 0.9}, ["rs_upper = 0.9", "1.11111"]),
        ({"correction": "rs", "rs_upper": 1.1, "rs_lower": 1.2}, ["rs_upper = 1.1", "1.2"]),
    ],
)
def test_bounds_that_leave_nothing_between_them_are_refused(algorithm: dict[str, Any], words: list[str]):
    message = refusal(**algorithm)
    assert message.startswith("algorithm.") and all(word in message for word in words), message


def test_a_key_of_a_part_that_is_not_there_is_refused():
    message = refusal(correction="tis", use_unbiased_kl=True)
    assert "algorithm.use_unbiased_kl = true" in message and "algorithm.use_kl_loss = true" in message
    for name in ("cispo", "truncated_reinforce", "dppo"):
        message = refusal(correction="tis", policy_loss=name, eps_clip_c=3.0)
        assert "algorithm.eps_clip_c = 3.0" in message and f'policy_loss = "{name}"' in message


def test_a_function_of_the_users_may_stand_beside_the_engines_denominator():
    config(correction=["behaviour", "mine.py:weigh_by_lag"])


def test_two_kl_coefficients_are_refused_with_their_values():
    both = {"kl_coef": 0.25, "use_kl_loss": True, "kl_loss_coef": 0.125, "advantage_estimator": "ppo"}
    message = refusal(correction="tis", **both)
    assert "0.25" in message and "0.125" in message
