"""Where prompts come from: several files, a function of the user's, and what the dealer makes of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from engine_lines import set_engine

from actors.dealer import Dealer, PromptsChangedError
from actors.runtime.context import ActorContext
from actors.runtime.spec import ActorSpec
from bus import Bus, Ledger
from miles_async.config.schema import ConfigError, Data, Model, Rollout, Run, RunConfig, Staleness
from miles_async.data import DataError, Prompt, bytes_to_read, counts, fingerprint, load_prompts, prompt_at
from miles_async.hooks.hook import HookError
from miles_async.text.tokenizer import Tokenizer

SOURCE = """
import numpy as np
from miles_async.data import Prompt

def texts(config, tokenizer):
    rows = config.data.prompt_data.split(",")
    return [Prompt(i, t, np.array(tokenizer.encode(t), np.int32), t, {"i": i}) for i, t in enumerate(rows)]

def fails(config, tokenizer):
    return {}["task"]

def takes_one(config):
    return []
"""


def write(path: Path, *texts: str) -> str:
    path.write_text("".join(json.dumps({"input": text, "label": text}) + "\n" for text in texts))
    return str(path)


def of(max_lag: int = 0, **data: Any) -> RunConfig:
    return RunConfig(
        model=Model(hf_checkpoint="x"),
        data=Data(**data),
        run=Run(num_steps=50, seed=5),
        rollout=Rollout(rollout_batch_size=4, n_samples_per_prompt=2),
        staleness=Staleness(max_lag=max_lag),
    )


@pytest.fixture
def tokenizer(digits_model: Path) -> Tokenizer:
    return Tokenizer(digits_model)


@pytest.fixture
def user(tmp_path: Path) -> Callable[[str], str]:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return lambda name: f"{path}:{name}"


def test_several_sources_lie_one_behind_the_other(tmp_path: Path, tokenizer: Tokenizer) -> None:
    one, two = write(tmp_path / "one.jsonl", "1>", "2>"), write(tmp_path / "two.jsonl", "3>", "4>", "5>")
    prompts = load_prompts(of(prompt_data=[one, f"{two}@[1:]", "builtin:repeat@[:1]"]), tokenizer)
    assert [(p.index, p.source, p.text) for p in prompts] == [
        (0, 0, "1>"),
        (1, 0, "2>"),
        (2, 1, "4>"),
        (3, 1, "5>"),
        (4, 2, "0>1>"),
    ]
    assert counts(prompts) == (2, 2, 1)


def test_a_source_of_which_the_length_filter_leaves_nothing_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    short, long = write(tmp_path / "a.jsonl", "123>", "1>", "2>"), write(tmp_path / "b.jsonl", "123>", "1234>")
    prompts = load_prompts(of(prompt_data=short, rollout_max_prompt_len=3), tokenizer)
    assert [(p.index, p.text) for p in prompts] == [(0, "1>"), (1, "2>")]
    with pytest.raises(DataError, match=rf"{long}: all 2 prompts exceed data\.rollout_max_prompt_len"):
        load_prompts(of(prompt_data=[short, long], rollout_max_prompt_len=3), tokenizer)


def test_a_bad_row_that_is_too_long_is_refused_all_the_same(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"input": "1>", "label": "1"}\n{"input": "123456>"}\n')
    with pytest.raises(DataError, match=f'{path}:2: no key "label"'):
        load_prompts(of(prompt_data=str(path), rollout_max_prompt_len=3), tokenizer)


def test_as_many_weights_as_sources_are_needed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", "1>")
    with pytest.raises(DataError, match=r"data\.prompt_weights has 1 numbers for 2 sources"):
        load_prompts(of(prompt_data=[path, path], prompt_weights=[1.0]), tokenizer)


def test_a_function_of_the_users_gives_the_prompts(tokenizer: Tokenizer, user: Callable[[str], str]) -> None:
    config = of(prompt_data="1>,12>,123>", data_source=user("texts"), rollout_max_prompt_len=3)
    prompts = load_prompts(config, tokenizer)
    assert [(p.index, p.text, p.label, p.metadata) for p in prompts] == [
        (0, "1>", "1>", {"i": 0}),
        (1, "12>", "12>", {"i": 1}),
    ]
    others = load_prompts(of(prompt_data="1>,13>", data_source=user("texts")), tokenizer)
    assert fingerprint(prompts, 1) != fingerprint(others, 1)
    assert bytes_to_read(config.data) is None


def test_its_tokenizer_renders_chats_as_the_configuration_says(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "mine.jinja").write_text("{{ start }}>")
    module = tmp_path / "chat_source.py"
    module.write_text(
        SOURCE.replace("tokenizer.encode(t)", "tokenizer.encode(tokenizer.render_chat([]))"),
    )
    config = of(
        prompt_data="1>",
        data_source=f"{module}:texts",
        chat_template_path=str(tmp_path / "mine.jinja"),
        apply_chat_template_kwargs={"start": 7},
    )
    (prompt,) = load_prompts(config, tokenizer)
    assert tokenizer.decode(prompt.tokens.tolist()) == "7>"


def test_a_function_that_fails_is_named_with_its_line(tokenizer: Tokenizer, user: Callable[[str], str]) -> None:
    with pytest.raises(DataError) as caught:
        load_prompts(of(data_source=user("fails")), tokenizer)
    line = SOURCE.splitlines().index('    return {}["task"]') + 1
    path = user("fails").rpartition(":")[0]
    assert str(caught.value) == f"data.data_source = \"{user('fails')}\": KeyError: 'task' ({path}:{line})"


def test_a_function_that_is_not_there_or_takes_something_else_is_refused(
    tokenizer: Tokenizer, user: Callable[[str], str]
) -> None:
    with pytest.raises(HookError, match=r'no function "text"; did you mean "texts"\?'):
        load_prompts(of(data_source=user("text")), tokenizer)
    with pytest.raises(HookError, match=r"it must take \(config, tokenizer\)"):
        load_prompts(of(data_source=user("takes_one")), tokenizer)
    with pytest.raises(HookError, match=r'no such built-in; did you mean "files"\?'):
        load_prompts(of(data_source="file"), tokenizer)


TOKENS = np.array([3], np.int32)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "it must give a list, not NoneType"),
        ([], "there is no prompt"),
        (["3>"], "prompt 0: it must be a miles_async.data.Prompt, not str"),
        ([Prompt(1, "3", TOKENS)], "prompt 0: its index is 1"),
        ([Prompt(0, "3", TOKENS, source=1)], "prompt 0: it is of source 1"),
        ([Prompt(0, "3", TOKENS, "3"), Prompt(1, "3", TOKENS, source=2)], "prompt 1: it is of source 2 after source 0"),
        ([Prompt(0, "3", [3])], "prompt 0: its tokens must be an int32 array"),  # type: ignore[arg-type]
        ([Prompt(0, "3", TOKENS.astype(np.int64))], "prompt 0: its tokens must be an int32 array"),  # type: ignore[arg-type]
        ([Prompt(0, "3", TOKENS[:0])], "prompt 0: its tokens must be an int32 array"),
        ([Prompt(0, "3", TOKENS + 100)], "prompt 0: a token id is not in the model's vocabulary of 16"),
        ([Prompt(0, "3", TOKENS, 3)], "prompt 0: its text must be text, and its label text or None"),  # type: ignore[arg-type]
        ([Prompt(0, "3", TOKENS)], 'prompt 0: it has no label, with which its reward "graded_match" compares'),
        ([Prompt(0, "3", TOKENS, None, {"a": object()})], "prompt 0: its metadata cannot be sent"),
        ([Prompt(0, "3", TOKENS, None, {"a": 2**70})], "prompt 0: its metadata cannot be sent"),
    ],
)
def test_a_prompt_that_cannot_be_dealt_is_refused(
    tokenizer: Tokenizer, user: Callable[[str], str], given: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from miles_async.data import source

    monkeypatch.setattr(type(source.DATA_SOURCE), "load", lambda self, value: lambda config, tokenizer: given)
    with pytest.raises(DataError) as caught:
        load_prompts(of(data_source=user("texts")), tokenizer)
    assert expected in str(caught.value) and f'data.data_source = "{user("texts")}": ' in str(caught.value)


def test_the_fingerprint_of_one_source_is_as_ever_and_of_several_covers_how_they_are_dealt() -> None:
    one = [Prompt(i, "", np.array([i], np.int32)) for i in range(4)]
    digest = hashlib.blake2b(b"7", digest_size=16)
    for i in range(4):
        digest.update((1).to_bytes(8, "little") + np.array([i], np.int32).tobytes())
    assert fingerprint(one, 7) == fingerprint(one, 7, [2.0]) == digest.hexdigest()
    two = [Prompt(i, "", np.array([i], np.int32), source=i // 2) for i in range(4)]
    other = [Prompt(i, "", np.array([i], np.int32), source=i // 3) for i in range(4)]
    seen = [
        fingerprint(one, 7),
        fingerprint(two, 7),
        fingerprint(other, 7),
        fingerprint(two, 7, [1, 2]),
        fingerprint(two, 8),
    ]
    assert len(set(seen)) == len(seen)
    assert fingerprint(two, 7, [1, 2]) == fingerprint(two, 7, [1.0, 2.0])


@pytest.fixture
def dealer(bus: Bus, tmp_path: Path, digits_model: Path) -> Callable[..., Dealer]:
    """Makes dealers of two sources, of three and of five prompts."""
    one = write(tmp_path / "one.jsonl", "1>", "2>", "3>")
    two = write(tmp_path / "two.jsonl", "4>", "5>", "6>", "7>", "8>")

    def make(weights: list[float] | None = None, max_lag: int = 0) -> Dealer:
        config = of(max_lag, prompt_data=[one, two], prompt_weights=weights)
        spec = ActorSpec("dealer", "dealer", 0, "", config, tmp_path, str(digits_model), "", bus.run_id, 1)
        return Dealer(ActorContext(spec, bus))

    return make


async def test_a_dealer_that_starts_again_goes_on_in_every_source(bus: Bus, dealer: Callable[..., Dealer]) -> None:
    await set_engine(bus, "engine-0", "http://127.0.0.1:1", 1, 0, "serving")
    weights = [0.6, 0.4]
    for max_lag in (0, 1, 4):  # each time another dealer, which may deal further
        again = dealer(weights, max_lag)
        await again._check_prompts()
        await again._deal()
    ledger = Ledger(bus)
    await ledger.prepare()
    dealt = [claimed.ticket for claimed in await ledger.next_tickets("w", "w/1", 20, 60_000)]
    places = [prompt_at(position, [3, 5], 5, True, weights) for position in range(20)]
    assert [ticket.group_id for ticket in dealt] == [f"{epoch}-{index}-0" for epoch, index in places]
    assert [ticket.prompt for ticket in dealt] == [f"{index + 1}>" for _, index in places]
    assert sum(index < 3 for _, index in places) == 12
    assert len(set(places)) == 20


async def test_other_weights_than_those_dealt_by_are_refused(dealer: Callable[..., Dealer]) -> None:
    await dealer([1, 2])._check_prompts()
    with pytest.raises(PromptsChangedError, match=r"data\.prompt_weights"):
        await dealer([2, 1])._check_prompts()


def test_error_of_a_slice_names_its_key(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r'data\.prompt_data = ".*@\[x\]": expected path@\[a:b\]'):
        load_prompts(of(prompt_data=f"{tmp_path}/a.jsonl@[x]"), tokenizer)


def test_a_stop_token_that_the_model_does_not_have_is_refused_before_the_start(tokenizer: Tokenizer) -> None:
    config = msgspec.structs.replace(of(prompt_data="builtin:repeat"), rollout=Rollout(rollout_stop_token_ids=[3, 16]))
    with pytest.raises(
        DataError, match=r"rollout_stop_token_ids = \[3, 16\]: 16 is not in the model's vocabulary of 16"
    ):
        load_prompts(config, tokenizer)
