"""Runs from Python, in a program or a notebook.

    import miles_async as ma

    run = ma.launch("run.toml", run={"num_steps": 20}, learner={"lr": 1e-5})
    run.wait()
    run.metrics()
    run.samples(step=20)
    run = ma.load("runs/run-20260101-120000")

Promises: what is wrong with a configuration is raised here, as the line that the command line says, before anything
starts. A run is processes of its own: only :meth:`Run.wait` and :meth:`Run.stop` wait for it, an event loop that runs
here does not matter, and it goes on when this program ends.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any, Unpack

from miles_async.cli import forking, running
from miles_async.cli.errors import BAD_INPUT, NO_REDIS
from miles_async.cli.launch_check import check_topology
from miles_async.cli.load import check_all, resolve_paths
from miles_async.cli.load import load as load_config
from miles_async.config import toml
from miles_async.config.overrides import Overrides
from miles_async.config.schema import ConfigError, RunConfig
from miles_async.config.secrets import masked
from miles_async.config.typed import is_section, key_types, table_of
from miles_async.config.words import NONE, nearest
from miles_async.config.words import toml as as_toml
from miles_async.monitor import status as status_of
from miles_async.monitor.record_lines import LEARNER, is_step, read_metrics
from miles_async.recording.samples import samples_of_step
from miles_async.resume import fork
from miles_async.runs import kinds, state
from miles_async.runs.state import living

LOG = "launch.log"  # in the run directory: what the launch said
CONFIG = "launch.toml"  # there, too: a configuration that was made in Python
STOP_S = 300.0
LOOK_S = 0.25


class RunFailedError(RuntimeError):
    """The run ended as failed, or its launch did not come to begin it: the cause, in one line."""


def launch(
    config: str | Path | RunConfig,
    *,
    run_dir: str | Path | None = None,
    from_run: str | None = None,
    **overrides: Unpack[Overrides],
) -> Run:
    """Start a run, and return at once.

    config: a TOML file, or a configuration made in Python, whose relative paths are of the working directory. run_dir: as
    ``--run-dir``: one that has a run goes on with it. from_run: as ``--from``. overrides: a section's keys, as
    ``run={"num_steps": 20}``; None unsets a key. Raises ConfigError, and what else ``miles-async launch`` refuses in one line.
    """
    sets = list(_overrides(overrides))
    name = Path("run") if isinstance(config, RunConfig) else Path(config)
    directory = Path(run_dir or running.default_run_dir(name)).absolute()
    origin = fork.origin(directory, from_run)
    if isinstance(config, RunConfig):
        kinds.refuse_another(directory, kinds.kind_of_config(config))
        text = _as_text(config, [*sets, *forking.overrides(origin)])
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = directory / CONFIG
        name.write_text(text)
    else:
        loaded = load_config(name, [*sets, *forking.overrides(origin)])
        kinds.refuse_another(directory, kinds.kind_of_config(loaded))
        check_topology(loaded, load=False)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    words = [part for override in sets for part in ("--set", override)] + (["--from", from_run] if from_run else [])
    command = [sys.executable, "-m", "miles_async.cli.app", "launch", str(name), *words, "--run-dir", str(directory)]
    launched = time.time()
    with (directory / LOG).open("ab") as log:
        # in a session of its own: a Ctrl-C here, or the end of a notebook's kernel, is not the run's
        process = Popen(command, stdin=DEVNULL, stdout=log, stderr=log, env=dict(os.environ), start_new_session=True)
    return Run(directory, process, launched)


def configuration(**sections: Unpack[Overrides]) -> RunConfig:
    """A configuration that :func:`launch` takes, made in Python: the keys of each section, as ``run={"num_steps": 20}``; those
    that are left out have their defaults. Raises ConfigError, as a TOML file with these keys would."""
    return toml.parse("", list(_overrides(sections)))


def load(run_dir: str | Path) -> Run:
    """A run that is there, alive or ended. Raises ConfigError: none is."""
    status_of.check_is_run(Path(run_dir))
    return Run(Path(run_dir).absolute())


class Run:
    """One run, by its directory."""

    def __init__(self, directory: Path, process: Popen[Any] | None = None, launched: float = 0.0) -> None:
        """``process``: its launch, where it is this program's, of the time ``launched``, in seconds since the epoch."""
        self.directory = directory
        self._process, self._launched = process, launched

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r})"

    def status(self) -> dict[str, Any]:
        """What ``miles-async status --json`` says: ``status`` "starting", "running" or "dead", or the summary of a run that has
        ended. Raises RunFailedError: the launch ended before there was a run; SilentBusError."""
        if not status_of.is_run(self.directory) or self._only_begins():
            if not self._lives():
                raise RunFailedError(self._last_words())
            return {"status": "starting", "run_dir": str(self.directory)}
        # asking a bus takes an event loop, and in a notebook there is one in this thread already
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(status_of.status, self.directory).result()

    def wait(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Until the run ends; its summary. An interruption leaves the run alone. Raises RunFailedError, TimeoutError."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while self._lives():
            self._check_that_it_was_taken()
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"the run in {self.directory} has not ended within {timeout_s:g} s")
            time.sleep(LOOK_S)
        self._check_that_it_was_taken()
        found = self.status()
        if found["status"] not in ("finished", "stopped"):
            raise RunFailedError(found["reason"] or self._last_words())
        return found

    def stop(self, timeout_s: float = STOP_S) -> dict[str, Any]:
        """Stop it in order, as a Ctrl-C does: it has a checkpoint then, and a launch with its ``run_dir`` goes on. Its summary.

        A run that has ended is left as it is. Raises ConfigError: it is another machine's; TimeoutError, RunFailedError.
        """
        if self._process is not None and self._lives():
            self._process.send_signal(signal.SIGINT)
        elif (supervisor := living(self.directory)) is not None and supervisor.pid:
            if supervisor.elsewhere:
                raise ConfigError(
                    f"{self.directory}: its launch is pid {supervisor.pid} on {supervisor.elsewhere}: stop it there"
                )
            os.kill(supervisor.pid, signal.SIGINT)
        return self.wait(timeout_s)

    def metrics(self, actor: str = LEARNER) -> Any:
        """What an actor has reported: of the learner a row for each step. A pandas DataFrame where pandas is there, else a list
        of dicts: ``step``, ``time`` (seconds since the epoch) and the metrics by their names (docs/metrics.md).

        Raises ConfigError: no such actor has reported anything; RecordError.
        """
        known: set[str] = set()
        rows: list[dict[str, Any]] = []
        for line in read_metrics(self.directory):
            known.add(line.actor)
            if line.actor == actor and (actor != LEARNER or is_step(line)):
                rows.append({"step": line.step, "time": line.time, **line.values})
        if actor not in known and actor != LEARNER:
            there = ", ".join(sorted(known)) or "none yet"
            raise ConfigError(f'no actor "{actor}" has reported anything{nearest(actor, known)} (actors: {there})')
        return _as_table(rows)

    def samples(self, step: int) -> list[dict[str, Any]]:
        """What the step was trained on, a dict for each sample: ``group``, ``index``, ``prompt``, ``label``, ``text`` (the
        response), ``reward``, ``reward_parts``, ``finish_reason``, ``length``, ``trained_tokens`` and ``versions``.

        Raises RecordError: the step is not on record, or its groups are not kept (``record.level``).
        """
        return samples_of_step(self.directory, step)

    def _lives(self) -> bool:
        """Whether a launch is alive; this program's counts from its first moment on."""
        if self._process is not None and self._process.poll() is None:
            return True
        return living(self.directory) is not None

    def _only_begins(self) -> bool:
        """Our launch has not taken the directory yet: what lies there is of the one before."""
        if self._process is None or self._process.poll() is not None:
            return False
        there = state.read(self.directory)
        return there is None or there.started < self._launched

    def _check_that_it_was_taken(self) -> None:
        """Raises RunFailedError: our launch was refused, and the run, if there is one, is as it was."""
        if self._process is not None and self._process.poll() in (BAD_INPUT, NO_REDIS):
            raise RunFailedError(self._last_words())

    def _last_words(self) -> str:
        try:
            lines = (self.directory / LOG).read_text(errors="replace").strip().splitlines()
        except FileNotFoundError:
            lines = []
        said = [line for line in lines if line.startswith("miles-async: ")] or lines
        return said[-1].removeprefix("miles-async: ") if said else f"the launch in {self.directory} said nothing"


def _overrides(sections: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """``{"run": {"num_steps": 3}}`` as ``run.num_steps=3``."""
    kinds = key_types()
    for name, value in sections.items():
        key = f"{above}{name}"
        kind = kinds.get(key)
        if isinstance(value, Mapping) and (kind is None or is_section(kind) or table_of(kind) is not None):
            yield from _overrides(value, f"{key}.")
        else:
            value = str(value) if isinstance(value, Path) else value
            yield f"{key}={as_toml(NONE if value is None else value)}"


def _as_text(config: RunConfig, sets: Sequence[str]) -> str:
    """The TOML of a configuration that a launch would take. Raises ConfigError."""
    config = resolve_paths(config, Path.cwd())
    if masked(config) != config:
        raise ConfigError(
            "a configuration is written down for its launch: give keys, and a bus.url with a password, as env:NAME"
        )
    text = toml.dump(config)
    checked = toml.parse(text, sets)
    check_all(resolve_paths(checked, Path.cwd()))
    check_topology(checked, load=False)
    return text


def _as_table(rows: list[dict[str, Any]]) -> Any:
    try:
        import pandas  # pyright: ignore[reportMissingImports]
    except ImportError:
        return rows
    return pandas.DataFrame(rows)
