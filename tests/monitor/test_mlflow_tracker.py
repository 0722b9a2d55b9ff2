"""The metrics of a run as one of MLflow; its package is no part of the test environment, so that a module of the test's stands
for it, of which the calls and their names are mlflow 3.17's."""

from __future__ import annotations

import importlib.machinery
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import pytest
from monitored import config, step_metrics

from miles_async.config.schema import ConfigError, Track
from miles_async.monitor import Monitor
from miles_async.monitor.mlflow_tracker import FILES_ALLOWED, METRICS_AT_ONCE, URI, VALUE_CHARS, named, parameters
from miles_async.monitor.trackers import check
from miles_async.runs.state import RunState, write


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


class Param(NamedTuple):
    key: str
    value: str


class StandIn(ModuleType):
    """Remembers what it was asked, and the runs that were made; ``fails``: a call that raises."""

    def __init__(self, fails: str = "") -> None:
        super().__init__("mlflow")
        self.__spec__ = importlib.machinery.ModuleSpec("mlflow", None, origin="here")
        self.entities = ModuleType("mlflow.entities")
        self.entities.__dict__.update(Metric=Metric, Param=Param)
        self.fails, self.uris, self.threads = fails, list[str](), set[int]()
        self.runs: dict[str, str] = {}  # by tag
        self.states, self.metrics, self.params = list[str](), list[Metric](), list[Param]()

    def _asked(self, what: str) -> None:
        self.threads.add(threading.get_ident())
        if what == self.fails:
            raise ConnectionError("no\nroute")

    def MlflowClient(self, tracking_uri: str) -> StandIn:
        self._asked("client")
        # what the real one asks for
        assert tracking_uri.startswith("http") or os.environ.get(FILES_ALLOWED) == "true"
        self.uris.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="7") if self.runs else None

    def create_experiment(self, name: str) -> str:
        return "7"

    def search_runs(self, experiment_ids: list[str], filter_string: str, max_results: int) -> list[Any]:
        assert experiment_ids == ["7"] and max_results == 1
        found = [run for tag, run in self.runs.items() if filter_string == f"tags.`miles_async.run` = '{tag}'"]
        return [SimpleNamespace(info=SimpleNamespace(run_id=run)) for run in found]

    def create_run(self, experiment_id: str, run_name: str, tags: dict[str, str]) -> Any:
        self.runs[tags["miles_async.run"]] = run_name
        return SimpleNamespace(info=SimpleNamespace(run_id=run_name))

    def update_run(self, run_id: str, status: str) -> None:
        assert run_id in self.runs.values()
        self.states.append(status)

    def log_batch(self, run_id: str, metrics: Sequence[Metric] = (), params: Sequence[Param] = ()) -> None:
        self._asked("log_batch")
        assert run_id in self.runs.values() and len(params) <= 100
        self.metrics += metrics
        self.params += params

    def set_terminated(self, run_id: str) -> None:
        self._asked("set_terminated")
        self.states.append("FINISHED")


def tracked(monkeypatch: pytest.MonkeyPatch, run_dir: Path, module: StandIn) -> Monitor:
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", module.entities)
    monkeypatch.delenv(FILES_ALLOWED, raising=False)
    write(run_dir, RunState("a run/1", 1))
    made = Monitor(stream=open("/dev/null", "w"))  # noqa: SIM115
    section = Track(mlflow=True)
    made.start(msgspec.structs.replace(config(tensorboard=False, live="off"), track=section), run_dir, False)
    return made


def test_what_is_reported_is_logged_by_step_into_files_of_the_run_and_a_later_launch_goes_on_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(URI, raising=False)
    module = StandIn()
    for step in (3, 4):
        monitor = tracked(monkeypatch, tmp_path, module)
        monitor.on_metrics(step_metrics(step, 1.0, reward=0.25, **{"perf/step_time": float("nan")}))
        assert monitor.finish("finished", {})["troubles"] == []
    assert module.uris == [(tmp_path / "mlruns").as_uri()] * 2
    assert module.runs == {"a run/1": tmp_path.name} and module.states == ["FINISHED", "RUNNING", "FINISHED"]
    assert [(m.step, m.value) for m in module.metrics if m.key == "train/raw_reward"] == [(3, 0.25), (4, 0.25)]
    assert "perf/step_time" not in {metric.key for metric in module.metrics}
    assert dict(module.params)["run.num_steps"] == "40" and len(module.params) > 100
    assert threading.get_ident() not in module.threads and FILES_ALLOWED not in os.environ


def test_a_server_is_asked_where_the_environment_names_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(URI, "http://127.0.0.1:1")
    module = StandIn()
    assert tracked(monkeypatch, tmp_path, module).finish("finished", {})["troubles"] == []
    assert module.uris == ["http://127.0.0.1:1"]
    assert "127.0.0.1" not in (tmp_path / "events.jsonl").read_text()  # it may have a password in it


@pytest.mark.parametrize("fails", ["client", "log_batch", "set_terminated"])
def test_what_goes_wrong_there_is_told_and_nothing_to_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: str
) -> None:
    monitor = tracked(monkeypatch, tmp_path, StandIn(fails))
    monitor.on_metrics(step_metrics(1, 1.0))
    summary = monitor.finish("finished", {})
    assert summary["steps"] == 1 and summary["troubles"] == ["mlflow: ConnectionError: no"]


def test_what_comes_while_a_server_takes_its_time_goes_to_it_in_one_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers, requests = threading.Event(), list[int]()

    class Slow(StandIn):
        def log_batch(self, run_id: str, metrics: Sequence[Metric] = (), params: Sequence[Param] = ()) -> None:
            super().log_batch(run_id, metrics, params)
            if metrics:
                requests.append(len(metrics))
                assert answers.wait(60)

    module = Slow()
    monitor = tracked(monkeypatch, tmp_path, module)
    for step in range(1, 41):
        monitor.on_metrics(step_metrics(step, float(step)))
    answers.set()
    assert monitor.finish("finished", {})["troubles"] == []
    assert [m.step for m in module.metrics if m.key == "train/raw_reward"] == list(range(1, 41))
    assert len(requests) <= 2 + sum(requests) // METRICS_AT_ONCE


def test_a_name_has_nothing_that_mlflow_refuses_and_none_lies_in_the_way_of_another() -> None:
    assert named("learner-0", "raw_reward") == "train/raw_reward"
    assert named("evaluator", "eval/seen-pass@4") == "eval/seen-pass_4"
    assert named("supervisor", "rollout/samples_lost") == "rollout/samples_lost"
    assert named("supervisor", "rollout/samples_lost/reward_error") == "rollout/samples_lost.reward_error"


def test_a_parameter_is_cut_and_a_secret_is_masked() -> None:
    made = config()
    made = msgspec.structs.replace(made, bus=msgspec.structs.replace(made.bus, url="redis://:secret@a/0"))
    found = dict(
        parameters(msgspec.structs.replace(made, model=msgspec.structs.replace(made.model, hf_checkpoint="x" * 999)))
    )
    assert len(found["model.hf_checkpoint"]) == VALUE_CHARS and "secret" not in found["bus.url"]


def test_a_package_that_is_not_there_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    section = msgspec.structs.replace(config(), track=Track(mlflow=True))
    with pytest.raises(
        ConfigError, match=r'the package mlflow is not installed \(pip install "miles-async\[mlflow\]"\)'
    ):
        check(section)
    monkeypatch.setitem(sys.modules, "mlflow", StandIn())
    check(section)
