"""The engines, the weights on their way to them, and the router before them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from miles_async.config.schema.section import CountFloat, CountInt, PositiveFloat, PositiveInt, Section, Share


class Engine(Section, frozen=True):
    # "embedded" (this program's own), "sglang" (servers that the run starts), "external" (servers that somebody else has
    # started), or a path to a class of yours (engines/kinds/base.py)
    kind: str = "embedded"
    num_engines: PositiveInt = 2  # of those that the run starts
    urls: list[str] = []  # the servers of engine.kind = "external"
    max_running_requests: PositiveInt = 256  # that an engine generates for at once
    # tokens of prompt and response; None: the model's; say so where external servers have less
    context_length: PositiveInt | None = None
    tp_size: PositiveInt = 1  # tensor-parallel ranks of one sglang server; Miles: rollout_num_gpus_per_engine
    args: list[str] = []  # further flags of the sglang server
    # for a model to be built or a server to answer; one of engine.kind = "sglang" has as much longer as other processes make it
    # wait for a core
    start_timeout_s: PositiveFloat = 180.0
    # a server that shows no sign of life for so long is hung: one of engine.kind = "sglang" is killed and replaced, one of
    # "external" is on record; None: twice weights.timeout_s, since a server stands still while it takes weights
    hang_timeout_s: PositiveFloat | None = None
    api_key: str | None = None  # what engines ask for; "env:NAME" takes it from the environment


class Weights(Section, frozen=True):
    # "collective", "disk", "disk_delta" (what has changed goes through a directory, for engines on machines that no collective
    # reaches), or a path to a class of yours (weights/transports/base.py)
    transport: str = "collective"
    backend: Literal["auto", "gloo", "nccl"] = "auto"  # of the collective; "auto": by the device
    bucket_mb: PositiveInt = 256  # of one broadcast; over gloo an engine keeps host memory for two of them
    # what becomes of requests under way: their cache is made again, stays, or they are aborted
    pause_mode: Literal["retract", "in_place", "abort"] = "retract"
    update_waves: PositiveInt = 2  # engines are updated in so many waves, so that some always generate
    update_interval: PositiveInt = 1  # steps between two updates
    timeout_s: PositiveFloat = 60.0  # deadline for one engine and version
    # versions between two comparisons of the engines' checksums; one that differs is out until a full update has made it
    # right; None: never. A check holds an engine up for as long as it takes to hash its weights.
    check_interval: PositiveInt | None = None
    export_function: str | None = None  # what the learner's tensors go through on their way into a snapshot
    # where the learner leaves weights; None: memory (/dev/shm) where it has room, else the run directory
    snapshot_dir: str | None = None
    # of "disk_delta": a directory that the learner's machine and the engines' share; None: the run directory has it
    delta_dir: str | None = None
    # of "disk_delta": where, on its own machine, an engine's full copy lies; None: as snapshot_dir
    mirror_dir: str | None = None


class Router(Section, frozen=True):
    kind: Literal["builtin", "sglang"] = "builtin"  # "sglang": the package sglang-router as a child process
    args: list[str] = []  # further flags of sglang-router
    host: str = "127.0.0.1"  # address to listen on
    port: Annotated[int, Meta(ge=0, le=65535)] = 0  # to listen on; 0: any free one
    health_interval_s: PositiveFloat = 5.0  # between two health checks of an engine
    health_failures: PositiveInt = 3  # health checks in a row with which an engine is out
    # consistent_hash: requests with the same x-routing-key go to the same engine, as far as its load allows
    policy: Literal["least_inflight", "power_of_two", "consistent_hash"] = "least_inflight"
    max_retries: CountInt = 3  # at other engines; those where nobody listens any more do not count
    # an engine that fails so many requests in a row (no answer, a torn one, 5xx) gets none for a while
    breaker_failures: PositiveInt = 5
    breaker_open_s: CountFloat = 10.0  # after so long one request shows whether it serves again
    # each so many seconds the router looks at what the engines do: tokens, versions
    suspect_interval_s: PositiveFloat = 2.0
    # one that gives each of its requests fewer tokens a second than this share of the others' median, in slow_looks looks in
    # a row, gets no requests until it is faster; 0: none is too slow
    slow_share: Share = 0.2
    slow_looks: PositiveInt = 5  # looks in a row that say so
    # one that gives nothing for what it has in flight for so long, while others do, gets none until it answers; below
    # run.watchdog_s, or that speaks first
    hung_s: PositiveFloat = 30.0
    max_concurrency: PositiveInt | None = None  # requests in flight and waiting; further ones get 429 and Retry-After
    api_key: str | None = None  # what the router asks clients for; "env:NAME" takes it from the environment
    # what it asks for where engines are changed (workers, weights, pauses, caches, all requests); None: only processes of
    # the run may, which find a key of their own on the bus
    admin_key: str | None = None
    # where engines that are not the run's may be added by hand: "HOST:PORT", each exactly or "*" (in a host: one part between
    # dots), or "NETWORK/BITS:PORT"; the run's own need no such line
    allowed_engines: list[str] = []
    max_body_mb: PositiveInt = 64  # greatest size of one request
