"""The lives of prompt groups: folds over the ledger's transitions, without a clock or I/O.

Promises: a group's state after a fold is the ledger's; every end of an attempt has its cause, also one that the ledger
tells in no transition of its own (a lease that ended because another worker took the group over); what a rollback of
the ledger undid (a power cut that took its last second) stays visible and is called ``undone``.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from bus.messages import UNSAMPLED, Begun
from miles_async.groups.ages import ages
from miles_async.monitor.record_lines import TransitionLine

STATES = {
    "admitted": "waiting",
    "claimed": "in flight",
    "released": "waiting",
    "failed": "waiting",
    "published": "ready",
    "batched": "batched",
    "extended": "batched",
    "trained": "trained",
    "reconciled": "trained",
    "dropped": "dropped",
    "quarantined": "dropped",
}


class Moment(msgspec.Struct, frozen=True, omit_defaults=True):
    """What happened to one group: a transition, "lease_ended" or "undone" (a batch that the ledger forgot); before "published",
    by its worker's clock, "first_token", "generated" (the last one) and "graded", as far as they are known."""

    time: float  # seconds since the epoch
    kind: str
    by: str = ""
    attempt: int = 0
    step: int = 0
    reason: str = ""
    detail: str = ""
    lengths: tuple[int, ...] = ()
    rewards: tuple[float | None, ...] = ()  # None: not finite
    versions: tuple[tuple[int, int], ...] = ()  # (weight version, tokens that it sampled)
    begun: Begun = Begun()


class Life(msgspec.Struct):
    """One group as far as its transitions have been folded."""

    id: str
    state: str = "unknown"  # of a group whose beginning is not in the record
    holder: str = ""  # the lease it is in flight under
    step: int = 0  # that trains on it, as the last record of that step has it
    published: Moment | None = None  # the last time
    causes: list[str] = []  # why its attempts came to nothing, oldest first
    moments: list[Moment] = []

    def lag(self, version: int) -> int | None:
        """Lag of its oldest token if the learner is at ``version``."""
        return version - self.published.versions[0][0] if self.published and self.published.versions else None

    def ages(self) -> dict[str, int]:
        """Its ages, as far as they are known (groups/ages.py)."""
        if self.published is None:
            return {}
        versions = self.published.versions
        oldest = versions[0][0] if versions and versions[0][0] != UNSAMPLED else None
        return ages(self.published.begun, oldest, self.step - 1 if self.step else None)

    def mean_reward(self) -> float | None:
        """None: it was not published, or a reward is not finite."""
        rewards = self.published.rewards if self.published else ()
        finite = [reward for reward in rewards if reward is not None]
        return sum(finite) / len(rewards) if rewards and len(finite) == len(rewards) else None


def moment(line: TransitionLine) -> Moment:
    """The transition as something that happened to one of its groups."""
    t = line
    of_the_group = (t.lengths, t.rewards, t.versions, t.begun)
    return Moment(t.time, t.kind, t.by, t.attempt, t.step, t.reason, t.detail, *of_the_group)


def live(wanted: Iterable[str], lines: Iterable[TransitionLine]) -> dict[str, Life]:
    """The lives of the groups ``wanted``, without those that ``lines`` never name."""
    lives = {group_id: Life(group_id) for group_id in wanted}
    for line in lines:
        if line.kind == "batched":
            _undo(lives, line)
        for group_id in line.groups:
            if (life := lives.get(group_id)) is not None:
                _go_on(life, line)
    return {group_id: life for group_id, life in lives.items() if life.moments}


def _go_on(life: Life, line: TransitionLine) -> None:
    now = moment(line)
    if line.kind == "claimed" and life.state == "in flight" and life.holder != line.by:
        life.causes.append(f"{life.holder}: its lease ended")
        life.moments.append(Moment(line.time, "lease_ended", life.holder))
    if line.kind == "failed" or (line.kind == "dropped" and life.holder and life.holder == line.by):
        life.causes.append(f"{line.by}: {line.reason}: {line.detail}")
    elif line.kind == "dropped" and life.holder and line.by:  # the last attempt was that of a worker that fell silent
        life.causes.append(f"{life.holder}: its lease ended")
        life.moments.append(Moment(line.time, "lease_ended", life.holder))
    elif line.kind == "quarantined":
        life.causes.append(f"step {line.step}: {line.reason}: {line.detail}")
    elif line.kind == "released" and line.detail:
        life.causes.append(f"{life.holder or line.by}: {line.detail}")
    if line.kind == "published":
        life.published = now
        times = ("first_token", line.begun.first_token_at), ("generated", line.generated)
        times = *times, ("graded", line.graded if line.generated else 0.0)
        life.moments += [Moment(when, kind) for kind, when in times if when]
    elif line.kind in ("batched", "extended") or (line.kind == "reconciled" and not life.step):
        life.step = line.step
    if line.kind in STATES:
        life.state = STATES[line.kind]
        life.holder = line.by if line.kind == "claimed" else ""
    life.moments.append(now)


def _undo(lives: dict[str, Life], line: TransitionLine) -> None:
    """A batch of a step that has one, or of an earlier step: the ledger has forgotten what it had from there on."""
    for life in lives.values():
        if life.state == "batched" and life.step >= line.step:
            life.moments.append(Moment(line.time, "undone", step=life.step))
            life.state, life.step = "ready", 0
