"""The groups of one rollout worker in the record of the run (``record.level``).

Promises: a group is on disk before :meth:`GroupRecord.keep` returns, or the disk does not take it: that costs the record this
group, and each cause is told of once.
"""

from __future__ import annotations

from actors.runtime.context import ActorContext
from bus.messages import Group
from miles_async.recording.recorder import recorder
from miles_async.recording.segments import Entry


class GroupRecord:
    """Made under ``lease``. A run that keeps no groups has one, too."""

    def __init__(self, ctx: ActorContext, lease: str) -> None:
        self._ctx, self._lease = ctx, lease
        self._recorder = recorder(ctx.config, ctx.run_dir, ctx.name, ctx.incarnation)
        self._failures = set[str]()  # that were told of

    async def keep(self, group: Group, payload: bytes, outcome: str) -> None:
        """``outcome``: as an :class:`Entry` has it."""
        if self._recorder is None:
            return
        try:
            await self._recorder.keep(Entry(group.group_id, self._lease, outcome, len(payload)), payload)
        except OSError as error:
            if str(error) not in self._failures:
                self._failures.add(str(error))
                await self._ctx.event("group_not_recorded", group=group.group_id, cause=str(error))

    async def close(self) -> None:
        """What was given is on disk then."""
        if self._recorder is not None:
            await self._recorder.close()
