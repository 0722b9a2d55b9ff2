"""A run's numbers in Prometheus' text form: ``http://127.0.0.1:PORT/metrics``, while a launch of it lives.

Promises: what is served is the last value that each actor reported of each metric, and what the supervisor saw last of
ledger, engines and actors; who asks costs the run nothing but the answer, in a thread of its own; a port that cannot be
had is said, and ends nothing. Loopback only: nothing asks for a key here.

A metric is called ``miles_async_`` and its name, with ``_`` for what Prometheus does not take; what stands for a ``{word}`` in
docs/metrics.md is a label of that word.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from miles_async.monitor.diagnosis import role_of
from miles_async.monitor.metrics.metric import Metric
from miles_async.monitor.metrics.table import TABLE
from miles_async.monitor.progress import Progress
from miles_async.monitor.record_lines import MetricsLine
from miles_async.monitor.summary import ledger_counts

HOST = "127.0.0.1"
PREFIX = "miles_async_"
_OWN = {"actor": "of"}  # a label that says who reported it is there already


class Exporter:
    """See Tracker (trackers.py). ``port`` 0: any free one, which the event says."""

    def __init__(self, port: int, progress: Progress) -> None:
        self.error = ""
        self.began: tuple[str, dict[str, Any]]
        self._values: dict[tuple[str, str], float | None] = {}
        registry = CollectorRegistry()
        registry.register(_Numbers(self._values, progress))
        self._server: Any = None
        try:
            self._server, self._thread = start_http_server(port, addr=HOST, registry=registry)
        except OSError as error:
            self.error = f"monitor.metrics_port = {port}: {error.strerror or error}"
            self.began = ("not_tracked", {"cause": self.error})
            return
        self.began = ("metrics_served", {"url": f"http://{HOST}:{self._server.server_port}/metrics"})

    def add(self, line: MetricsLine) -> None:
        for name, value in line.values.items():
            self._values[line.actor, name] = value

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = None


class _Numbers(Collector):
    def __init__(self, values: dict[tuple[str, str], float | None], progress: Progress) -> None:
        self._values, self._progress = values, progress

    def collect(self) -> Iterable[Any]:
        families: dict[str, GaugeMetricFamily] = {}
        for (actor, name), value in self._values.copy().items():
            family, says, labels = exported(name, role_of(actor))
            of_family = families.setdefault(family, GaugeMetricFamily(family, says, labels=["actor", *labels]))
            if value is not None:
                of_family.add_metric([actor, *labels.values()], value)
        return [*families.values(), *self._seen()]

    def _seen(self) -> Iterable[Any]:
        """What no actor reports."""
        progress, now = self._progress, time.time()
        yield GaugeMetricFamily(f"{PREFIX}step", "the last step that was trained", value=progress.step)
        yield GaugeMetricFamily(f"{PREFIX}num_steps", "steps of the whole run", value=progress.num_steps)
        yield GaugeMetricFamily(f"{PREFIX}starts", "launches of the run by now", value=len(progress.starts))
        counts = ledger_counts(progress.ledger)
        dropped = counts.pop("dropped")
        yield _by("groups", "prompt groups, by where they are in the ledger", "state", counts)
        yield _by("groups_dropped", "prompt groups that were dropped", "reason", dropped)
        yield _by("engine_version", "weight version that the engine serves", "engine", progress.engine_versions.copy())
        beats = [*progress.heartbeats.values()]
        silent = {beat.actor: max(0.0, now - beat.time) for beat in beats}
        yield _by("actor_silent_seconds", "since the actor's last sign of life", "actor", silent)
        waits = {beat.actor: max(0.0, now - beat.waits[0].since) if beat.waits else 0.0 for beat in beats}
        yield _by("actor_waits_seconds", "how long the actor has waited for somebody; 0: it is busy", "actor", waits)
        events = CounterMetricFamily(f"{PREFIX}events", "what happened, as events.jsonl says", labels=["kind"])
        for kind, count in progress.events.copy().items():
            events.add_metric([kind], count)
        yield events


def exported(name: str, role: str) -> tuple[str, str, dict[str, str]]:
    """Prometheus' name of a metric that an actor of ``role`` reports, what it is, and its labels besides ``actor``."""
    metrics = [metric for _, of, metrics in TABLE if of in ("", role) for metric in metrics]
    found = [(metric, words) for metric in metrics if (words := metric.words(name)) is not None]
    if not found:  # of a function of the user's
        return _plain(name), name, {}
    metric, words = max(found, key=lambda pair: len(re.sub(r"\{\w+\}", "", pair[0].name)))
    plain = _plain(metric.name)
    if words and any(_plain(other.name) == plain for other in metrics if other is not metric):  # the total of these
        plain += f"_by_{'_'.join(words)}"
    return plain, _help(metric), {_OWN.get(word, word): text for word, text in words.items()}


def _plain(name: str) -> str:
    literal = re.sub(r"\{\w+\}", "", name).replace("@", "_at_")
    return PREFIX + re.sub(r"\W+|_+", "_", literal).strip("_")


def _help(metric: Metric) -> str:
    return f"{metric.unit}: {metric.says}".replace("`", "")


def _by(name: str, says: str, label: str, values: dict[str, Any]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(PREFIX + name, says, labels=[label])
    for text, value in values.items():
        family.add_metric([text], value)
    return family
