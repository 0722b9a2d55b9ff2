"""What a weight transport is. A new one is a class below ``Transport`` in a file of its own, and a line in ``table.py``.

Nothing outside this room knows which there are: the broadcaster, the hosts of engines and the checks of a configuration ask the
transport that the configuration names. Importing a transport's file costs no torch; what needs it is imported where it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import ClassVar

from miles_async.config.schema import RunConfig
from miles_async.weights.push import Wave, push
from miles_async.weights.update import Copies, Key, PushReport, Receiver, Update, prepare


class Transport:
    """One way for the weights from a snapshot into engines.

    The broadcaster makes one, and calls for each version :meth:`prepare`, then for each wave of engines :meth:`deliver`,
    :meth:`form` and :meth:`push`. The host of an engine makes one for :meth:`beside_engine`.
    """

    KEYS: ClassVar[tuple[str, ...]] = ()  # of the configuration, that nothing else looks at
    ASKS_FIRST: ClassVar[bool] = False  # whether an engine that hangs would hold up the others: it is left out before
    ENGINES_READ: ClassVar[bool] = True  # whether engines read the learner's snapshots themselves
    COPIED_BY: ClassVar[str] = ""  # whom deliver() waits for, in words; empty: it waits for nobody

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        self.config, self.run_dir = config, run_dir

    @classmethod
    def check(cls, config: RunConfig) -> None:
        """Refuse a configuration that this transport cannot work with. Raises ConfigError."""

    def beside_engine(self, engine: str) -> AbstractAsyncContextManager[None]:
        """What has to run on the machine of an engine of ours for as long as that serves."""
        return nullcontext()

    async def prepare(self, path: Path, key: Key) -> Update:
        """The snapshot in ``path``, ready to be sent to one wave after the other. Raises SnapshotError, OSError."""
        return await prepare(path, key[1], self.config.weights.bucket_mb)

    async def deliver(self, engines: Sequence[str]) -> Copies:
        """Wait until the machines of ``engines`` have the version prepared last, where each needs a copy of its own."""
        return Copies()

    def form(self, waves: Iterable[Sequence[Receiver]]) -> None:
        """Be told which waves there are from now on: what was formed for others can be given up."""

    async def push(self, receivers: Sequence[Receiver], update: Update, *, probed: bool = False) -> PushReport:
        """Bring one wave to ``update``. ``probed``: the caller has just seen them all answer."""
        ask_first = self.ASKS_FIRST and not probed
        return await push(receivers, update, self.carry, self.config.weights, ask_first=ask_first)

    async def carry(self, wave: Wave, update: Update) -> None:
        """Pause the engines of ``wave``, give them the weights and have them confirm the version."""
        raise NotImplementedError

    def metrics(self) -> Mapping[str, float]:
        """Figures of the version prepared last, by name."""
        return {}

    async def close(self) -> None:
        """Give up what was formed."""
