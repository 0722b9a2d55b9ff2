"""What an actor can wait for: one table, from which the sentence for people and whom the wait is for are derived.

Promises: a kind's ``sentence`` has a place for each thing that a wait of this kind tells (``{step}``, ...), and ``{targets}``
where it names actors; ``roles`` are those that the wait is for where it names nobody (none: something outside of the actors,
a disk or a function); ``is_start``: it may last for ``engine.start_timeout_s``, and is no stall until then.
"""

from __future__ import annotations

from enum import StrEnum
from string import Formatter

SERVING = ("broadcaster", "engine")  # who brings an engine to a version
ANSWERING = ("router", "engine")  # who answers a request


class WaitKind(StrEnum):
    """The name of a kind, as it travels, with its sentence and what the diagnosis has to know of it."""

    sentence: str
    roles: tuple[str, ...]
    is_start: bool
    fields: frozenset[str]  # what a wait of this kind tells beside its targets

    def __new__(cls, name: str, sentence: str, roles: tuple[str, ...] = (), is_start: bool = False) -> WaitKind:
        kind = str.__new__(cls, name)
        kind._value_ = name
        kind.sentence, kind.roles, kind.is_start = sentence, roles, is_start
        kind.fields = frozenset(place for _, place, _, _ in Formatter().parse(sentence) if place) - {"targets"}
        return kind

    # the dealer
    ENGINE_TO_SERVE = "engine_to_serve", "an engine to serve", SERVING
    VERSION_TO_SERVE = "version_to_serve", "engines to serve version {version} (serving {serving})", SERVING
    STEP = "step", "the learner to take step {step}", ("learner",)
    ROOM_TO_DEAL = "room_to_deal", "room in Redis ({used} of {limit} MB used)"

    # rollout workers
    TICKET = "ticket", "the dealer for a ticket", ("dealer",)
    ROUTER_ADDRESS = "router_address", "the router's address", ("router",)
    ROUTER = "router", "the router, or an engine behind it", ANSWERING
    SLOT = "slot", "engines to finish a sample", ANSWERING
    GENERATION = "generation", "engines to generate", ANSWERING
    TEACHER = "teacher", "the teacher"
    REWARD = "reward", "the reward function"

    # the router
    TOKEN = "token", "{targets} ({requests} requests in flight)", ("engine",)
    ENGINE_UP = "engine_up", "an engine that is up ({troubles})", ("engine",)
    SGLANG_ROUTER = "sglang_router", "sglang-router to start"

    # engines
    SGLANG_SERVER = "sglang_server", "the sglang server to start", (), True
    SERVER = "server", "the server at {url}"

    # the learner
    MODEL = "model", "the model to be built", (), True
    CHECKPOINTS = "checkpoints", "the checkpoints in {root} to be verified"
    GROUPS = "groups", "groups for step {step}", ("rollout",)
    BATCH = "batch", "rank 0 to batch step {step}", ("learner",)
    CHECKPOINT = "checkpoint", "checkpoint {version} to be written"

    # the broadcaster
    ENGINE = "engine", "an engine", ("engine",)
    SNAPSHOT = "snapshot", "a snapshot of the learner", ("learner",)
    ANSWER = "answer", "engines {targets} to answer", ("engine",)
    COPIES = "copies", "{copied_by} of {targets} to have version {version}", ("engine",)
    UPDATE = "update", "engines {targets} to take version {version}", ("engine",)

    # the evaluator
    VERSION_TO_EVALUATE = (
        "version_to_evaluate",
        "the learner to publish a version that is to be evaluated",
        ("learner",),
    )
    EVALUATED_VERSION = "evaluated_version", "{targets} to take version {version}", ("eval_engine",)
    EVALUATION = "evaluation", "{targets} to answer {dataset} at version {version}", ("eval_engine",)

    # anybody
    ROOM = "room", "room in Redis"  # a command was refused because there is none
    REDIS = "redis", "redis"  # which answers nothing: said of everybody by those who look on
    OTHER = "other", "{what}"  # of an actor of somebody's own: in its words
