"""Prompts and tokenizer: what is read, what is refused with its line, and the order prompts are dealt in."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from miles_async.config.schema import Data, Model, Reward, RunConfig
from miles_async.data import DataError, load_prompts, order, prompt_at
from miles_async.models import builtin
from miles_async.text.tokenizer import Tokenizer, TokenizerError


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("words")
    builtin.make_model("builtin:words", directory, seed=0)
    return directory


@pytest.fixture(scope="module")
def tokenizer(words: Path) -> Tokenizer:
    return Tokenizer(words)


def config(path: Path | str, **data: Any) -> RunConfig:
    return RunConfig(model=Model(hf_checkpoint="builtin:words"), data=Data(prompt_data=str(path), **data))


def write(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines) + b"\n")
    return path


def test_rows_keep_text_tokens_label_and_metadata(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(
        tmp_path,
        {"input": "2+2=", "label": "4", "metadata": {"source": "mine"}},
        b"",
        {"input": [5, 6, 127], "label": 4},
        {"input": "a", "label": None},
    )
    needs_none = msgspec.structs.replace(config(path), reward=Reward(rm_type="random"))
    first, second, third = load_prompts(needs_none, tokenizer)
    assert (first.index, first.text, first.label, first.metadata) == (0, "2+2=", "4", {"source": "mine"})
    assert first.tokens.dtype == np.int32
    assert first.tokens.tolist() == tokenizer.encode("2+2=")
    assert (second.index, second.tokens.tolist(), second.label) == (1, [5, 6, 127], "4")
    assert third.label is None


@pytest.mark.parametrize(
    ("rm_type", "reward_key", "says"),
    [
        ("weighted_sum", None, "reward.rm_weights is empty"),
        ("remote_rm", None, "reward.rm_url is missing"),
        ("boxed_remote_rm", None, "reward.rm_url is missing"),
        ("dapo", "style", "score, acc"),
    ],
)
def test_a_row_with_a_reward_that_the_run_cannot_ask_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, rm_type: str, reward_key: str | None, says: str
) -> None:
    path = write(tmp_path, {"input": "a", "label": "b"}, {"input": "a", "label": "b", "metadata": {"rm_type": rm_type}})
    own = msgspec.structs.replace(config(path), reward=Reward(rm_type="mine.score", reward_key=reward_key))
    with pytest.raises(DataError, match=f"{path.name}:2: .*{rm_type}.*{says}"):
        load_prompts(own, tokenizer)


def test_other_keys_and_no_label(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path, {"question": "a", "info": {"x": 1}})
    (prompt,) = load_prompts(config(path, input_key="question", label_key=None, metadata_key="info"), tokenizer)
    assert (prompt.text, prompt.label, prompt.metadata) == ("a", None, {"x": 1})


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"input": "a", ', "not a JSON line"),
        (b"\xff\xfe", "not a JSON line"),
        (b"[" * 100_000, "not a JSON line"),
        (["a"], "expected a JSON object, got a list"),
        ({"prompt": "a", "label": "x"}, 'no key "input" (data.input_key); it has prompt, label'),
        ({"input": "a"}, 'no key "label"'),
        ({"input": "", "label": "x"}, "is an empty prompt"),
        ({"input": [], "label": "x"}, "is an empty prompt"),
        ({"input": 3, "label": "x"}, "not a number"),
        ({"input": [1, True], "label": "x"}, "must be text"),
        ({"input": [1, 128], "label": "x"}, "token id 128 is not in the model's vocabulary of 128"),
        ({"input": [-1], "label": "x"}, "token id -1 is not in the model's vocabulary"),
        ({"input": [10**12], "label": "x"}, "token id 1000000000000 is not"),
        ({"input": [{"role": "user", "content": "a"}], "label": "x"}, "set data.apply_chat_template = true"),
        ({"input": "a", "label": "x", "metadata": {"n": [2**70]}}, "holds an integer of more than 64 bits"),
        (b'{"input": 1e999}', "not a JSON line"),
        ({"input": "a", "label": "x", "metadata": "x"}, '"metadata" must be an object, not text'),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, tokenizer: Tokenizer, line: Any, expected: str) -> None:
    path = write(tmp_path, {"input": "fine", "label": "x"}, line)
    with pytest.raises(DataError) as caught:
        load_prompts(config(path), tokenizer)
    assert f"{path}:2: " in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_prompts_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="there is no prompt"):
        load_prompts(config(write(tmp_path, b"")), tokenizer)
    with pytest.raises(DataError, match="all 1 prompts exceed"):
        load_prompts(config(write(tmp_path, {"input": "abc", "label": "x"}), rollout_max_prompt_len=2), tokenizer)
    with pytest.raises(DataError, match="No such file"):
        load_prompts(config(tmp_path / "absent.jsonl"), tokenizer)
    with pytest.raises(DataError, match="no such built-in"):
        load_prompts(config("builtin:absent"), tokenizer)


def test_longer_prompts_are_left_out_and_indices_stay_dense(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path, *({"input": text, "label": "x"} for text in ("abcd", "ab", "abcde", "abc")))
    prompts = load_prompts(config(path, rollout_max_prompt_len=3), tokenizer)
    assert [(prompt.index, prompt.text) for prompt in prompts] == [(0, "ab"), (1, "abc")]


def test_a_chat_is_rendered_by_the_template(tmp_path: Path, tokenizer: Tokenizer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    path = write(tmp_path, {"input": messages, "label": "x"}, {"input": "Hi", "label": "x"})
    first, second = load_prompts(config(path, apply_chat_template=True), tokenizer)
    assert first.text == "system: Be brief.\nuser: Hi\nassistant: "
    assert second.text == "user: Hi\nassistant: "
    assert tokenizer.decode(first.tokens.tolist()) == first.text


def test_the_order_is_miles_and_each_epoch_visits_every_prompt() -> None:
    random.seed(7 + 3)
    expected = list(range(50))
    random.shuffle(expected)
    assert order(50, 7, 3, True) == tuple(expected)
    assert order(50, 7, 3, False) == tuple(range(50))
    for epoch in range(3):
        seen = [prompt_at(epoch * 50 + place, 50, 7, True) for place in range(50)]
        assert [e for e, _ in seen] == [epoch] * 50
        assert sorted(index for _, index in seen) == list(range(50))
    assert order(50, 7, 0, True) != order(50, 7, 1, True)


def test_tokenizer_equals_transformers(words: Path, tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(words)
    text = "What is 3 * (4 - 1)?\n\tTab, ünknown <eos> and more_"
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == reference.decode(ids)
    messages = [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "x"}]
    for prompt in (True, False):
        assert tokenizer.render_chat(messages, add_generation_prompt=prompt) == reference.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        )


TEMPLATE = """{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'bad' %}{{ raise_exception('bad role') }}{% endif %}
    {%- if loop.index0 > 5 %}{% break %}{% endif %}
{{ bos_token + '[' + message.role + '] ' }}{% generation %}{{ message.content | trim }}{% endgeneration %}
{% endfor %}
{%- if add_generation_prompt and not (enable_thinking is defined and not enable_thinking) %}<think>{% endif %}"""


@pytest.fixture
def templated(tmp_path: Path, words: Path) -> Path:
    for file in words.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = json.loads((tmp_path / "tokenizer_config.json").read_text())
    content["bos_token"] = {"__type": "AddedToken", "content": "<eos>", "special": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    return tmp_path


def test_templates_of_real_checkpoints_render_as_in_transformers(templated: Path) -> None:
    from transformers import AutoTokenizer

    messages = [{"role": "user", "content": "é <b> & 'x' "}] * 8
    variables: dict[str, Any] = {"tools": [{"type": "function", "function": {"name": "é"}}], "enable_thinking": True}
    ours = Tokenizer(templated).render_chat(messages, **variables)
    theirs = AutoTokenizer.from_pretrained(templated).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, **variables
    )
    assert ours == theirs


def test_a_template_can_refuse_but_not_reach_python(templated: Path) -> None:
    with pytest.raises(TokenizerError, match="bad role"):
        Tokenizer(templated).render_chat([{"role": "bad", "content": ""}])
    (templated / "chat_template.jinja").write_text("{{ messages.__class__.__mro__[-1].__subclasses__() }}")
    with pytest.raises(TokenizerError, match="unsafe"):
        Tokenizer(templated).render_chat([])
    (templated / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(TokenizerError, match="chat template of"):
        Tokenizer(templated).render_chat([])


def test_a_directory_without_tokenizer_or_template_is_refused(tmp_path: Path, templated: Path) -> None:
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json"):
        Tokenizer(tmp_path / "absent")
    (templated / "chat_template.jinja").unlink()
    content = json.loads((templated / "tokenizer_config.json").read_text())
    del content["chat_template"]
    (templated / "tokenizer_config.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="no chat template"):
        Tokenizer(templated).render_chat([])
    (templated / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer(templated)


@pytest.mark.parametrize(
    ("generation", "model", "expected"),
    [({"eos_token_id": [1, 5]}, {}, (1, 5)), ({}, {"eos_token_id": 7}, (1, 7)), ({}, {}, (1,))],
)
def test_end_of_sequence_ids_come_from_the_checkpoint(
    templated: Path, generation: dict[str, Any], model: dict[str, Any], expected: tuple[int, ...]
) -> None:
    (templated / "generation_config.json").write_text(json.dumps(generation))
    (templated / "config.json").write_text(json.dumps({"vocab_size": 200, **model}))
    tokenizer = Tokenizer(templated)
    assert tokenizer.eos_token_ids == expected
    assert tokenizer.vocab_size == 200
