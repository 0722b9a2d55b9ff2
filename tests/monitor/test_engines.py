"""What is shown of an engine is what its router last said of it, and nothing of one that the router has no more."""

from __future__ import annotations

import math

from miles_async.monitor.engines import figures, pace


def test_what_a_report_leaves_out_stays_and_an_engine_that_it_leaves_out_goes() -> None:
    first = {"engine_busy/a": 1.0, "engine_running/a": 8.0, "engine_tokens_per_s/a": 400.0, "engine_busy/b/1": 0.5}
    known = figures({}, first | {"router/inflight": 8.0, "engine_other/a": 1.0})
    assert (known["a"].busy, known["a"].running, known["a"].tokens_per_s) == (1.0, 8.0, 400.0)
    assert known["b/1"].busy == 0.5 and math.isnan(known["b/1"].tokens_per_s)
    later = figures(known, {"engine_busy/a": 0.25, "engine_requests_per_s/a": 2.0})
    assert set(later) == {"a"}
    assert (later["a"].busy, later["a"].requests_per_s, later["a"].tokens_per_s) == (0.25, 2.0, 400.0)
    assert figures(later, {"router/inflight": 0.0}) == {}


def test_what_is_not_known_is_not_said() -> None:
    assert pace(8.0, 1234.4) == "8 running, 1,234 tokens/s"
    assert pace(None, 0.0) == "0 tokens/s" and pace(math.nan, None) == ""
