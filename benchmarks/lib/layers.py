"""Which layer of a step a call stack is at work for: the table that ``bench step`` counts by.

Promises: pure; a stack belongs to the innermost of its frames that the table names, and of two names to the longer one, so
that what a library does counts for whoever of ours called it; every module and function that is named exists
(``tests/benchmarks/test_layers.py``). What no frame names is ``other``.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import FrameType
from typing import NamedTuple

OTHER = "other"
# what of the bus is no part of the ledger's work
TOPICS = ("publish", "read", "wait_for_news", "trim", "beat", "heartbeats", "engines", "fleet", "memory")
OURS = ("actors", "bus", "miles_async")

# layer -> "module" (with all below it) or "module:qualified name of a function or class"
LAYERS: dict[str, tuple[str, ...]] = {
    "codec": ("bus.codec", "bus.messages", "miles_async.groups.sound:received"),
    "ledger": (
        "bus.ledger",
        "bus.ledger_batches",
        "bus.ledger_leases",
        "bus.ledger_scripts",
        "bus.quarantine",
        "bus.snapshot_ledger",
        "bus.version_ledger",
    ),
    "topics": tuple(f"bus.client:Bus.{name}" for name in TOPICS),
    "publish": ("bus.ledger_leases:Leases.publish", "miles_async.rollout.published"),
    "events": (
        "actors.runtime.context",
        "actors.learner_report",
        "miles_async.monitor",
        "miles_async.train.log_metrics",
        "miles_async.train.reward_metrics",
    ),
    "event loop": ("actors.runtime.placement.local", "asyncio.base_events", "asyncio.streams", "selectors"),
    "supervision": ("actors.runtime", "multiprocessing", "psutil"),
    "HTTP": (
        "miles_async.http",
        "miles_async.engines.client",
        "miles_async.engines.embedded.app",
        "miles_async.engines.embedded.frontend",
        "miles_async.engines.embedded.protocol",
        "miles_async.engines.embedded.server",
        "aiohttp",
        "fastapi",
        "starlette",
        "uvicorn",
    ),
    "routing": ("miles_async.router", "actors.router"),
    "requests": ("miles_async.rollout", "actors.rollout_requests"),
    "dealing": ("miles_async.data", "actors.dealer"),
    "staleness": ("miles_async.staleness",),
    "check": ("miles_async.groups", "miles_async.filters"),
    "text": ("miles_async.text", "tokenizers", "transformers"),
    "reward": ("miles_async.rewards", "miles_async.rollout.scoring"),
    "scheduler": ("miles_async.engines.embedded",),
    "sampling": ("miles_async.engines.embedded.sampling", "miles_async.engines.embedded.sampling_params"),
    "batch assembly": (
        "actors.learner_share",
        "miles_async.train.batch",
        "miles_async.train.checked_batch",
        "miles_async.train.intake",
        "miles_async.train.minibatch",
        "miles_async.train.share",
    ),
    "forward": ("miles_async.engines.embedded.model", "megatron.core", "torch.nn.modules"),
    "loss": (
        "miles_async.rl",
        "miles_async.train.logprobs",
        "miles_async.train.objective",
        "miles_async.train.policy",
        "miles_async.train.trainer",
    ),
    "backward": ("torch.autograd:backward", "torch._tensor:Tensor.backward", "megatron.core.distributed"),
    "optimizer": (
        "megatron.core.optimizer",
        "miles_async.train.optimizer",
        "miles_async.train.schedule",
        "miles_async.train.steps",
        "torch.optim",
    ),
    "checkpoint": (
        "actors.learner_checkpoints",
        "actors.learner_saves",
        "megatron.core.dist_checkpointing",
        "miles_async.train.checkpoint",
        "miles_async.train.checksums",
        "miles_async.train.dist_save",
        "miles_async.train.model_state",
        "torch.distributed.checkpoint",
    ),
    "snapshot": (
        "actors.learner_offers",
        "miles_async.train.bridge",
        "miles_async.train.stored_trainer",
        "miles_async.weights.export",
        "miles_async.weights.place",
        "miles_async.weights.sealed",
        "miles_async.weights.snapshot",
    ),
    "push": (
        "actors.announcements",
        "actors.broadcaster",
        "miles_async.engines.checksum",
        "miles_async.engines.embedded.checkpoint",
        "miles_async.engines.embedded.control",
        "miles_async.engines.embedded.update_group",
        "miles_async.weights",
    ),
}


class Place(NamedTuple):
    """Where a call stack is: its layer, and the innermost function of ours that is on it."""

    layer: str
    function: str


class LayerTable:
    """The table, with what it has said of each code object."""

    def __init__(self, layers: dict[str, tuple[str, ...]] = LAYERS) -> None:
        names = ((name, layer) for layer, of_layer in layers.items() for name in of_layer)
        self._modules: dict[str, str] = {}
        self._functions: dict[tuple[str, str], str] = {}
        for name, layer in names:
            module, _, function = name.partition(":")
            if function:
                self._functions[module, function] = layer
            else:
                self._modules[module] = layer
        self._known: dict[object, tuple[str | None, str | None]] = {}

    def place(self, frame: FrameType | None) -> Place:
        """Of the stack whose innermost frame this is."""
        layer = function = None
        while frame is not None and (layer is None or function is None):
            of_frame, name = self._of_frame(frame)
            layer, function = layer or of_frame, function or name
            frame = frame.f_back
        return Place(layer or OTHER, function or "?")

    def layer_of(self, module: str, qualname: str) -> str | None:
        """Of a function: the longest name in the table that it lies under."""
        for end in _heads(qualname):
            if layer := self._functions.get((module, end)):
                return layer
        return next((layer for head in _heads(module) if (layer := self._modules.get(head))), None)

    def _of_frame(self, frame: FrameType) -> tuple[str | None, str | None]:
        code = frame.f_code
        known = self._known.get(code)
        if known is None:
            module = str(frame.f_globals.get("__name__", ""))
            ours = module.partition(".")[0] in OURS
            name = f"{module}:{code.co_qualname}" if ours else None
            known = self._known[code] = (self.layer_of(module, code.co_qualname), name)
        return known


def _heads(dotted: str) -> Iterable[str]:
    """``a.b.c``, ``a.b``, ``a``."""
    while dotted:
        yield dotted
        dotted = dotted.rpartition(".")[0]
