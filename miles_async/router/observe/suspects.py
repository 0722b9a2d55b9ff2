"""Which engines misbehave, and which of those do so no more: observations in, verdicts out. Pure; the time is given to it.

    slow      gives each of its requests fewer tokens a second than ``slow_share`` of the other engines' median, in
              ``slow_looks`` looks in a row
    hung      gave nothing for what it has in flight for ``hung_s``, while others do not stand still
    lying     reports another version than was announced for it, in LYING_LOOKS looks in a row
    garbage   said something that is no answer, once

Promises: an engine that is being updated, or paused, is not slow, hung or lying; one that is slow or hung stays in if it is the
last one, and where all stand still nobody is hung (that is the watchdog's to say); one that is out comes back when a probe is
answered as it should be, after twice as long a time each time it went out.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["slow", "hung", "lying", "garbage"]
LYING_LOOKS = 2  # a version is announced a moment after the engine has it
MAX_HOLD_LOOKS = 64  # one that behaves comes back after so many looks, however often it was taken out
FORGIVEN_S = 600.0  # an engine that was in for so long begins anew
NEVER = float("-inf")


class Probe(NamedTuple):
    """A small request to an engine that is out. ``fault``: why its answer is none, empty if it is one."""

    fault: str
    tokens: int = 0
    seconds: float = 1.0


@dataclass(frozen=True)
class Observation:
    """One engine at one look. What it does not say, or was not asked, is None."""

    engine: str
    excused: bool = False  # being updated, or paused
    inflight: int = 0  # requests of the router
    quiet_s: float = 0.0  # how long they have had nothing
    running: int | None = None  # requests it generates for
    tokens: int | None = None  # generated since it began
    throughput: float | None = None  # tokens a second, where it does not count them
    announced: str | None = None  # its version, as its updater says
    reported: str | None = None  # its version, as itself says
    probe: Probe | None = None  # of one that is out


class Verdict(NamedTuple):
    """``kind`` None: it behaves again."""

    engine: str
    kind: Kind | None
    why: str


@dataclass
class _Record:
    """What is remembered of an engine."""

    last: Observation | None = None  # the look before, if nothing excused it then
    last_at: float = NEVER
    rate: float | None = None  # tokens a second for each running request, between the last two looks
    excused_at: float = NEVER
    versions: tuple[str | None, str | None] = (None, None)  # announced and reported, at the last look
    lying: int = 0  # looks in a row
    slow: int = 0
    out: Kind | None = None
    convictions: int = 0
    changed_at: float = NEVER  # when it went out, or came back


class Suspects:
    """The memory of one router. ``interval_s``: between two looks; ``slow_share`` 0: nobody is slow."""

    def __init__(self, *, interval_s: float, slow_share: float, slow_looks: int, hung_s: float) -> None:
        self.interval_s, self.slow_share, self.slow_looks, self.hung_s = interval_s, slow_share, slow_looks, hung_s
        self._records: dict[str, _Record] = {}
        self._usual: float | None = None  # the rate that was last found usual

    def is_out(self, engine: str) -> bool:
        record = self._records.get(engine)
        return record is not None and record.out is not None

    def look(self, now: float, seen: Sequence[Observation]) -> list[Verdict]:
        """What changes after a look at all engines. Those that are out are remembered also while they are not seen."""
        names = {observation.engine for observation in seen}
        self._records = {name: r for name, r in self._records.items() if name in names or r.out is not None}
        for observation in seen:
            self._measure(now, observation)
        verdicts: list[Verdict] = []
        for observation in seen:
            record = self._records[observation.engine]
            verdict = self._accuse(now, observation, seen) if record.out is None else self._acquit(now, observation)
            if verdict is not None:
                self._note(now, record, verdict)
                verdicts.append(verdict)
        return verdicts

    def garbage(self, now: float, engine: str, said: str) -> Verdict | None:
        """An engine said something that is no answer. None: it is out already."""
        if self.is_out(engine):
            return None
        verdict = Verdict(engine, "garbage", said)
        self._note(now, self._records.setdefault(engine, _Record()), verdict)
        return verdict

    def _measure(self, now: float, seen: Observation) -> None:
        record = self._records.setdefault(seen.engine, _Record())
        record.rate = None if record.last is None or seen.excused else _rate(record.last, seen, now - record.last_at)
        record.last, record.last_at = None if seen.excused else seen, now
        if seen.excused:
            record.excused_at = now
        versions = (seen.announced, seen.reported)
        lies = None not in versions and versions[0] != versions[1] and not seen.excused
        record.lying = (record.lying + 1 if versions == record.versions else 1) if lies else 0
        record.versions = versions

    def _accuse(self, now: float, seen: Observation, others: Sequence[Observation]) -> Verdict | None:
        record = self._records[seen.engine]
        if record.lying >= LYING_LOOKS:
            why = f"reports weight version {seen.reported!r:.100}, announced for it is {seen.announced}"
            return Verdict(seen.engine, "lying", why)
        peers = [other for other in others if other.engine != seen.engine and not self.is_out(other.engine)]
        quiet_s = self._quiet_s(now, seen)
        if quiet_s >= self.hung_s and any(self._quiet_s(now, other) < self.hung_s for other in peers):
            why = f"nothing for {quiet_s:.0f} s for {seen.inflight} requests in flight"
            return Verdict(seen.engine, "hung", why)
        usual = self._usual_rate(seen.engine)
        # one that gives nothing at all is for the rule above
        slow = record.rate is not None and usual is not None and 0 < record.rate < self.slow_share * usual
        record.slow = record.slow + 1 if slow else 0 if record.rate else record.slow
        if record.slow >= self.slow_looks and peers:
            why = f"{record.rate:.3g} tokens a second for each request, the others {usual:.3g}"
            return Verdict(seen.engine, "slow", why)
        return None

    def _acquit(self, now: float, seen: Observation) -> Verdict | None:
        record, probe = self._records[seen.engine], seen.probe
        hold_s = self.interval_s * min(2.0 ** (record.convictions - 1), MAX_HOLD_LOOKS)
        if probe is None or probe.fault or seen.excused or now - record.changed_at < hold_s:
            return None
        if seen.announced is not None and seen.reported != seen.announced:
            return None
        # twice what takes an engine out, so that one at the threshold does not come and go
        enough = min(1.0, 2 * self.slow_share) * (self._usual or 0.0)
        if record.out == "slow" and probe.tokens / probe.seconds < enough:
            return None
        return Verdict(
            seen.engine, None, f"behaves again {now - record.changed_at:.0f} s after it was found {record.out}"
        )

    def _note(self, now: float, record: _Record, verdict: Verdict) -> None:
        if verdict.kind is not None:
            record.convictions = 1 if now - record.changed_at > FORGIVEN_S else record.convictions + 1
        record.out, record.changed_at = verdict.kind, now
        record.last, record.lying, record.slow, record.excused_at = None, 0, 0, now

    def _quiet_s(self, now: float, seen: Observation) -> float:
        return min(seen.quiet_s, now - self._records[seen.engine].excused_at) if seen.inflight else 0.0

    def _usual_rate(self, engine: str) -> float | None:
        """The median of the other engines that are in and give anything."""
        rates = [r.rate for name, r in self._records.items() if name != engine and r.out is None and r.rate]
        if rates:
            self._usual = statistics.median(rates)
        return self._usual if rates else None


def _rate(before: Observation, seen: Observation, seconds: float) -> float | None:
    """Tokens a second for each running request. None: it had no work at both looks, or does not say."""
    if not before.running or not seen.running or seconds <= 0:
        return None
    if before.tokens is not None and seen.tokens is not None:
        if seen.tokens < before.tokens:
            return None  # it has begun anew
        return (seen.tokens - before.tokens) / seconds * 2 / (before.running + seen.running)
    return None if seen.throughput is None else seen.throughput / seen.running
