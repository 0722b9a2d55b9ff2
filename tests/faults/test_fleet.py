"""Acceptance line 5 in small: engines die, return and change versions behind a real router process, and nothing is lost."""

from __future__ import annotations

from benchmarks import bench_fleet
from benchmarks.lib.synthetic.batch import Latency, Lengths

SMALL = bench_fleet.Size(
    engines=8,
    requests=300,
    clients=32,
    lengths=Lengths(20, 1.4),
    longest=400,
    latency=Latency(0.003, 0.0001, 0.00001),
    update_every_s=0.4,
    update_s=0.03,
    waves=2,
    death_every_s=0.4,
    away_s=0.5,
    max_retries=12,  # on a busy machine a request lives long enough to meet more deaths than the default allows for
)


async def test_requests_survive_deaths_and_updates_each_with_one_true_answer(redis_url: str) -> None:
    found = await bench_fleet.load(redis_url, SMALL)
    trouble = ("lost", "answered_twice", "answered_by_no_engine", "false_answers", "false_versions")
    assert {name: found.get(f"{name}_examples", {}) for name in trouble if found[name]} == {}
    assert found["answered"] == 300
    assert found["deaths"] >= 2 and found["versions"] >= 2 and found["answers_over_several_versions"] >= 5, found
    assert found["router_rss_mb"]["growth_share"] < 0.1
