"""What came to nothing, in numbers: samples that were lost, groups that were dropped, attempts that failed. A fold, no I/O.

Promises: refusals (``drops/REASON``) and failures (``errors/REASON``) are counted apart; of a resumed run the counts go on
from the last ones on record; who loses more than one sample in a hundred is told, and again at each tenfold share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bus.messages import Event
from miles_async.monitor.give_up import is_error
from miles_async.monitor.record_lines import TransitionLine

DROPS, ERRORS = "drops/", "errors/"  # then the reason
LOST = "rollout/samples_lost"  # and, behind a slash, by reason
MADE = "rollout/samples_made"  # that were published
SHARES = (0.01, 0.1, 0.5)  # of the samples: above each of them it is said
MIN_SAMPLES = 20  # before a share says anything
USUAL = frozenset({"busy", "stopped"})  # why a point is skipped in a run that is well


class Losses:
    """The samples and groups that one run has lost; :meth:`go_on` first where it was resumed."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()
        self._told = 0

    def go_on(self, latest: Mapping[str, float]) -> None:
        """``latest``: the last value of every metric on record."""
        for name, value in latest.items():
            if name.startswith((DROPS, ERRORS, LOST)) or name == MADE:
                self.counts[name] = self._reported[name] = int(value)

    def add_event(self, event: Event) -> None:
        """One event of an actor."""
        if event.kind == "sample_lost":
            self.counts[LOST] += 1
            self.counts[f"{LOST}/{str(event.data.get('reason', 'unknown'))[:60]}"] += 1

    def add(self, line: TransitionLine) -> None:
        """One transition of the ledger."""
        if line.kind == "published":
            self.counts[MADE] += len(line.lengths)
        elif line.kind == "failed" or (line.kind == "dropped" and is_error(line.reason)):
            self.counts[ERRORS + line.reason[:60]] += 1
        elif line.kind == "dropped":
            self.counts[DROPS + line.reason[:60]] += len(line.groups)

    def values(self) -> dict[str, float]:
        """What was lost, as metrics of the ledger."""
        self._reported = self.counts.copy()
        return {MADE: float(self.counts[MADE]), LOST: float(self.counts[LOST])} | {
            name: float(count) for name, count in self.counts.items()
        }

    @property
    def unreported(self) -> bool:
        """Whether :meth:`values` has changed since it was asked last."""
        return self.counts != self._reported

    @property
    def share(self) -> float:
        """The share, among the samples of published groups, of those that were lost."""
        lost, made = self.counts[LOST], self.counts[MADE]
        return lost / (lost + made) if lost + made >= MIN_SAMPLES else 0.0

    def news(self) -> dict[str, Any] | None:
        """What to tell when the share has passed one of ``SHARES``."""
        passed = sum(self.share > share for share in SHARES)
        if passed <= self._told:
            return None
        self._told = passed
        return {"share": f"{self.share:.1%}", "lost": self.counts[LOST], "reasons": self.reasons()}

    def reasons(self) -> dict[str, int]:
        """How many samples were lost, by reason."""
        prefix = f"{LOST}/"
        return {name.removeprefix(prefix): count for name, count in self.counts.items() if name.startswith(prefix)}

    def trouble(self) -> str:
        """A line for the summary; empty below the first of ``SHARES``."""
        if self.share <= SHARES[0]:
            return ""
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.reasons().items()))
        return f"{self.counts[LOST]} samples were lost, {self.share:.1%} of all: {reasons}"


def skipped_points(skipped: Mapping[int, str]) -> str:
    """A line for the summary about points of an evaluation that were not made, by version; empty: nothing is wrong."""
    reasons = Counter(reason for reason in skipped.values() if reason not in USUAL)
    if not reasons:
        return ""
    return f"{reasons.total()} points of the evaluation were not made: " + ", ".join(
        f"{reason} {count}" for reason, count in sorted(reasons.items())
    )


def idle_batches(events: Mapping[str, int]) -> str:
    """A line for the summary about batches with optimizer steps that changed nothing, by how often each kind of event came."""
    said = {"steps_skipped": "skipped for an inf or nan gradient", "nothing_to_learn": "without a token to train"}
    found = [f"{count} with optimizer steps {what}" for kind, what in said.items() if (count := events.get(kind, 0))]
    return f"batches that changed less than they could: {', '.join(found)}" if found else ""
