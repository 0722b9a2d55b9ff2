"""Where learner and engines were when a group was asked for and when it began, as its worker hears of it. Pure: whoever hears
something passes the time in, of any clock.

Promises: what was before the first news is not known, and not guessed at. An engine says itself when it sampled the first token
(``first_token_latency``, which embedded engines have) after it had the request: what came before, at the router, is what is
left of the whole answer's time. Of one that does not, when that was is not known; as for the learner's version then, it is the
earliest that it can have been: when the request was sent, or when an engine first served the version that sampled it, whichever
is later.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from bus.messages import Begun, EngineDown, EngineServes, Message, Snapshot

KEPT = 4096  # versions: more than any request lasts


class VersionsHeard:
    """When the learner reached each version, and engines served it. ``newest``: the learner's."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._versions: list[int] = []
        self._served: dict[int, float] = {}  # since when any engine has served it
        self._engines: dict[str, int] = {}

    def hear(self, message: Message, now: float) -> None:
        if isinstance(message, Snapshot):
            self._times.append(now)
            self._versions.append(message.version)
            del self._times[:-KEPT], self._versions[:-KEPT]
        elif isinstance(message, EngineServes):
            self._engines[message.engine] = message.version
            self._served.setdefault(message.version, now)
            while len(self._served) > KEPT:
                del self._served[next(iter(self._served))]
        elif isinstance(message, EngineDown):
            self._engines.pop(message.engine, None)

    @property
    def learner(self) -> int:
        """The learner's version now; -1: not known."""
        return self._versions[-1] if self._versions else -1

    @property
    def engines(self) -> int:
        """The oldest that an engine serves now; -1: not known, or none serves."""
        return min(self._engines.values(), default=-1)

    def learner_at(self, when: float) -> int:
        """-1: not known."""
        place = bisect_right(self._times, when)
        return self._versions[place - 1] if place else -1

    def served_since(self, version: int) -> float:
        """Since when an engine has served it; minus infinity: that was not heard of."""
        return self._served.get(version, float("-inf"))


class GroupBegun:
    """The beginning of one attempt at a group."""

    def __init__(self, heard: VersionsHeard) -> None:
        self._heard, self._asked, self._first = heard, False, float("inf")
        self._all_say = True  # every engine that answered when it sampled its first token
        self.found = Begun()

    @property
    def first_token(self) -> float | None:
        """When the first token was sampled, by the clock of the times that were passed in. None: not known."""
        return self._first if self._all_say and self._first < float("inf") else None

    def asks(self) -> None:
        """A request is sent now; the first one counts."""
        if not self._asked:
            self._asked = True
            self.found = replace(self.found, learner=self._heard.learner, engines=self._heard.engines)

    def answered(self, sent: float, now: float, answers: Any) -> None:
        """The answers, there ``now``, to a request of the time ``sent``; of all of the group's the earliest token counts."""
        had_it = max(sent, now - _longest(answers, now - sent))
        for answer in answers if isinstance(answers, list) else ():
            try:
                if not answer["output_ids"]:
                    continue
                meta: Mapping[str, Any] = answer["meta_info"]
                version = int(meta["weight_versions"][0]["version"])
                said = meta.get("first_token_latency")
                when = max(sent, self._heard.served_since(version)) if said is None else had_it + max(0.0, float(said))
                when = min(when, now)  # whatever an engine says: it is there
            except (LookupError, TypeError, ValueError, AttributeError):
                continue  # whoever reads it will refuse it
            self._all_say = self._all_say and said is not None
            if when < self._first:
                self._first = when
                self.found = replace(self.found, first_token=self._heard.learner_at(when), sampled_by=version)


def _longest(answers: Any, otherwise: float) -> float:
    """How long the engine had the request: until the last of its answers was whole. ``otherwise``: where it does not say."""
    found: list[float] = []
    for answer in answers if isinstance(answers, list) else ():
        try:
            found.append(float(answer["meta_info"]["e2e_latency"]))
        except (LookupError, TypeError, ValueError):
            continue
    return max(found, default=otherwise)
