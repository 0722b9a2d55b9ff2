"""When a run whose groups come to nothing is given up: a fold over the ledger's transitions, without a clock or I/O.

Promises: what fails is counted apart from what a filter refuses; a success of any group (published, or refused by a filter,
which takes a whole rollout) begins the count anew; the verdict names the cause, once.

A cause that nothing has got past yet ends the run when a batch of groups has met it. Once a group has got through, functions
are known to work, and what fails may pass (a server of theirs is away): then only groups that are given up after all their
attempts count. So they do for causes outside of the user's functions.
"""

from __future__ import annotations

from collections.abc import Mapping

from bus.messages import Transition
from miles_async.rollout.first_failures import kind_of

# of a function of the user's, or of what it returned: the same at the next attempt
OF_FUNCTIONS = frozenset({"reward_error", "filter_error", "rollout_error"})
OF_ENGINES = frozenset({"generate_error", "aborted", "reward_timeout", "too_long", "worker_died"})
REFUSED = "invalid_"  # what a check before publication found (``groups/sound.py``): of a function, too
MIN_GROUPS = 4  # of a small batch: one prompt alone is no verdict on a function
# so many batches dropped in a row, and nothing published: give up. More of them where a filter refuses groups by intent.
BATCHES_OF_DROPS = 4
BATCHES_OF_REFUSALS = 40


def is_error(reason: str) -> bool:
    """Whether a group that is dropped for ``reason`` has failed; else it was refused, or came too late."""
    return reason in OF_FUNCTIONS or reason in OF_ENGINES or reason.startswith(REFUSED)


class GiveUp:
    """When one launch gives up. ``batch_size``: groups of a step; ``filtered``: a filter may refuse groups by intent."""

    def __init__(self, batch_size: int, filtered: bool) -> None:
        self.verdict = ""
        self._enough = max(batch_size, MIN_GROUPS)
        self._batch_size, self._filtered = batch_size, filtered
        self._worked = False
        self._failed: dict[str, set[str]] = {}  # kind of cause to groups, since the last success
        self._last_drop = ""
        self._kept, self._dropped_then, self._errors_then = -1, 0, 0

    def add(self, transition: Transition) -> None:
        """One transition of the ledger, in its order."""
        t = transition
        if t.kind == "dropped":
            self._last_drop = f"{t.reason}: {t.detail}"
        if t.kind == "published" or (t.kind == "dropped" and not is_error(t.reason) and t.lengths):
            self._worked = True
            self._failed.clear()
        elif t.kind in ("failed", "dropped") and is_error(t.reason):
            last = t.kind == "dropped"
            if last or (not self._worked and t.reason not in OF_ENGINES):
                self._count(t)

    def _count(self, t: Transition) -> None:
        groups = self._failed.setdefault(kind_of(t.reason, t.detail), set())
        groups.update(t.group_ids)
        if len(groups) >= self._enough and not self.verdict:
            what = "were all dropped" if t.kind == "dropped" else "failed"
            self.verdict = f"{len(groups)} groups in a row {what} by the same cause: {t.reason}: {t.detail}"

    def look(self, counts: Mapping[str, int]) -> str:
        """The ledger's counts; the verdict, empty while there is none."""
        kept = counts["ready"] + counts["batched"] + counts["trained"]
        errors = sum(n for name, n in counts.items() if name.startswith("dropped:") and is_error(name[8:]))
        if kept != self._kept:
            self._kept, self._dropped_then, self._errors_then = kept, counts["dropped"], errors
        lost, failed = counts["dropped"] - self._dropped_then, errors - self._errors_then
        patience = BATCHES_OF_REFUSALS if self._filtered and failed < lost else BATCHES_OF_DROPS
        too_many = failed >= BATCHES_OF_DROPS * self._batch_size or lost >= patience * self._batch_size
        if too_many and not self.verdict:
            self.verdict = f"the last {lost} groups were all dropped; the last one: {self._last_drop}"
        return self.verdict
