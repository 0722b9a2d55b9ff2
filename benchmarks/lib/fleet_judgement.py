"""What the clients of a fleet got against the engines' own record: each request has one answer, from the weights it names."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

from benchmarks.lib.fleet_clients import Outcome, Seen, Size
from benchmarks.lib.fleet_figures import quantile
from benchmarks.lib.synthetic.fleet import SyntheticFleet
from benchmarks.lib.synthetic_engine import Answered

LATE_S = 2.0  # what an engine has written may lie unread for so long at a router that gives it up


def judge(fleet: SyntheticFleet, outcome: Outcome, size: Size, given_up: list[tuple[str, float]]) -> dict[str, Any]:
    """The clients' side against the engines' own record. ``given_up``: of :meth:`SyntheticFleet.given_up`."""
    given: dict[str, list[tuple[str, Answered]]] = defaultdict(list)
    for name, member in fleet.members.items():
        for answered in member.engine.answered:
            given[answered.rid].append((name, answered))
    nowhere, twice, again, false_spans = [], {}, 0, {}
    for rid, seen in outcome.seen.items():
        right = [answered for name, answered in given[rid] if name == seen.engine]
        if not right:
            nowhere.append(rid)
            continue
        if not any(_served_in_turn(fleet, seen, answered) for answered in right):
            false_spans[rid] = f"{seen.spans} at {seen.engine}"
        # an answer that ended when its engine was given up did not arrive; the request was given to another one
        others = [(name, a) for name, a in given[rid] if name != seen.engine] + [(seen.engine, a) for a in right[1:]]
        for name, other in others:
            if any(who == name and other.began <= at <= other.ended + LATE_S for who, at in given_up):
                again += 1
            else:
                twice[rid] = f"{seen.engine}, and {name} from {other.began:.2f} to {other.ended:.2f}"
    latencies = sorted(seen.seconds for seen in outcome.seen.values())
    return {
        "requests": size.requests,
        "answered": len(outcome.seen),
        "lost": len(outcome.lost),
        "lost_examples": dict(itertools.islice(outcome.lost.items(), 5)),
        "answered_twice": len(twice),
        "generated_again": again,
        "answered_twice_examples": dict(itertools.islice(twice.items(), 5)),
        "answered_by_no_engine": len(nowhere),
        "false_answers": len(outcome.wrong),
        "false_answers_examples": dict(itertools.islice(outcome.wrong.items(), 5)),
        "false_versions": len(false_spans),
        "false_versions_examples": dict(itertools.islice(false_spans.items(), 5)),
        "answers_over_several_versions": sum(len(seen.spans) > 1 for seen in outcome.seen.values()),
        "tokens": sum(seen.spans[-1][2] for seen in outcome.seen.values()),
        "latency_s": {
            "p50": quantile(latencies, 0.5),
            "p99": quantile(latencies, 0.99),
            "max": quantile(latencies, 1.0),
        },
    }


def _served_in_turn(fleet: SyntheticFleet, seen: Seen, answered: Answered) -> bool:
    """Whether the engine served the versions of the spans, in this order, while it had the request."""
    served = fleet.members[seen.engine].engine.served
    ends = [at for at, _ in served[1:]] + [float("inf")]
    during = iter(
        [v for (at, v), end in zip(served, ends, strict=True) if at <= answered.ended and end > answered.began]
    )
    return all(any(version == other for other in during) for version, _, _ in seen.spans)
