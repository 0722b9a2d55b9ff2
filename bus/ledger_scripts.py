"""How the ledger's transitions reach Redis: one script for each of them, loaded once for each bus.

Promises: a transition is one atomic script, and none of one whose life is over (``bus/fence.py``); what Redis refuses of it is
a LedgerError that names the script.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import redis.exceptions

from bus import positions
from bus.client import Bus
from bus.errors import LedgerError
from bus.fence import FencedScript
from bus.payloads import InRedis, PayloadStore
from bus.script_text import with_parts

_SCRIPTS = Path(__file__).parent / "scripts"
_TRANSITIONS = (
    "admit",
    "again",
    "claim",
    "begin",
    "fail",
    "publish",
    "discard",
    "release",
    "drop",
    "batch",
    "extend",
    "commit",
    "reconcile",
    "quarantine",
)
_LOOKS = ("open", "room", "foreign")

_DETAIL_CHARS = 400


class LedgerScripts:
    """The scripts of one run's ledger on ``bus``."""

    def __init__(self, bus: Bus, payloads: PayloadStore | None = None) -> None:
        """``payloads``: where those of all groups of the run lie; None: in Redis."""
        self.bus, self.store = bus, payloads or InRedis()
        self._scripts = _load(bus)

    async def _run(self, script: str, *args: Any) -> Any:
        """The answer of one of the ledger's scripts. Raises LedgerError, ReplacedError."""
        try:
            return await self._scripts[script](keys=[self.bus.prefix], args=args)
        except redis.exceptions.ResponseError as error:
            raise LedgerError(f"{script}: {error}") from None

    async def steps(self) -> tuple[int, int]:
        """The last step that has a batch, and the last one that is committed."""
        last, committed = await self.bus.redis.hmget(self.bus.key("l:meta"), "last_step", "committed_step")
        return int(last or 0), int(committed or 0)


def _load(bus: Bus) -> dict[str, Any]:
    parts = positions.lua() + (_SCRIPTS / "prelude.lua").read_text()
    texts = {name: with_parts((_SCRIPTS / f"{name}.lua").read_text(), parts) for name in (*_TRANSITIONS, *_LOOKS)}
    transitions = {name: FencedScript(bus, texts[name]) for name in _TRANSITIONS}
    return transitions | {name: bus.redis.register_script(texts[name]) for name in _LOOKS}


def words(text: str) -> str:
    """What goes on record of it: some of it, and only what is UTF-8."""
    return text[:_DETAIL_CHARS].encode("utf-8", "backslashreplace").decode()
