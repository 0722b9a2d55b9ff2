"""``rollout.routing_replay``: what a launch refuses of it, and which groups of such a run can be trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launching import write_config
from sound_groups import LIMITS, changed, sound

from bus.codec import TOKENS
from bus.messages import Group
from miles_async.cli.load import load
from miles_async.config.schema import ConfigError, RunConfig
from miles_async.groups.limits import group_limits
from miles_async.groups.routes import RouteShape
from miles_async.groups.sound import Limits, UnsoundGroup, check_group
from miles_async.models.builtin import shape_of

DENSE = shape_of("builtin:digits")
MIXTURE = {**DENSE, "model_type": "qwen3_moe", "num_experts": 300, "num_experts_per_tok": 4}
SHAPE = RouteShape(layers=2, top_k=4, experts=300)
LARGE = {"num_hidden_layers": 48, "num_experts_per_tok": 8, "num_experts": 128, "max_position_embeddings": 40_960}
OWN_ENGINE = """
from miles_async.engines.kinds.base import EngineKind

class Mine(EngineKind):
    async def host(self, host): ...
"""


def loaded(directory: Path, model: dict[str, Any], *overrides: str) -> RunConfig:
    """The configuration of a run with this model that replays routes."""
    (directory / "config.json").write_text(json.dumps(model))
    (directory / "model.safetensors").touch()
    (directory / "mine.py").write_text(OWN_ENGINE)
    config = write_config(directory, model={"hf_checkpoint": str(directory)})
    return load(config, ["rollout.routing_replay=true", *overrides])


@pytest.mark.parametrize(
    ("model", "overrides", "why"),
    [
        (DENSE, [], r"model.hf_checkpoint = .* 'qwen3' is a dense model"),
        (DENSE, ["learner.train_backend=fsdp"], r'needs learner.train_backend = "megatron"'),
        (MIXTURE, ["router.kind=sglang"], r'needs router.kind = "builtin": "sglang" leaves out'),
        (
            MIXTURE,
            ["engine.kind=mine.py:Mine"],
            r'engine.kind = ".*mine.py:Mine" does not say that it can return routes',
        ),
        (
            MIXTURE | LARGE,
            ["rollout.n_samples_per_prompt=32"],
            r"32 x 40960 tokens .* x 48 layers x 8 experts x 1 bytes = 503316480 bytes .* at most 268435456",
        ),
        (
            MIXTURE | LARGE,
            ["rollout.n_samples_per_prompt=4"],
            r"an answer to 4 samples may have 40960 tokens .* x 16/3 bytes = 335544320 bytes .*request_per_sample = true",
        ),
        (MIXTURE, ["rollout.rollout_function=sft"], "rollout.routing_replay = True has no effect"),
    ],
)
def test_a_replay_that_cannot_be_is_refused_at_launch(
    model: dict[str, Any], overrides: list[str], why: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        loaded(tmp_path, model, *overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        (MIXTURE, []),
        (MIXTURE, ["engine.kind=sglang"]),
        (MIXTURE | LARGE, ["rollout.n_samples_per_prompt=4", "rollout.request_per_sample=true"]),
        (MIXTURE | LARGE, ["rollout.n_samples_per_prompt=4", "engine.context_length=4096"]),
        (MIXTURE | LARGE, ["rollout.n_samples_per_prompt=32", "data.rollout_max_prompt_len=1000"]),
    ],
)
def test_one_that_can_be_is_a_run(model: dict[str, Any], overrides: list[str], tmp_path: Path) -> None:
    config = loaded(tmp_path, model, *overrides)
    shape = group_limits(config, tmp_path).routes
    assert shape is not None
    assert (shape.layers, shape.top_k, shape.experts) == tuple(
        model[name] for name in ("num_hidden_layers", "num_experts_per_tok", "num_experts")
    )


def routed(seed: int) -> Group:
    """A sound group whose samples have routes."""
    group, rng = sound(seed), np.random.default_rng(seed)
    for place, sample in enumerate(group.samples):
        tokens = len((sample.prompt_tokens or group.prompt_tokens) + sample.tokens) // TOKENS.itemsize
        ranks = rng.random((tokens - 1, SHAPE.layers, SHAPE.experts)).argsort(-1)
        group = changed(group, place, routes=SHAPE.pack(ranks[..., : SHAPE.top_k]))
    return group


ROUTED = Limits(**{name: getattr(LIMITS, name) for name in LIMITS.__slots__} | {"routes": SHAPE})


@given(
    st.integers(0, 50),
    st.integers(0, 2),
    st.sampled_from(["none", "fewer", "more", "odd", "outside", "twice"]),
    st.data(),
)
def test_a_group_is_trained_only_with_a_row_for_each_token_but_the_last_of_experts_that_there_are(
    seed: int, place: int, damage: str, data: st.DataObject
) -> None:
    group = routed(seed)
    routes = bytearray(group.samples[place].routes)
    at = data.draw(st.integers(0, len(routes) // 2 - 1)) * 2
    match damage:
        case "fewer" | "odd":
            del routes[at if damage == "fewer" else at + 1 :]
        case "more":
            routes += routes[: SHAPE.row_bytes]
        case "outside":
            routes[at : at + 2] = data.draw(st.integers(SHAPE.experts, 2**16 - 1)).to_bytes(2, "little")
        case "twice":
            row = at // 8 * 8
            routes[row : row + 2] = routes[row + 2 * data.draw(st.integers(1, 3)) :][:2]
    made = changed(group, place, routes=bytes(routes))
    check_group(made, LIMITS)  # of a run that replays nothing
    if damage == "none":
        check_group(made, ROUTED)
        return
    with pytest.raises(UnsoundGroup, match=f"sample {group.samples[place].index}: ") as caught:
        check_group(made, ROUTED)
    assert caught.value.reason == "invalid_routes" and "\n" not in str(caught.value)


def test_a_function_that_leaves_the_routes_out_is_told_so() -> None:
    with pytest.raises(UnsoundGroup, match=r"sample 0: no experts came with it"):
        check_group(changed(routed(1), 0, routes=b""), ROUTED)


def test_what_is_packed_comes_back_and_what_does_not_fit_is_refused() -> None:
    routes = np.arange(16, dtype=np.int32).reshape(2, 2, 4) * 19
    assert SHAPE.unpack(SHAPE.pack(routes)).tolist() == routes.tolist() and SHAPE.row_bytes == 16
    for wrong, why in ((routes[:, :1], "shape"), (routes + 200, r"not in 0..299: 200..485"), (-routes, "not in")):
        with pytest.raises(ValueError, match=why):
            SHAPE.pack(wrong)
    with pytest.raises(ValueError, match="17 bytes of routes, 16 a token"):
        SHAPE.unpack(bytes(17))
