"""Experts that no model chose, as they come with a sample: those of each token are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bus.codec import TOKENS, unpack
from bus.messages import Group, Sample
from miles_async.groups.model_routes import route_shape
from miles_async.groups.routes import RouteShape
from miles_async.groups.sound import prompt_of
from miles_async.models.hf_config import completed
from miles_async.models.support import read_config_json


def shape_of(model: Path | str) -> RouteShape:
    return route_shape(completed(read_config_json(model)))


def tokens_of(group: Group, sample: Sample) -> np.ndarray[Any, Any]:
    """Prompt and response, int32."""
    return unpack(prompt_of(group, sample) + sample.tokens, TOKENS)


def with_routes(
    groups: Sequence[Group], shape: RouteShape, routes_of: Callable[[np.ndarray[Any, Any]], Any]
) -> list[Group]:
    """The groups, with the experts that ``routes_of(tokens of a sample)`` gives, [len(tokens) - 1, layers, top_k]."""
    replace = msgspec.structs.replace

    def routed(group: Group, sample: Sample) -> Sample:
        return replace(sample, routes=shape.pack(np.asarray(routes_of(tokens_of(group, sample)))))

    return [replace(group, samples=tuple(routed(group, sample) for sample in group.samples)) for group in groups]


def with_foreign_experts(groups: Sequence[Group], shape: RouteShape, seed: int = 0) -> list[Group]:
    rng = np.random.default_rng(seed)

    def drawn(tokens: np.ndarray[Any, Any]) -> Any:
        order = rng.random((len(tokens) - 1, shape.layers, shape.experts)).argsort(axis=-1)
        return order[..., : shape.top_k]

    return with_routes(groups, shape, drawn)
