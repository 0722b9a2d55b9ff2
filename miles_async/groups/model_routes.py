"""What the samples of a model carry of its experts, told from its ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miles_async.groups.routes import RouteShape
from miles_async.models.hf_config import completed
from miles_async.models.mixtures import experts_of
from miles_async.models.support import ModelError, read_config_json


def route_shape(config: Mapping[str, Any]) -> RouteShape:
    """Of the mixture of experts with this ``config.json``, complete (hf_config.completed). Raises ModelError: it is none."""
    if not (experts := experts_of(dict(config))):
        raise ModelError(f"no experts can be replayed: {config.get('model_type')!r} is a dense model")
    layers, top_k = config["num_hidden_layers"], config["num_experts_per_tok"]
    return RouteShape(layers, top_k, experts, dense=config.get("first_k_dense_replace") or 0)


def routes_of_model(directory: str | Path) -> RouteShape:
    """The same of the model whose files lie there. Raises ModelError: it is none, or has no config.json."""
    return route_shape(completed(read_config_json(directory)))
