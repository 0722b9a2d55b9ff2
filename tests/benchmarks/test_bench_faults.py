"""Which faults the campaign inflicts where, and that it says of one that it does not inflict why."""

from __future__ import annotations

import pytest

from benchmarks.bench_faults import LOCAL, RAY, chosen


def test_machines_are_lost_on_ray_only_and_a_fault_that_ray_cannot_survive_is_refused_with_its_reason() -> None:
    assert "hang machine" in chosen(RAY, "all") and "stopped fork server" not in chosen(RAY, "all")
    assert chosen(RAY, "kill dealer,lose machine") == ["kill dealer", "lose machine"]
    with pytest.raises(ValueError, match="lose machine is none of kill rollout-0, "):
        chosen(LOCAL, "lose machine")
    with pytest.raises(ValueError, match=r"restart control store: Ray 2\.60\.0's control store, started again, aborts"):
        chosen(RAY, "restart control store")
