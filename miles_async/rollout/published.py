"""Whether the weights that an answer names can exist: an engine cannot sample with a version that no learner has published.

Promises: what an answer says is believed up to the newest snapshot that a learner has announced (what only lies on ``weights``
counts for nothing), which is looked for when an answer names a newer one (engines get a version after it was announced, so
it is there by then); an answer beyond that is refused, with its request, the version it names and the newest there is. So is
a group in which a function of the user says so. (An older one than the true one only makes tokens look staler than they are;
the router, which asks engines what they serve, finds who says so.)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from bus import Bus, SnapshotLedger
from bus.codec import VERSIONS, unpack
from bus.fields import MAX_NUMBER
from bus.messages import UNSAMPLED, EngineDown, EngineServes, Sample, Snapshot
from miles_async.rollout.begun import VersionsHeard
from miles_async.rollout.generate import AnswerError

NEWS = (Snapshot, EngineServes, EngineDown)


class PublishedVersions:
    """The versions that are published, as one worker knows them. Where it does :meth:`follow` the news, ``heard`` knows when
    each of them came, too."""

    def __init__(self, bus: Bus, clock: Callable[[], float] = time.monotonic) -> None:
        self._bus, self._ledger, self._cursor, self._clock = bus, SnapshotLedger(bus), "0", clock
        self.heard = VersionsHeard()
        # one reads, and the others wait for what it finds: the stream is behind them before its snapshots are known
        self._reading = asyncio.Lock()
        self.newest = -1  # so far; while there is none at all, nothing is refused

    async def check(self, answers: Any) -> None:
        """Raises AnswerError: one of the answers to a request names weights that were never published."""
        version, rid = newest_named(answers)
        await self._read_on(version)
        if version > self.newest >= 0:
            raise AnswerError(
                f"{rid}: tokens of weight version {version}; the newest that was ever published is {self.newest}"
            )

    async def newest_for(self, samples: Sequence[Sample]) -> int:
        """The newest version that was ever published, as far as it has to be known for ``samples``; 0 where there was none."""
        versions = unpack(b"".join([sample.versions for sample in samples]), VERSIONS)
        if (newest := int(versions.max(initial=-1))) == UNSAMPLED:
            newest = int(versions[versions != UNSAMPLED].max(initial=-1))
        await self._read_on(newest)
        return max(self.newest, 0)

    async def _read_on(self, version: int) -> None:
        """Until ``version`` is known to be published, or no news is left."""
        if version <= self.newest:
            return
        async with self._reading:
            read_to = ""
            while read_to != self._cursor and version > self.newest:  # which another one may have found meanwhile
                read_to = self._cursor
                messages, self._cursor = await self._bus.read("weights", NEWS, read_to, block_ms=1)
                now = self._clock()
                for message in messages:
                    if not isinstance(message, Snapshot):
                        self.heard.hear(message, now)
                    elif await self._ledger.knows(message):
                        self.newest = max(self.newest, message.version)
                        self.heard.hear(message, now)

    async def read_all(self) -> None:
        """What was said so far."""
        await self._read_on(MAX_NUMBER)

    async def follow(self, changed: Callable[[], Awaitable[None]]) -> None:
        """Read on whenever there is news; ``changed`` is called when the learner has another version. Until cancelled."""
        told = self.heard.learner
        while True:
            await self.read_all()
            if self.heard.learner != told:
                told = self.heard.learner
                await changed()
            await self._bus.wait_for_news({"weights": self._cursor})


def newest_named(answers: Any) -> tuple[int, str]:
    """(the newest version in the spans of a request's answers, that answer's id); -1 where none can be read.

    What has another form than /generate gives is for whoever reads the tokens to refuse.
    """
    newest, rid = -1, ""
    for answer in answers if isinstance(answers, list) else [answers]:
        try:
            meta = answer["meta_info"]
            for span in meta.get("weight_versions") or ():
                if (version := int(span["version"])) > newest:
                    newest, rid = version, str(meta.get("id"))
        except (LookupError, TypeError, ValueError, AttributeError):
            continue
    return newest, rid
