"""Prometheus finds every number of a run that lives; a port that is taken is no reason to end it."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from launching import events
from monitored import started, step_metrics
from prometheus_client.parser import text_string_to_metric_families

from bus.messages import Heartbeat, Metrics, Wait
from bus.waits import WaitKind
from miles_async.monitor.exporter import exported
from miles_async.monitor.metrics.table import TABLE
from miles_async.monitor.monitor import Monitor

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana.json"


def served(url: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(url, timeout=60) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def url_of(monitor: Monitor) -> str:
    (began,) = [event for event in monitor.progress.recent_events if event.kind == "metrics_served"]
    return began.data["url"]


def test_what_actors_report_and_what_the_supervisor_sees_is_served_until_the_launch_ends(tmp_path: Path) -> None:
    monitor = started(tmp_path, metrics_port=0)
    url, now = url_of(monitor), time.time()
    monitor.on_metrics(step_metrics(3, now, reward=0.25))
    monitor.on_metrics(step_metrics(4, now, reward=0.5))
    for actor, values in (
        ("router", {"engine_busy/engine-1": 0.75}),
        ("evaluator", {"eval/some": 0.1, "eval/some-pass@4": 0.2}),
        ("ledger", {"rollout/samples_lost": 0.3, "rollout/samples_lost/too_old": 0.3}),
        ("rollout-0", {"refused/rollout-0/tickets": 2.0}),
    ):
        monitor.on_metrics(Metrics(actor=actor, step=4, time=now, values=values))
    monitor.on_ledger({"dealt": 7, "trained": 4, "dropped": 3, "dropped:too_old": 3})
    monitor.on_engines({"engine-0": 4})
    wait = Wait(kind=WaitKind.GROUPS, since=now - 50, about={"step": 5})
    beats = [("learner-0", (wait,)), ("dealer", ())]
    monitor.on_heartbeats(
        Heartbeat(actor=name, role=name, incarnation=1, where="pid 1", time=now, waits=waits) for name, waits in beats
    )
    found = {(name.removeprefix("miles_async_"), labels): value for (name, labels), value in served(url).items()}
    expected = {
        ("raw_reward", (("actor", "learner-0"),)): 0.5,
        ("engine_busy", (("actor", "router"), ("engine", "engine-1"))): 0.75,
        ("eval", (("actor", "evaluator"), ("dataset", "some"))): 0.1,
        ("eval_pass_at", (("actor", "evaluator"), ("dataset", "some"), ("k", "4"))): 0.2,
        ("rollout_samples_lost", (("actor", "ledger"),)): 0.3,
        ("rollout_samples_lost_by_reason", (("actor", "ledger"), ("reason", "too_old"))): 0.3,
        ("refused", (("actor", "rollout-0"), ("of", "rollout-0"), ("what", "tickets"))): 2.0,
        ("step", ()): 4.0,
        ("num_steps", ()): 40.0,
        ("groups", (("state", "trained"),)): 4.0,
        ("groups_dropped", (("reason", "too_old"),)): 3.0,
        ("engine_version", (("engine", "engine-0"),)): 4.0,
        ("actor_waits_seconds", (("actor", "dealer"),)): 0.0,
        ("events_total", (("kind", "metrics_served"),)): 1.0,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["actor_waits_seconds", (("actor", "learner-0"),)] >= 50
    monitor.finish("finished", {})
    with pytest.raises(urllib.error.URLError):
        served(url)


def test_a_port_that_is_taken_is_said_and_the_run_goes_on(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monitor = started(tmp_path, metrics_port=taken.getsockname()[1])
        monitor.on_metrics(step_metrics(1, time.time()))
        summary = monitor.finish("finished", {})
    assert summary["steps"] == 1
    assert [text for text in summary["troubles"] if "monitor.metrics_port" in text]
    assert "monitor.metrics_port" in events(tmp_path, "not_tracked")[0]["data"]["cause"]


def test_every_metric_has_a_name_of_its_own_and_the_dashboard_asks_for_those() -> None:
    names: dict[str, set[str]] = {}
    for _, role, metrics in TABLE:
        for metric in metrics:
            family, says, _ = exported(metric.name.replace("{", "").replace("}", ""), role)
            names.setdefault(family, set()).add(metric.name)
            assert says
    assert [found for found in names.values() if len(found) > 1] == []
    own = ("step", "num_steps", "starts", "groups", "groups_dropped", "engine_version", "events_total")
    known = names.keys() | {f"miles_async_{name}" for name in (*own, "actor_silent_seconds", "actor_waits_seconds")}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    assert len(asked) >= 10
    for expression in asked:
        words = set(re.findall(r"\bmiles_async_\w+", expression))
        assert words and words <= known, expression
