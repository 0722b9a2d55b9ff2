"""A model of the ledger in plain Python: where every group is, as the recorded transitions tell it.

Promises: :meth:`Story.expect` says, before a script runs, what it must answer and which transitions it must record;
:meth:`Story.fold` moves groups by recorded transitions only, and refuses a move that the ledger's diagram does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bus.codec import decode
from bus.messages import Batch, Transition

OPEN = "wfr"
REFUSED = "the script answers an error"
# kind of transition: where its groups were (None: nowhere yet), and where they are then
MOVES: dict[str, tuple[tuple[str | None, ...], str]] = {
    "admitted": ((None,), "w"),
    "claimed": (("w", "f"), "f"),
    "released": (("f",), "w"),
    "failed": (("f",), "w"),
    "published": (("f",), "r"),
    "batched": (("r",), "b"),
    "extended": (("r",), "b"),
    "trained": (("b",), "trained"),
    "dropped": (("w", "f", "r"), "dropped"),
    "reconciled": ((None, "w", "f", "r"), "trained"),
    "quarantined": (("b", "trained"), "dropped"),
}


def prompt_of(gid: str) -> str:
    return gid.rpartition("-")[0]


class Expected(NamedTuple):
    answer: Any
    moves: list[tuple[str, list[str]]]  # kind and, sorted, its groups


class Story:
    """What has happened in one run."""

    def __init__(self) -> None:
        self.place: dict[str, str] = {}  # in the order they were dealt
        self.lease: dict[str, str] = {}
        self.attempts: dict[str, int] = {}  # that count
        self.claim: dict[str, int] = {}  # number of the attempt that is under way, or was the last
        self.most = 0  # attempts that a group has
        self.batches: dict[int, tuple[str, ...]] = {}  # of all steps, the committed ones too
        self.last_step = self.committed = self.forgotten = self.position = 0
        self.ahead: set[str] = set()  # first attempts at prompts that were trained before they were dealt
        self.again: list[str] = []  # as which prompts wait to be dealt again
        self.quarantined: dict[str, int] = {}  # and the step that they were recorded for; also of what is forgotten

    def in_place(self, places: str) -> list[str]:
        return [gid for gid, place in self.place.items() if place in tuple(places)]

    def trained_in(self, step: int) -> tuple[str, ...]:
        return tuple(gid for gid in self.batches[step] if gid not in self.quarantined)

    def left_out(self) -> set[str]:
        """The quarantined groups of steps that can be trained again."""
        return {gid for gid, step in self.quarantined.items() if step > self.forgotten}

    # what a script must do; ``view`` is what Redis holds before it

    def expect(self, script: str, args: Sequence[Any], view: Any) -> Expected:
        rule: Callable[..., Expected] = getattr(self, f"_{script}")
        return rule(view, *args)

    def _open(self, view: Any) -> Expected:
        order = self.in_place(OPEN)
        ids, states = [gid.encode() for gid in order], [self.place[gid].encode() for gid in order]
        return Expected([self.last_step, self.position, ids, states], [])

    def _foreign(self, view: Any, *pairs: str) -> Expected:
        named = enumerate(zip(pairs[::2], (entry.encode() for entry in pairs[1::2]), strict=True))
        return Expected([i for i, (gid, e) in named if view.sample.get(gid) != e and e in view.samples], [])

    def _admit(self, view: Any, limit: int, start: int, step: int, *flat: Any) -> Expected:
        if start != self.position or step not in (-1, self.last_step):
            return Expected([0, self.position], [])
        room, ids, passed = limit - len(self.in_place(OPEN)), [], 0
        for gid in flat[::2]:
            if len(ids) >= room:
                break
            if gid in self.ahead:
                self.ahead.remove(gid)
                passed += 1
            else:
                ids.append(gid)
        self.position += len(ids) + passed
        return Expected([len(ids), self.position], [("admitted", sorted(ids))] if ids else [])

    def _again(self, view: Any, limit: int, step: int, *flat: Any) -> Expected:
        room, ids = limit - len(self.in_place(OPEN)), list[str]()
        for gid in flat[::2]:
            if step != self.last_step or len(ids) >= room or self.again[:1] != [gid]:
                break
            ids.append(self.again.pop(0))
        return Expected(len(ids), [("admitted", sorted(ids))] if ids else [])

    def _claim(self, view: Any, lease: str, attempts: int, *pairs: Any) -> Expected:
        each = [self._claim_one(view, lease, attempts, *pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)]
        moves: list[tuple[str, list[str]]] = []
        claimed: dict[int, list[str]] = {}  # by the number of their attempt
        for one in each:
            for kind, gids in one.moves:
                if kind == "claimed":
                    claimed.setdefault(one.answer, []).extend(gids)
                else:
                    moves.append((kind, gids))
        moves += [("claimed", sorted(gids)) for gids in claimed.values()]
        return Expected([one.answer for one in each], moves)

    def _claim_one(self, view: Any, lease: str, attempts: int, gid: str, entry: bytes) -> Expected:
        if view.ticket.get(gid) != entry:
            return Expected(-1 if entry in view.tickets else 0, [])
        if self._valid(gid, lease):
            return Expected(self.claim[gid], [])
        self.most, attempt = attempts, self.attempts.get(gid, 0) + 1
        if attempt > attempts:
            return Expected(0, [("dropped", [gid])])
        return Expected(attempt, [("claimed", [gid])])

    def _begin(self, view: Any, gid: str, lease: str) -> Expected:
        if not self._valid(gid, lease):
            return Expected(0, [])
        self.attempts[gid] = self.claim[gid]
        return Expected(1, [])

    def _valid(self, gid: str, lease: str) -> bool:
        return self.place.get(gid) == "f" and self.lease[gid] == lease

    def _publish(self, view: Any, lease: str, *parts: Any) -> Expected:
        each = [self._publish_one(view, lease, *parts[i : i + 2]) for i in range(0, len(parts), 4)]
        return Expected([one.answer for one in each], [move for one in each for move in one.moves])

    def _publish_one(self, view: Any, lease: str, gid: str, payload: str) -> Expected:
        if view.payload.get(gid) == payload:
            return Expected(2, [])
        if not self._valid(gid, lease):
            return Expected(0, [])
        if payload not in view.payloads:
            return Expected(-1, [])
        return Expected(1, [("published", [gid])])

    def _fail(self, view: Any, gid: str, lease: str, _reason: str, _detail: str, attempts: int, _: bytes) -> Expected:
        if not self._valid(gid, lease):
            return Expected(0, [])
        last = self.claim[gid] >= attempts
        return Expected(2, [("dropped", [gid])]) if last else Expected(1, [("failed", [gid])])

    def _discard(self, view: Any, gid: str, lease: str, _reason: str, _detail: str, _: bytes, again: str) -> Expected:
        return self._leaves(gid, again) if self._valid(gid, lease) else Expected(0, [])

    def _leaves(self, gid: str, again: str) -> Expected:
        self.again += [again] if again else []
        return Expected(1, [("dropped", [gid])])

    def _release(self, view: Any, lease: str, _why: str) -> Expected:
        ids = sorted(gid for gid, holder in self.lease.items() if lease in ("", holder))
        return Expected(len(ids), [("released", ids)] if ids else [])

    def _drop(self, view: Any, gid: str, _reason: str, _detail: str, again: str) -> Expected:
        is_open = self.place.get(gid) in tuple(OPEN)
        return self._leaves(gid, again) if is_open else Expected(0, [])

    def _batch(self, view: Any, step: int, _record: bytes, surplus: int, *ids: str) -> Expected:
        if step <= self.last_step:
            return Expected(2, [])
        if step > self.last_step + 1 or any(self.place.get(gid) != "r" for gid in ids):
            return Expected(0, [])
        others = [gid for gid in self.in_place(OPEN) if gid not in ids]
        return Expected(1, [("batched", sorted(ids)), *(("dropped", [gid]) for gid in others[:surplus])])

    def _extend(self, view: Any, step: int, known: int, _record: bytes, *ids: str) -> Expected:
        if step != self.last_step or step <= self.committed:
            return Expected(0, [])
        if len(self.batches[step]) != known:
            return Expected(2, [])
        if any(self.place.get(gid) != "r" for gid in ids):
            return Expected(0, [])
        return Expected(1, [("extended", sorted(ids))])

    def _commit(self, view: Any, step: int, forget: int) -> Expected:
        if step > self.last_step:
            return Expected(REFUSED, [])
        self.forgotten = max(self.forgotten, min(forget, max(step, self.committed)))
        steps = range(self.committed + 1, step + 1)
        trained = [self.trained_in(s) for s in steps]
        return Expected(sum(map(len, trained)), [("trained", sorted(ids)) for ids in trained])

    def _quarantine(self, view: Any, step: int, gid: str, _reason: str, _detail: str, _: bytes) -> Expected:
        if gid in self.left_out():
            return Expected(len(self.quarantined), [])
        if not self.forgotten < step <= self.last_step or gid not in self.batches[step]:
            return Expected(0, [])
        return Expected(len(self.quarantined) + 1, [("quarantined", [gid])])

    def _reconcile(self, view: Any, step: int, *ids: str) -> Expected:
        if step <= self.forgotten:
            return Expected(0, [])  # the retry of a lost answer
        prompts = {prompt_of(gid) for gid in ids}
        others = [gid for gid in self.in_place(OPEN) if gid not in ids and prompt_of(gid) in prompts]
        self.ahead |= {f"{prompt}-0" for prompt in prompts - {*map(prompt_of, [*self.in_place(OPEN), *self.again])}}
        self.again = [gid for gid in self.again if prompt_of(gid) not in prompts]
        self.forgotten = step
        return Expected(len(ids), [*(("dropped", [gid]) for gid in others), ("reconciled", sorted(ids))])

    # what Redis has on record

    def fold(self, t: Transition) -> None:
        before, after = MOVES[t.kind]
        for gid in t.group_ids:
            place = self.place.get(gid)
            assert place in before, f"{t.kind}: {gid} was {place}"
            self.place[gid] = after
            if after != "f":
                self.lease.pop(gid, None)
            if after not in ("w", "f"):
                self.attempts.pop(gid, None)
                self.claim.pop(gid, None)
        if t.kind == "claimed":
            for gid in t.group_ids:
                assert t.attempt == self.attempts.get(gid, 0) + 1, f"{gid}: attempt {t.attempt}"
                self.lease[gid], self.claim[gid] = t.by, t.attempt
                if t.attempt == 1 or t.attempt < self.most:
                    self.attempts[gid] = t.attempt  # the last one of several counts when it begins
        elif t.kind == "released" and not t.detail:
            for gid in t.group_ids:
                self.attempts[gid] = self.claim[gid] - 1  # work that is handed back was no attempt
        elif t.kind == "failed":
            (gid,) = t.group_ids
            self.attempts[gid] = self.claim[gid]
        elif t.kind == "batched":
            assert t.step == self.last_step + 1
            self.last_step, self.batches[t.step] = t.step, t.group_ids
        elif t.kind == "extended":
            assert t.step == self.last_step > self.committed
            self.batches[t.step] += t.group_ids
        elif t.kind == "trained":
            assert t.step == self.committed + 1 and t.group_ids == self.trained_in(t.step)
            self.committed = t.step
        elif t.kind == "quarantined":
            self.quarantined |= dict.fromkeys(t.group_ids, t.step)
        elif t.kind == "reconciled":
            self.last_step = self.committed = t.step

    def batched_as(self, record: bytes) -> bool:
        """Whether ``record`` is what its step was batched with, in order, or the first parts of it."""
        batch = decode(record, Batch)
        return self.batches.get(batch.step, ())[: len(batch.group_ids)] == batch.group_ids
