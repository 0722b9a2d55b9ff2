"""What is learnt of a chat: every turn of the assistant's to its end, and nothing else, under the templates of the field."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from chat_models import ID, chat_tokenizer

from bus.codec import TOKENS, pack, unpack
from bus.messages import Group, Ticket
from miles_async.config.schema import Data, Model, Rollout, RunConfig
from miles_async.groups.sound import Limits, check_group
from miles_async.rollout import sft
from miles_async.rollout.interface import RolloutContext
from miles_async.rollout.learnt import Learnt, SftError, learnt
from miles_async.text.tokenizer import Tokenizer

CALL = {"type": "function", "id": "a1b2c3d4e", "function": {"name": "add", "arguments": {"a": 1}}}
TURNS = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "sure?"},
    {"role": "assistant", "content": "yes"},
]
TOOLS = [
    {"role": "user", "content": "add twice"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "one", "tool_call_id": "a1b2c3d4e"},
    {"role": "tool", "content": "two", "tool_call_id": "a1b2c3d4e"},
    {"role": "assistant", "content": "done"},
]
THOUGHTS = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nfour"},
    {"role": "user", "content": "sure?"},
    {"role": "assistant", "content": "<think>\nwell\n</think>\n\nyes"},
]
# a thought before a call is shown until the next question, and forgotten behind it
FORGOTTEN = [
    {"role": "user", "content": "add"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\ncalling"},
    {"role": "tool", "content": "one"},
    {"role": "assistant", "content": "it is one"},
    *THOUGHTS[2:],
]


def of(tokenizer: Tokenizer, messages: Any, label: str | None = None, **data: Any) -> list[Learnt]:
    config = RunConfig(model=Model(hf_checkpoint="x"), data=Data(prompt_data="x", **data))
    return learnt(config, {"messages": messages} if messages else {}, label, [5, 6], tokenizer)


def shown(tokenizer: Tokenizer, found: Learnt) -> tuple[str, list[str]]:
    """The whole text, and each piece of it that is learnt."""
    pieces: list[list[int]] = [[]]
    for token, written in zip(found.response, found.mask, strict=True):
        if written:
            pieces[-1].append(token)
        elif pieces[-1]:
            pieces.append([])
    whole = tokenizer.decode([*found.prompt, *found.response], skip_special_tokens=False)
    return whole, [tokenizer.decode(piece, skip_special_tokens=False) for piece in pieces if piece]


CALLED = '\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'


@pytest.mark.parametrize(
    ("template", "messages", "pieces"),
    [
        ("chatml", TURNS, ["four<|im_end|>", "yes<|im_end|>"]),
        ("tools", TURNS, ["four<|im_end|>", "yes<|im_end|>"]),
        ("tools", TOOLS, [CALLED.removeprefix("\n"), "done<|im_end|>"]),
        ("thinking", TURNS, ["four<|im_end|>", "<think>\n\n</think>\n\nyes<|im_end|>"]),
        ("thinking", THOUGHTS, ["four<|im_end|>", "<think>\nwell\n</think>\n\nyes<|im_end|>"]),
        ("llama", TURNS, ["four<|eot_id|>", "yes<|eot_id|>"]),
        ("llama", TOOLS, ['{"name": "add", "parameters": {"a": 1}}<|eot_id|>', "done<|eot_id|>"]),
        ("mistral", TURNS, [" four<eos>", " yes<eos>"]),
        (
            "mistral",
            TOOLS,
            ['[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}, "id": "a1b2c3d4e"}]<eos>', " done<eos>"],
        ),
        ("gemma", TURNS, ["four<end_of_turn>", "yes<end_of_turn>"]),
        ("marked", TURNS, ["four<|im_end|>", "yes<|im_end|>"]),
        ("marked", THOUGHTS, [message["content"] + "<|im_end|>" for message in THOUGHTS[1::2]]),
    ],
)
def test_every_turn_is_learnt_to_its_end_and_the_text_is_the_templates(
    tmp_path: Path, template: str, messages: Any, pieces: list[str]
) -> None:
    tokenizer = chat_tokenizer(tmp_path, template).for_chats(None, {"date_string": "today"})
    (found,) = of(tokenizer, messages)
    whole, written = shown(tokenizer, found)
    assert whole == tokenizer.render_chat(messages, add_generation_prompt=False)
    assert written == pieces
    # what stands before the first turn is what the policy would be asked with
    assert tokenizer.decode(found.prompt, skip_special_tokens=False) == tokenizer.render_chat(messages[:1])


def test_a_turn_before_which_the_policy_would_have_seen_another_text_is_a_sequence_of_its_own(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(tmp_path, "thinking")
    first, last = of(tokenizer, FORGOTTEN)
    whole, written = shown(tokenizer, first)
    assert whole == tokenizer.render_chat(FORGOTTEN[:4], add_generation_prompt=False)
    assert "hm" in whole and written == [
        "<think>\nhm\n</think>\n\ncalling<|im_end|>",
        "<think>\n\n</think>\n\nit is one<|im_end|>",
    ]
    whole, written = shown(tokenizer, last)
    assert whole == tokenizer.render_chat(FORGOTTEN, add_generation_prompt=False)
    assert "hm" not in whole and written[-1] == "<think>\nwell\n</think>\n\nyes<|im_end|>"


OPENED = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant><|python_tag|>\n' }}{% endif %}"
)


def test_a_template_may_open_a_thought_that_the_chat_does_not_have(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(tmp_path, OPENED)
    (found,) = of(tokenizer, TURNS)
    assert shown(tokenizer, found)[1] == ["four<eos>", "yes<eos>"]


@pytest.mark.parametrize(
    ("template", "messages", "says"),
    [
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
            TURNS,
            "does not show where message 3",
        ),
        (
            "{% for m in messages %}{{ m.role + m.content }}{% endfor %}",
            TURNS[1:2],
            "nothing before the assistant's first",
        ),
        ("chatml", [{"role": "user", "content": "a"}], "neither an assistant's message nor a label"),
        ("chatml", [*TURNS, {"role": "critic", "content": "a"}], "unknown role 'critic'"),
        ("gemma", [*TURNS, TURNS[1]], "roles must alternate"),
    ],
)
def test_a_chat_of_which_nothing_can_be_learnt_is_refused_in_one_line(
    tmp_path: Path, template: str, messages: Any, says: str
) -> None:
    with pytest.raises(SftError, match=says) as error:
        of(chat_tokenizer(tmp_path, template), messages)
    assert "\n" not in str(error.value)


def test_a_label_ends_as_the_policy_will_end_its_answer(tmp_path: Path) -> None:
    ends = {"eos_token": "<|endoftext|>", "generation": [5, ID["<|eom_id|>"]], "model": 5}
    tokenizer = chat_tokenizer(tmp_path, "chatml", **ends)
    (found,) = of(tokenizer, TURNS[:1], "four")
    assert shown(tokenizer, found) == (
        tokenizer.render_chat(TURNS[:2], add_generation_prompt=False),
        ["four<|im_end|>"],
    )
    for chat, end in ((True, "<|im_end|>"), (False, "<|endoftext|>")):
        (found,) = of(tokenizer, None, "four", apply_chat_template=chat)
        assert found == Learnt([5, 6], tokenizer.encode("four" + end), [1] * 5)


@pytest.mark.parametrize(
    ("messages", "label", "lengths"),
    [(FORGOTTEN, None, None), (None, "x" * 3000, [2046])],  # a context of 2048, of which the prompt takes 2
)
async def test_what_is_learnt_is_sound_and_fits_the_context(
    tmp_path: Path, messages: Any, label: str | None, lengths: list[int] | None
) -> None:
    tokenizer = chat_tokenizer(tmp_path, "thinking")
    config = RunConfig(
        model=Model(hf_checkpoint="x"), data=Data(prompt_data="x"), rollout=Rollout(rollout_max_response_len=5000)
    )
    metadata = {"messages": messages} if messages else {}
    ticket = Ticket(
        group_id="0-0-0", prompt_tokens=pack([5, 6], TOKENS), sampling_seed=1, label=label, metadata=metadata
    )
    samples = await sft.rollout(ticket, RolloutContext(config, tokenizer, None, contextlib.AsyncExitStack()))  # type: ignore[arg-type]
    group = Group(
        group_id="0-0-0",
        prompt_tokens=ticket.prompt_tokens,
        samples=tuple(samples),
        worker="w",
        started=1.0,
        finished=1.0,
    )
    check_group(group, Limits(vocab_size=128, newest_version=0, context=2048))
    assert [sample.rollout_index for sample in samples] == [0] * (2 if messages else 1)
    if lengths is not None:
        assert [len(unpack(sample.tokens, TOKENS)) for sample in samples] == lengths
        assert samples[0].finish_reason == "length"
