"""``miles-async logs``: what the processes of a run have written to their logs, and what they write while one looks on.

Promises: nothing is changed; only whole lines are given until the run ends, then what is left; an actor that has no log is one
line with the nearest name; following ends when the run's launch does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from miles_async.config.schema import ConfigError
from miles_async.config.words import nearest
from miles_async.monitor.diagnosis import role_of
from miles_async.monitor.growing import GrowingFile
from miles_async.monitor.status import check_is_run
from miles_async.runs.state import living

LOGS = "logs"
LOOK_S = 0.25


class RunLogs:
    """The logs of ``run_dir``, of all actors, or of ``actor``: a name, or a role (all that have it).

    Raises ConfigError: no run is there, or no such log.
    """

    def __init__(self, run_dir: Path, actor: str = "") -> None:
        check_is_run(run_dir)
        self._run_dir, self._actor = run_dir, actor
        self._files: dict[str, GrowingFile] = {}
        names = self._names()
        if actor and not any(map(self._is_wanted, names)):
            there = f" (one of: {', '.join(names)})" if names else f" ({run_dir / LOGS} holds none)"
            raise ConfigError(f'{run_dir}: no actor "{actor}" has a log{nearest(actor, names)}{there}')

    def lines(self, *, follow: bool = False) -> Iterator[str]:
        """What is there; with ``follow`` also what comes, until the run ends. Each behind its actor's name, unless that one was
        asked for."""
        while follow and living(self._run_dir) is not None:
            yield from self._more()
            time.sleep(LOOK_S)
        yield from self._more()
        for name, file in self._files.items():
            if rest := file.rest():
                yield self._line(name, rest)

    def _names(self) -> list[str]:
        return sorted(path.stem for path in (self._run_dir / LOGS).glob("*.log"))

    def _is_wanted(self, name: str) -> bool:
        return self._actor in ("", name, role_of(name))

    def _more(self) -> Iterator[str]:
        for name in filter(self._is_wanted, self._names()):
            file = self._files.setdefault(name, GrowingFile(self._run_dir / LOGS / f"{name}.log"))
            for line in file.more()[0]:
                yield self._line(name, line)

    def _line(self, name: str, line: bytes) -> str:
        text = line.decode(errors="replace")
        return text if name == self._actor else f"{name:<14} | {text}"
