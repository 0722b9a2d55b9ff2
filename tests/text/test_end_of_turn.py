"""What ends a turn: the same for engines, rollouts, sessions and SFT, whichever of a checkpoint's files says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_models import ID, chat_model, chat_tokenizer, edit

from bus.codec import TOKENS, pack
from bus.messages import Ticket
from miles_async.config.schema import Rollout
from miles_async.engines.embedded.text import TextCodec
from miles_async.rollout.bounds import Bounds
from miles_async.rollout.generate import generate_group
from miles_async.rollout.sessions.conversation import Conversation
from miles_async.rollout.tool_turn import tool_turn_tokens
from miles_async.text.tokenizer import Tokenizer

IM_END, TEXT_END, EOT, EOM = ID["<|im_end|>"], ID["<|endoftext|>"], ID["<|eot_id|>"], ID["<|eom_id|>"]
ADDED = [{"role": "tool", "content": "7"}]


def test_every_file_of_a_checkpoint_has_a_say_in_what_ends_a_turn(tmp_path: Path) -> None:
    directory = chat_model(tmp_path, "chatml", eos_token="<|endoftext|>", generation=[5, EOT], model=6)
    ends = {TEXT_END, 5, EOT, 6, EOM}  # SGLang stops on <|eom_id|> whatever the files say
    assert TextCodec(directory).eos_token_ids == ends
    tokenizer = Tokenizer(directory)
    assert set(tokenizer.eos_token_ids) == ends | {IM_END}
    assert tokenizer.end_of_turn.unknown_to_engines == (IM_END,)  # the template's: requests name it
    assert tokenizer.eos_token_ids[0] == TEXT_END
    edit(directory / "special_tokens_map.json", eos_token="<|im_end|>")  # the tokenizer's own, in an older form
    assert TextCodec(directory).eos_token_ids == {IM_END, 5, EOT, 6, EOM}
    assert Tokenizer(directory).end_of_turn.unknown_to_engines == ()


def test_a_template_of_the_run_has_its_own_end(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(tmp_path / "model", "chatml")
    path = tmp_path / "mine.jinja"
    for template, expected in (
        ("{% for m in messages %}{{ m.content }} <|eot_id|>{% endfor %}", EOT),
        ("{% for m in messages %}{{ m.role }}{{ m.content }}\n{% endfor %}<|eot_id|>", EOT),
        ("{% for m in messages %}{{ m.role }}{{ m.content }}\n{% endfor %}x<|eot_id|>", None),
        ("{% for m in messages %}{{ m.role }}{{ m.content }}\n{% endfor %}", None),
        ("{{ raise_exception('no') }}", None),
    ):
        path.write_text(template)
        assert tokenizer.for_chats(path, {}).end_of_turn.template == expected
    assert tokenizer.end_of_turn.template == IM_END


async def test_an_engine_is_asked_to_stop_on_what_the_template_closes_a_turn_with(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer(tmp_path, "chatml", eos_token="<|endoftext|>", generation=TEXT_END, model=TEXT_END)
    asked: list[dict[str, Any]] = []

    async def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
        asked.extend(body["sampling_params"])
        meta = {
            "finish_reason": {"type": "stop"},
            "output_token_logprobs": [[-1.0, IM_END, None]],
            "weight_versions": [{"version": "1", "start": 0, "end": 1}],
        }
        return [{"output_ids": [IM_END], "meta_info": meta}]

    ticket = Ticket(group_id="0-0-0", prompt_tokens=pack([5, 6], TOKENS), sampling_seed=1)
    rollout = Rollout(n_samples_per_prompt=1, rollout_stop_token_ids=[9, IM_END], rollout_stop=["", "x"])
    for config, expected in ((rollout, [9, IM_END]), (Rollout(n_samples_per_prompt=1), [IM_END])):
        await generate_group(ticket, config, ask, tokenizer, Bounds.of(tokenizer))
        assert asked.pop()["stop_token_ids"] == expected
    await generate_group(ticket, rollout, ask, tokenizer)
    assert asked.pop()["stop"] == ["x"]  # an empty one would end every response at its first token


@pytest.mark.parametrize("last", ["<|im_end|>", "<|endoftext|>", "<eos>", "x"])
def test_a_turn_is_closed_once_by_whatever_the_policy_closed_it_with(tmp_path: Path, last: str) -> None:
    tokenizer = chat_tokenizer(tmp_path, "tools", eos_token="<|im_end|>", generation=[TEXT_END], model=[1])
    token = tokenizer.encode(last)[-1]
    told = tokenizer.decode(tool_turn_tokens(tokenizer, [("f", "7")], token), skip_special_tokens=False)
    rest = "\n<|im_start|>user\n<tool_response>\n7\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    assert told == ("<|im_end|>" + rest if last == "x" else rest)
    # and in a session, where the template writes the whole conversation
    conversation, asked = Conversation(tokenizer), [{"role": "user", "content": "q"}]
    begun = conversation.begin(asked, [])
    sampled = [*tokenizer.encode("said"), token]
    begun.branch.trajectory.sampled(sampled, [-1.0] * len(sampled), [0] * len(sampled))
    message = {"role": "assistant", "content": tokenizer.decode(sampled)}
    conversation.finish(begun, message, sampled, "stop")
    again = conversation.begin([*asked, message, *ADDED], [])
    assert again.branch is begun.branch  # one sequence
    whole = tokenizer.decode(again.branch.trajectory.input_ids, skip_special_tokens=False)
    assert whole.endswith("said" + last + ("<|im_end|>" + rest if last == "x" else rest))


def test_a_blank_before_the_end_does_not_close_a_turn_again(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + ' <|eot_id|>' }}{% endfor %}"
    tokenizer = chat_tokenizer(tmp_path, template, eos_token="<|eot_id|>")
    assert (
        tokenizer.decode(tool_turn_tokens(tokenizer, [("f", "7")], EOT), skip_special_tokens=False)
        == "tool: 7 <|eot_id|>"
    )


@pytest.mark.parametrize("template", ["mistral", "tools", "thinking", "llama", "chatml"])
def test_templates_of_the_field_can_be_continued_behind_a_tool(tmp_path: Path, template: str) -> None:
    tokenizer = chat_tokenizer(tmp_path, template).for_chats(None, {"date_string": "today"})
    told = tool_turn_tokens(tokenizer, [("f", "7")], tokenizer.end_of_turn.token_ids[0])
    assert "7" in tokenizer.decode(told)


def test_trained_tokens_of_a_label_end_as_the_policy_will(tmp_path: Path) -> None:
    """Llama 3.1 lists its ends as end of text, end of message, end of turn."""
    ends = chat_tokenizer(tmp_path, "llama", eos_token="<|eot_id|>", generation=[TEXT_END, EOM, EOT]).end_of_turn
    assert ends.closing(chat=True) == ends.closing(chat=False) == (EOT,)
    base = chat_tokenizer(tmp_path / "base", "chatml", eos_token="<|endoftext|>", generation=[5, TEXT_END]).end_of_turn
    assert (base.closing(chat=True), base.closing(chat=False)) == ((IM_END,), (TEXT_END,))
