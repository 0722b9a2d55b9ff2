"""How old the tokens of groups that are still generated may be: a lower bound on their versions, from looks at the ledger.

Promises: the floor of a group is at most the version of its oldest token, as long as looks are made one after the other and
engines move to newer versions only; it grows while the group waits for a worker. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from bus.messages import ReadyGroup

WAITING = "w"


class Floors:
    """Of the open groups of one run, as one learner has seen them."""

    def __init__(self) -> None:
        self._of: dict[str, int] = {}
        self._serving: int | None = None  # at the last look

    def look(self, order: Sequence[str], states: Sequence[str], serving: int) -> None:
        """The open groups, their states ("w", "f", "r"), and the lowest version that a serving engine has.

        One that waits will be sampled by ``serving`` or later. One that is seen for the first time and is begun already was
        begun after the last look, so by what was served then or later; where there was none, ``serving`` is the best guess.
        """
        before = serving if self._serving is None else self._serving
        known = self._of
        self._of = {
            group_id: serving if state == WAITING else known.get(group_id, before)
            for group_id, state in zip(order, states, strict=True)
        }
        self._serving = serving

    def of(self, ready: Mapping[str, ReadyGroup], chosen: Collection[str]) -> Iterable[int]:
        """Of what is open and not ``chosen``, and of what is still to begin; of a ``ready`` group it is the version of its
        oldest token."""
        if self._serving is not None:
            yield self._serving
        for group_id, floor in self._of.items():
            if group_id not in chosen:
                group = ready.get(group_id)
                yield floor if group is None else group.oldest_version
