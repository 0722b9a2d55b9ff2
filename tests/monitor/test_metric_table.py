"""Every metric is declared, once: what a learner reports by its configuration, and what the code names and is no more."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from rl_step import config

from miles_async.monitor.metrics.metric import Metric
from miles_async.monitor.metrics.table import TABLE, declared
from miles_async.rl.builtin.table import CORRECTIONS, POLICY_LOSSES
from miles_async.train.critic import AT_REST
from miles_async.train.critic import METRICS as CRITIC_METRICS
from miles_async.train.objective import MISMATCH, MISMATCH_TOKENS, Objective
from miles_async.train.steps import counts

ROOT = Path(__file__).parents[2]
METRICS = [metric for _, _, metrics in TABLE for metric in metrics]


def test_a_name_of_the_runs_own_stands_where_the_pattern_has_a_word() -> None:
    metric = Metric("weights/paused_s/{engine}", "s", "")
    assert metric.is_called("weights/paused_s/engine-0")
    assert not metric.is_called("weights/paused_s/") and not metric.is_called("weights/paused_s")
    assert declared("weights/bytes", "broadcaster") and declared("weights/bytes", "router") is None
    assert declared("refused/dealer/events", "dealer") and declared("something", "dealer") is None


def test_each_is_declared_once() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)


def test_what_is_declared_is_in_the_code() -> None:
    code = "".join(
        path.read_text()
        for room in ("actors", "miles_async")
        for path in sorted((ROOT / room).rglob("*.py"))
        if path.parent.name != "metrics"
    )
    groups = ("age/", "eval/", "length_bias/", "critic-")  # put before the names elsewhere than where those are made
    for metric in METRICS:
        name = metric.name
        for group in groups:
            name = name.removeprefix(group)
        literal = max(re.split(r"\{\w+\}", name), key=len)
        assert literal.rstrip("/") in code, metric.name


CASES = [
    *({"policy_loss": name, "correction": "behaviour"} for name in POLICY_LOSSES),
    *({"correction": name} for name in CORRECTIONS),
    *({"correction": "mis", "mis_mode": mode} for mode in ("truncate", "clip", "mask")),
    {"correction": "uncorrected", "use_kl_loss": True, "kl_loss_coef": 0.1},
    {"correction": "behaviour", "advantage_estimator": "ppo"},
    {"loss_type": "sft_loss", "correction": "uncorrected"},
]


@pytest.mark.parametrize("algorithm", CASES, ids=str)
def test_what_a_learner_reports_of_its_loss_is_declared(algorithm: dict[str, Any]) -> None:
    names = set(Objective(config(max_lag=0 if "loss_type" in algorithm else 3, **algorithm)).names)
    names = names - {MISMATCH, MISMATCH_TOKENS} | {"on_policy_logprob_abs_diff", *CRITIC_METRICS, *AT_REST, *counts()}
    assert {name for name in names if declared(name, "learner") is None} == set()
