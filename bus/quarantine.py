"""Recorded groups that cannot be trained: taken out of their step, on record, so that every replay leaves out the same ones.

Promises: what is quarantined is so before the step trains (it is part of the write-ahead log), for every rank and for ever; it
counts as dropped, by the reason "quarantined", and lies among the dead letters with its cause. All of it can be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

from bus.codec import encode
from bus.errors import LedgerError
from bus.ledger import Ledger
from bus.ledger_scripts import words
from bus.messages import Group, Ticket


class Quarantine:
    """The quarantine of one run; any process may hold one."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def put(
        self, step: int, group_id: str, reason: str, detail: str, group: Group | None = None, text: str = ""
    ) -> int:
        """``group_id`` is no part of ``step`` any more. Returns how many groups of the run were ever quarantined.

        ``group``: where it could be read; ``text``: of its prompt, where that is known. Raises LedgerError: the step is not
        recorded, or not with this group.
        """
        tokens, label = (b"", None) if group is None else (group.prompt_tokens, group.label)
        # the one that was dealt is forgotten since the publication
        ticket = Ticket(group_id=group_id, prompt_tokens=tokens, sampling_seed=0, prompt=text, label=label)
        total = int(await self._ledger._run("quarantine", step, group_id, reason, words(detail), encode(ticket)))
        if not total:
            raise LedgerError(f"quarantine of group {group_id}: the record of step {step} does not have it")
        return total

    async def of(self, group_ids: Sequence[str]) -> dict[str, str]:
        """Those of ``group_ids`` that are quarantined, with the cause."""
        if not group_ids:
            return {}
        bus = self._ledger.bus
        causes = await bus.redis.hmget(bus.key("l:quarantine"), list(group_ids))
        found = zip(group_ids, causes, strict=True)
        return {group_id: cause.decode() for group_id, cause in found if cause is not None}
