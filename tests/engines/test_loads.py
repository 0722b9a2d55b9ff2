"""What an engine says of its load is read whatever it says."""

from __future__ import annotations

from typing import Any

import pytest

from miles_async.engines.loads import read_report

RANK = {
    "num_running_reqs": 3,
    "num_waiting_reqs": 1,
    "token_usage": 0.5,
    "num_generated_tokens": 10,
    "num_used_tokens": 7,
    "gen_throughput": 2.5,
}


def test_the_ranks_of_an_engine_are_added_up_and_the_fullest_counts() -> None:
    report = read_report({"loads": [RANK, RANK | {"token_usage": 0.75, "num_waiting_reqs": 0}]})
    assert report is not None
    assert (report.running, report.waiting, report.kv_usage) == (6, 1, 0.75)
    assert (report.generated, report.sampled, report.throughput, report.progress) == (20, 20, 5.0, (20, 14))


def test_what_one_rank_does_not_say_is_not_known_of_the_engine() -> None:
    report = read_report({"loads": [RANK, {"num_running_reqs": 1, "num_used_tokens": 2}]})
    assert report is not None
    assert (report.running, report.waiting, report.kv_usage) == (4, None, None)
    assert (report.generated, report.sampled, report.throughput, report.progress) == (None, 9, None, (10, 9))


@pytest.mark.parametrize(
    "answer", [None, [], 1, "x", {}, {"loads": None}, {"loads": []}, {"loads": [1]}, {"loads": {}}]
)
def test_what_is_no_report_is_none(answer: Any) -> None:
    assert read_report(answer) is None


def test_nonsense_in_a_report_is_not_known() -> None:
    odd = {"num_running_reqs": "3", "num_waiting_reqs": [], "token_usage": float("nan"), "gen_throughput": float("inf")}
    report = read_report({"loads": [odd]})
    assert report is not None
    assert (report.running, report.waiting, report.kv_usage, report.throughput) == (None,) * 4


def test_a_number_that_no_float_holds_is_not_known() -> None:
    report = read_report({"loads": [{"num_running_reqs": 10**400, "num_generated_tokens": -(10**400)}]})
    assert report is not None
    assert (report.running, report.generated, report.progress) == (None, None, (0, 0))
