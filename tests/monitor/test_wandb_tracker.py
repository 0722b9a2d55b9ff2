"""The metrics of a run as one of Weights & Biases; its package is no part of the test environment, so that a module of the
test's stands for it."""

from __future__ import annotations

import importlib.machinery
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from monitored import config, started, step_metrics
from typer.testing import CliRunner

from miles_async.cli.app import app
from miles_async.config.schema import ConfigError, Track
from miles_async.monitor import Monitor, package_tracker
from miles_async.monitor.trackers import check
from miles_async.runs.state import RunState, write


class StandIn(ModuleType):
    """Remembers what it was asked; ``fails``: a call that raises."""

    def __init__(self, fails: str = "") -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="here")
        self.fails, self.asked, self.threads = fails, list[tuple[str, Any]](), set[int]()

    def _ask(self, what: str, how: Any) -> None:
        self.threads.add(threading.get_ident())
        self.asked.append((what, how))
        if what == self.fails:
            raise ConnectionError("no\nroute")

    def Settings(self, **how: Any) -> dict[str, Any]:
        return how

    def init(self, **how: Any) -> StandIn:
        self._ask("init", how)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self._ask("define_metric", (name, step_metric))

    def log(self, values: dict[str, float]) -> None:
        self._ask("log", values)

    def finish(self) -> None:
        self._ask("finish", None)


def tracked(monkeypatch: pytest.MonkeyPatch, run_dir: Path, module: StandIn, **track: Any) -> Monitor:
    monkeypatch.setitem(sys.modules, "wandb", module)
    write(run_dir, RunState("a run/1", 1))
    made = Monitor(stream=open("/dev/null", "w"))  # noqa: SIM115
    section = Track(wandb=True, **track)
    made.start(msgspec.structs.replace(config(tensorboard=False, live="off"), track=section), run_dir, False)
    return made


def test_what_is_reported_is_logged_by_step_under_tensorboards_names_and_nothing_is_sent_unasked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module = StandIn()
    monitor = tracked(monkeypatch, tmp_path, module)
    monitor.on_metrics(step_metrics(3, 1.0, reward=0.25, **{"perf/step_time": 2.0}))
    assert monitor.finish("finished", {})["troubles"] == []
    how = dict(module.asked)["init"]
    assert (how["mode"], how["project"], how["dir"]) == ("offline", "miles_async", str(tmp_path))
    assert (how["id"], how["resume"], how["name"]) == ("a-run-1", "allow", tmp_path.name)
    assert how["config"]["run"]["num_steps"] == 40
    assert [what for what, _ in module.asked][-1] == "finish"
    logged = [values for what, values in module.asked if what == "log"]
    step = next(values for values in logged if "train/raw_reward" in values)
    assert (step["step"], step["train/raw_reward"], step["perf/step_time"]) == (3, 0.25, 2.0)
    assert threading.get_ident() not in module.threads and len(module.threads) == 1


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_what_goes_wrong_there_is_told_and_nothing_to_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: str
) -> None:
    monkeypatch.setattr(package_tracker, "CLOSE_S", 1e9)  # nothing is waited for that has failed
    monitor = tracked(monkeypatch, tmp_path, StandIn(fails))
    for step in (1, 2):
        monitor.on_metrics(step_metrics(step, float(step)))
    summary = monitor.finish("finished", {})
    assert summary["steps"] == 2 and summary["troubles"] == ["wandb: ConnectionError: no"]


def test_a_service_that_hangs_holds_no_run_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module, answered = StandIn(), threading.Event()
    monkeypatch.setattr(module, "finish", answered.wait)
    monkeypatch.setattr(package_tracker, "CLOSE_S", 0.1)
    monitor = tracked(monkeypatch, tmp_path, module)
    (trouble,) = monitor.finish("finished", {})["troubles"]
    assert "did not end within" in trouble and "wandb sync" in trouble
    answered.set()


def test_a_run_without_trackers_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", StandIn("init"))
    assert started(tmp_path).finish("finished", {})["troubles"] == []


def test_a_package_that_is_not_there_is_one_line_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "wandb").mkdir()  # what its runs leave where they were started
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    section = msgspec.structs.replace(config(), track=Track(wandb=True))
    with pytest.raises(ConfigError, match=r'the package wandb is not installed \(pip install "miles-async\[wandb\]"\)'):
        check(section)
    monkeypatch.setitem(sys.modules, "wandb", StandIn())
    check(section)


def test_a_mode_without_the_tracker_is_refused(tmp_path: Path) -> None:
    text = '[model]\nhf_checkpoint = "builtin:digits"\n[data]\nprompt_data = "builtin:repeat"\n'
    (tmp_path / "run.toml").write_text(f'{text}[algorithm]\ncorrection = "behaviour"\n')
    sets = ["--set", "track.wandb_mode=online"]
    result = CliRunner().invoke(app, ["launch", str(tmp_path / "run.toml"), "--dry-run", *sets])
    assert result.exit_code == 2 and "track.wandb_mode = 'online' has no effect: it needs track.wandb" in result.stderr
