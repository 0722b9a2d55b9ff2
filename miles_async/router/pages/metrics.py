"""The router's numbers in Prometheus' text form, read when somebody asks."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from miles_async.router.fleet import RouterFleet


def registry_of(router: RouterFleet) -> CollectorRegistry:
    """A registry that holds nothing else."""
    registry = CollectorRegistry()
    registry.register(_Gauges(router))
    return registry


class _Gauges(Collector):
    def __init__(self, router: RouterFleet) -> None:
        self._router = router

    def collect(self) -> Any:
        inflight = GaugeMetricFamily("router_inflight", "requests in flight", labels=["engine"])
        up = GaugeMetricFamily("router_engine_up", "1 if the engine gets requests", labels=["engine"])
        state = GaugeMetricFamily("router_engine_state", "1 for the state it is in", labels=["engine", "state"])
        version = GaugeMetricFamily("router_engine_version", "weight version announced for it", labels=["engine"])
        busy = CounterMetricFamily("router_engine_busy_seconds", "time with a request in flight", labels=["engine"])
        answered = CounterMetricFamily("router_answered", "requests answered", labels=["engine"])
        for engine in self._router.engines.values():
            inflight.add_metric([engine.name], engine.inflight)
            up.add_metric([engine.name], 0 if engine.trouble else 1)
            state.add_metric([engine.name, engine.state], 1)
            version.add_metric([engine.name], engine.version)
            busy.add_metric([engine.name], engine.busy_seconds(self._router.clock()))
            answered.add_metric([engine.name], engine.answered)
        concurrency = GaugeMetricFamily("router_concurrency", "requests that wait or are in flight")
        concurrency.add_metric([], self._router.concurrency)
        failovers = CounterMetricFamily("router_failovers", "requests given to another engine")
        failovers.add_metric([], self._router.failovers)
        refused = CounterMetricFamily("router_refused", "requests refused by the router itself", labels=["status"])
        for status, count in self._router.refusals.items():
            refused.add_metric([status], count)
        return [inflight, up, state, version, busy, answered, concurrency, failovers, refused]
