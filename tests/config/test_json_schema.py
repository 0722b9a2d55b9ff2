"""What an editor is told of the configuration is what a launch takes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from miles_async.cli.load import parse
from miles_async.config.toml import dump
from miles_async.config.typed import key_types

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs" / "configuration.schema.json").read_text())
BASE = '[model]\nhf_checkpoint = "a"\n[data]\nprompt_data = "b"\n'


def troubles(text: str) -> list[str]:
    validator = jsonschema.Draft7Validator(SCHEMA)
    return [error.message for error in validator.iter_errors(tomllib.loads(text))]


EXAMPLES = ["quickstart", "sync", "arithmetic", "reasoning_gym", "guess_number", "cluster/grpo"]
EXAMPLES += ["qwen3-0.6b", "qwen3-4b", "qwen3-30b-a3b"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_valid_and_so_is_every_default(name: str) -> None:
    text = (ROOT / "examples" / f"{name}.toml").read_text()
    assert troubles(text) == []
    assert troubles(dump(parse(text, check=False))) == []


@pytest.mark.parametrize(
    "line",
    [
        "[run]\nnum_step = 3",
        "[runs]\nnum_steps = 3",
        "[run]\nnum_steps = 0",
        '[run]\nnum_steps = "many"',
        '[router]\nkind = "sgl"',
        "[engine]\nurls = 3",
        "[eval.datasets.a]\nrm_type = 'math'",
        "[rollout]\nrollout_top_p = 1.5",
        "[placement.learner]\nnum_gpu = 1",
    ],
)
def test_what_a_launch_refuses_is_marked(line: str) -> None:
    assert troubles(BASE + line) != []
    with pytest.raises(ValueError):
        parse(BASE + line, check=False)


@pytest.mark.parametrize(
    "line",
    [
        '[run]\ntarget_reward = "none"',
        "[data.apply_chat_template_kwargs]\nenable_thinking = false",
        "[learner]\nlr = 1",
    ],
)
def test_what_a_launch_takes_is_not(line: str) -> None:
    assert troubles(BASE + line) == []
    parse(BASE + line, check=False)


def test_every_key_says_what_it_is() -> None:
    def keys(inside: dict[str, Any], above: str = "") -> list[str]:
        found = []
        for name, about in inside.get("properties", {}).items():
            if "properties" in about:
                found += keys(about, f"{above}{name}.")
            else:
                assert about["description"], name
                found.append(above + name)
        return found

    tables = {key.rpartition(".")[0] for key in key_types() if key.count(".") > 1 and "NAME" not in key}
    assert set(keys(SCHEMA)) == {key for key in key_types() if key not in tables and "NAME" not in key}
