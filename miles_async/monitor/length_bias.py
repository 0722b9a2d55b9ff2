"""Whether what is dropped makes the answers that are trained on shorter: a fold over the ledger's transitions.

Promises: only groups whose fate is settled count, those batched and those dropped: groups in flight are the long ones,
and counting them by when they began would find a bias where there is none. The last ``WINDOW`` settled groups are
compared, response by response; memory does not grow with the run. The window begins anew with each start of a run: what
was published before it, and so of unknown length here, counts neither as trained nor as dropped.

``length_bias/ks`` is the two-sample Kolmogorov-Smirnov distance between the response lengths of the trained groups and
those of all settled ones, the greatest distance between their empirical distribution functions: N. Smirnov, "On the
estimation of the discrepancy between empirical curves of distribution for two independent samples", Bulletin
Mathématique de l'Université de Moscou 2 (1939). It is used as a distance; its significance is of no use here, since the
trained ones are among the settled ones.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec
import numpy as np

from miles_async.monitor.record_lines import TransitionLine

WINDOW = 4096  # settled groups
PREFIX = "length_bias/"
NAMES = ("trained_mean", "dispatched_mean", "ratio", "ks", "unknown_share")

_LONGEST = 1 << 20  # response tokens; the histograms never grow beyond, whatever the bus says


class _Settled(msgspec.Struct, frozen=True):
    lengths: tuple[int, ...]  # empty: dropped before any was known
    step: int  # that trains on it; 0: dropped, or quarantined


class LengthBias:
    """The window of one start of a run, fed with :meth:`add`."""

    def __init__(self, window: int = WINDOW) -> None:
        self.unreported = False  # whether a group has settled since the last :meth:`values`
        self._window = window
        self._known: dict[str, tuple[int, ...]] = {}  # of open groups: as many as admission allows
        self._settled: OrderedDict[str, _Settled] = OrderedDict()
        self._unknown = 0
        self._trained = np.zeros(64, np.int64)  # how many responses of each length
        self._dispatched = np.zeros(64, np.int64)
        self._last_step = 0

    def add(self, line: TransitionLine) -> None:
        """Fold in one transition, in the ledger's order."""
        if line.kind in ("published", "failed") and line.lengths:
            self._known[line.groups[0]] = line.lengths
        elif line.kind == "dropped":
            self._drop(line)
        elif line.kind == "quarantined" and (settled := self._settled.get(line.groups[0])):
            self._settle(line.groups[0], _Settled(settled.lengths, 0))
        elif line.kind == "batched":
            if line.step <= self._last_step:
                self._undo(line.step)
            self._last_step = line.step
            self._train(line)
        elif line.kind in ("reconciled", "extended"):
            self._train(line)

    def values(self) -> dict[str, float]:
        """The metrics; what cannot be measured yet is left out."""
        self.unreported = False
        found: dict[str, float] = {}
        trained, dispatched = int(self._trained.sum()), int(self._dispatched.sum())
        if dispatched:
            found["dispatched_mean"] = mean(self._dispatched)
        if trained:
            found["trained_mean"] = mean(self._trained)
            found["ks"] = ks(self._trained, self._dispatched)
            if found["dispatched_mean"] > 0:
                found["ratio"] = found["trained_mean"] / found["dispatched_mean"]
        if self._settled:
            found["unknown_share"] = self._unknown / len(self._settled)
        return {PREFIX + name: found[name] for name in NAMES if name in found}

    def _drop(self, line: TransitionLine) -> None:
        group_id = line.groups[0]
        known = self._known.pop(group_id, ())
        published_before = line.lengths and not line.by and not known  # it was ready when this window began
        if not published_before:
            self._settle(group_id, _Settled(line.lengths or known, 0))

    def _train(self, line: TransitionLine) -> None:
        for group_id in line.groups:
            before = self._settled.get(group_id)  # a group that was batched once more after a rollback
            if lengths := self._known.pop(group_id, before.lengths if before else ()):
                self._settle(group_id, _Settled(lengths, line.step))

    def _undo(self, step: int) -> None:
        """The ledger has forgotten ``step`` and all behind it (a power cut): their groups are ready again."""
        for group_id in [g for g, settled in self._settled.items() if settled.step >= step]:
            self._known[group_id] = self._remove(group_id).lengths

    def _settle(self, group_id: str, settled: _Settled) -> None:
        if group_id in self._settled:
            self._remove(group_id)
        self._settled[group_id] = settled
        self._count(settled, 1)
        while len(self._settled) > self._window:
            self._remove(next(iter(self._settled)))
        self.unreported = True

    def _remove(self, group_id: str) -> _Settled:
        settled = self._settled.pop(group_id)
        self._count(settled, -1)
        return settled

    def _count(self, settled: _Settled, sign: int) -> None:
        self._unknown += sign * (not settled.lengths)
        lengths = np.clip(np.asarray(settled.lengths, np.int64), 0, _LONGEST)
        if lengths.size and (longest := int(lengths.max())) >= len(self._dispatched):
            more = max(longest + 1 - len(self._dispatched), len(self._dispatched))
            self._dispatched, self._trained = np.pad(self._dispatched, (0, more)), np.pad(self._trained, (0, more))
        np.add.at(self._dispatched, lengths, sign)
        if settled.step:
            np.add.at(self._trained, lengths, sign)


def mean(counts: np.ndarray) -> float:
    """Mean of the values whose frequencies are ``counts``: entry i is how often i was seen."""
    return float(counts @ np.arange(len(counts))) / float(counts.sum())


def ks(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sample Kolmogorov-Smirnov distance of two histograms of the same bins, neither of them empty."""
    return float(np.abs(np.cumsum(a) / a.sum() - np.cumsum(b) / b.sum()).max())
