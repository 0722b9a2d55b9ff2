"""Whether a run can replay its engines' experts in the learner (``rollout.routing_replay``): asked at launch.

Promises: a model or engines that cannot, and groups whose routes would not fit into a message, are refused with one
line. Pure but for the model's ``config.json``.
"""

from __future__ import annotations

from bus.codec import MAX_MESSAGE_BYTES
from miles_async.config.schema import ConfigError, RunConfig
from miles_async.engines.client import MAX_ANSWER_BYTES
from miles_async.groups.model_routes import route_shape, routes_of_model
from miles_async.groups.routes import RouteShape
from miles_async.models import builtin
from miles_async.models.context_length import context_length
from miles_async.models.support import ModelError

KEY = "rollout.routing_replay = true"
ANSWER_BYTES = 4 * 4 / 3  # of an expert's number in an answer: base64 of int32


def check_replay(config: RunConfig, engines_return: bool) -> None:
    """Refuse a replay that cannot be. engines_return: whether this kind of engine can return routes. Raises ConfigError."""
    if not config.rollout.routing_replay:
        return
    if not engines_return:
        raise ConfigError(
            f'{KEY}: engine.kind = "{config.engine.kind}" does not say that it can return routes '
            "(EngineKind.RETURNS_ROUTES in engines/kinds/base.py)"
        )
    _check_size(config, _shape(config.model.hf_checkpoint))


def _shape(checkpoint: str) -> RouteShape:
    try:
        is_builtin = builtin.is_builtin(checkpoint)
        return route_shape(builtin.shape_of(checkpoint)) if is_builtin else routes_of_model(checkpoint)
    except ModelError as error:
        raise ConfigError(f"{KEY}: model.hf_checkpoint = {checkpoint}: {error}") from None


def _check_size(config: RunConfig, shape: RouteShape) -> None:
    """Refuse groups that no message could carry, and requests that no answer could, at the longest."""
    rollout, samples = config.rollout, config.rollout.n_samples_per_prompt
    if (tokens := _longest(config)) is None:
        return  # the checkpoint does not say how long
    group = samples * tokens * shape.row_bytes
    longest = f"{tokens} tokens (prompt and response at the longest)"
    if group > MAX_MESSAGE_BYTES:
        raise ConfigError(
            f"{KEY}: a group may have rollout.n_samples_per_prompt = {samples} x {longest} x {shape.layers} layers x "
            f"{shape.top_k} experts x {shape.dtype.itemsize} bytes = {group} bytes of routes, a message has at most "
            f"{MAX_MESSAGE_BYTES}: take fewer samples, or a smaller engine.context_length or data.rollout_max_prompt_len"
        )
    if rollout.rollout_function != "single_turn" or rollout.generate_function != "single_turn":
        return
    asked = 1 if rollout.request_per_sample else samples
    answer = int(asked * tokens * shape.layers * shape.top_k * ANSWER_BYTES)
    if answer > MAX_ANSWER_BYTES:
        raise ConfigError(
            f"{KEY}: an answer to {asked} samples may have {longest} x {shape.layers} layers x {shape.top_k} experts x 16/3 "
            f"bytes = {answer} bytes of routes, at most {MAX_ANSWER_BYTES} are read: rollout.request_per_sample = true asks "
            "for one sample at a time"
        )


def _longest(config: RunConfig) -> int | None:
    """Tokens of prompt and response together, at most; None: nobody says."""
    known = [context_length(config)]
    if config.data.rollout_max_prompt_len is not None:
        known.append(config.data.rollout_max_prompt_len + config.rollout.rollout_max_response_len)
    return min((length for length in known if length is not None), default=None)
