"""Adapters that nobody could have meant are refused before the start, with the key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from miles_async.cli.load import effect_rules
from miles_async.config import rules
from miles_async.config.effect import check_effect
from miles_async.config.lora import lora_of
from miles_async.config.schema import ConfigError, Data, Learner, Model, RunConfig
from miles_async.models.layout_fit import check_layout


def config(model: dict[str, Any] | None = None, **learner: Any) -> RunConfig:
    return RunConfig(
        model=Model(**{"hf_checkpoint": "builtin:digits", **(model or {})}),
        data=Data(prompt_data="builtin:repeat"),
        learner=Learner(**learner),
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"lora_rank": 4, "lora_targets": []},
            r"learner\.lora_targets = \[\] must name one or more of linear_qkv, linear_proj",
        ),
        ({"lora_rank": 4, "lora_targets": ["linear_fc1"] * 2}, r"learner\.lora_targets = \['linear_fc1', .* each once"),
        (
            {"lora_rank": 4, "lora_targets": ["linear_qvk"]},
            r"lora_targets = \['linear_qvk'\] must name one or more of linear_qkv, .* each once",
        ),
        ({"lora_rank": 4, "lora_targets": [], "train_backend": "fsdp"}, r"lora_targets = \[\] .* as q_proj, each once"),
        ({"lora_rank": 4, "model": {"model_provider": "a.b"}}, r"learner\.lora_rank = 4 .* model\.model_provider"),
    ],
)
def test_what_cannot_have_adapters_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        rules.check(config(**given))


def test_adapters_of_experts_are_refused_with_what_is_allowed(tmp_path: Path) -> None:
    sizes = {"num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 24, "intermediate_size": 48}
    mixture = sizes | {"num_experts": 4, "moe_intermediate_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(mixture))
    with pytest.raises(ConfigError, match=r"get no adapters; allowed here: linear_proj, linear_qkv$"):
        check_layout(config({"hf_checkpoint": str(tmp_path)}, lora_rank=4))


@pytest.mark.parametrize(
    ("of_model", "targets", "said"),
    [
        ({}, ["linear_kv_up_proj"], r"has not all of them; allowed here: linear_fc1, .*, linear_qkv$"),
        (
            {"model_type": "deepseek_v3", "n_routed_experts": 4},
            None,
            r"experts, .*allowed here: linear_kv_down_proj, ",
        ),
        (
            {"model_type": "deepseek_v3", "n_routed_experts": 4},
            ["linear_q_proj"],
            r" linear_kv_up_proj, linear_proj, linear_q_down_proj, linear_q_up_proj$",
        ),
        (
            {"model_type": "deepseek_v3", "n_routed_experts": 4, "q_lora_rank": None},
            ["linear_q_up_proj"],
            r" linear_kv_up_proj, linear_proj, linear_q_proj$",
        ),
    ],
)
def test_adapters_of_matrices_that_the_model_has_not_are_refused_with_those_that_it_has(
    tmp_path: Path, of_model: dict[str, Any], targets: list[str] | None, said: str
) -> None:
    sizes = {"num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 24, "intermediate_size": 48}
    (tmp_path / "config.json").write_text(json.dumps(sizes | of_model))
    with pytest.raises(ConfigError, match=said):
        check_layout(config({"hf_checkpoint": str(tmp_path)}, lora_rank=4, lora_targets=targets))


@pytest.mark.parametrize("given", [{"lora_alpha": 4.0}, {"lora_targets": ["linear_qkv"]}])
def test_a_key_of_adapters_without_any_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"learner.{next(iter(given))} .*it needs learner.lora_rank above 0"):
        check_effect(config(**given), effect_rules())


def test_the_order_of_the_targets_makes_no_other_adapters() -> None:
    ours, theirs = (
        lora_of(Learner(lora_rank=2, lora_targets=targets))
        for targets in (["linear_fc2", "linear_qkv"], ["linear_qkv", "linear_fc2"])
    )
    assert ours == theirs and ours is not None and ours.targets == ("linear_qkv", "linear_fc2")
