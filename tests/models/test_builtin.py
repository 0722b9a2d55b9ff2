"""The checkpoints and prompts made here are ordinary ones, and the same for the same seed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from miles_async.config.schema import Data, Model, RunConfig
from miles_async.data import load_prompts
from miles_async.models import builtin
from miles_async.text.tokenizer import Tokenizer

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("name", "parameters"), [("builtin:digits", 75_136), ("builtin:guess", 75_136), ("builtin:words", 804_096)]
)
def test_transformers_loads_the_checkpoint_whole(tmp_path: Path, name: str, parameters: int) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    builtin.make_model(name, tmp_path, seed=3)
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    model, report = loaded
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    architecture = builtin.MODELS[name]
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert model.num_parameters() == parameters
    assert model.config.rope_parameters["rope_theta"] == architecture.rope_theta
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(architecture.init_std, rel=0.1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (1, 0, len(architecture.vocab))
    assert model.generate(torch.tensor([[3, 4]]), max_new_tokens=2).shape[0] == 1


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def digest(directory: str, seed: int) -> dict[str, str]:
        builtin.make_model("builtin:digits", tmp_path / directory, seed)
        return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (tmp_path / directory).iterdir()}

    first, again, other = digest("a", 1), digest("b", 1), digest("c", 2)
    assert first == again
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}


def test_a_token_is_a_character_and_padding_stays_visible(tmp_path: Path) -> None:
    builtin.make_model("builtin:digits", tmp_path, seed=0)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.vocab_size == 16
    assert tokenizer.encode("7>5>") == [10, 2, 8, 2]
    assert tokenizer.decode([10, 0, 10, 15, 1]) == "7_7\ue002"  # one character each, the end of sequence none
    assert tokenizer.eos_token_ids == (1,)


@pytest.mark.parametrize(("name", "count"), [("builtin:repeat", 60), ("builtin:repeat9", 90)])
def test_the_repeat_prompts_are_distinct_and_known_to_the_tokenizer(tmp_path: Path, name: str, count: int) -> None:
    builtin.make_model("builtin:digits", tmp_path, seed=0)
    config = RunConfig(model=Model(hf_checkpoint="builtin:digits"), data=Data(prompt_data=name))
    prompts = load_prompts(config, Tokenizer(tmp_path))
    assert len({prompt.text for prompt in prompts}) == len(prompts) == count
    assert all(len(prompt.tokens) == 4 and prompt.tokens.min() >= 2 for prompt in prompts)
    assert all(prompt.label == prompt.text[0] * int(prompt.text[2]) for prompt in prompts)
    assert [(row["input"], row["label"]) for row in builtin.prompt_rows(name)] == [
        (prompt.text, prompt.label) for prompt in prompts
    ]


def test_words_holds_any_english_prompt(tmp_path: Path) -> None:
    builtin.make_model("builtin:words", tmp_path, seed=0)
    tokenizer = Tokenizer(tmp_path)
    text = 'Sort "a, B, c_d" (descending)!\nThen: {x} ~ 100% & `done`\\ # @ ^ | ; <tag> $5 [0]'
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("naïve")) == "na\ufffdve"
