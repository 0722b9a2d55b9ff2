"""What the router and the broadcaster report: of engines, requests, and weights on their way."""

from __future__ import annotations

from miles_async.monitor.metrics.metric import Metric

ROUTER = (
    Metric("engine_busy/{engine}", "share", "of the time since the last report, when the engine had a request"),
    Metric("engine_requests_per_s/{engine}", "1/s", "requests that the engine has answered"),
    Metric("engine_running/{engine}", "samples", "that the engine generates tokens for, as it says itself"),
    Metric(
        "engine_tokens_per_s/{engine}",
        "1/s",
        "tokens that the engine generates, by its count since it was asked before; one without a count (SGLang) is believed",
    ),
    Metric("router/inflight", "requests", "at engines now"),
    Metric("router/engines_up", "engines", "that get requests"),
    Metric("router/moving", "engines", "that gave an answer or a token since the last report"),
    Metric("router/failovers", "requests", "so far, that were given to another engine"),
    Metric("router/refused", "requests", "so far, that were answered with a 4xx of the router's own"),
)

BROADCASTER = (
    Metric("weights/update_s", "s", "that bringing a wave of engines to a version took", "perf/update_weights_time"),
    Metric("weights/bytes", "bytes", "of weights that engines received in it"),
    Metric(
        "weights/delta_bytes", "bytes", "of the compressed difference (disk_delta)", "perf/update_weights_wire_bytes"
    ),
    Metric("weights/failed_engines", "engines", "that did not get the version"),
    Metric("weights/paused_s/{engine}", "s", "that the engine generated nothing for it"),
    Metric("weights/publish_s", "s", "from a version's announcement until the wave of engines served it"),
    Metric("weights/publish_lag", "versions", "that the engine furthest behind is behind the newest version"),
)
