"""What follows a turn with calls is what the template puts there; a template that cannot be continued is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from tool_templates import EOS, QWEN, with_template

from miles_async.rollout.tool_turn import MARK, TemplateError, check_template, tool_turn_tokens
from miles_async.text.tokenizer import Tokenizer


def test_what_follows_a_turn_is_what_the_template_puts_there_and_its_end_is_not_repeated(
    words: Path, tmp_path: Path
) -> None:
    tokenizer = with_template(words, tmp_path / "model", QWEN)
    answers = [("a", "first"), ("b", "second")]
    rest = "\n[user\n<tool_response>\nfirst\n</tool_response>\n<tool_response>\nsecond\n</tool_response><eos>\n[assistant\n"
    x = tokenizer.encode("x")[0]
    assert tool_turn_tokens(tokenizer, answers, last=EOS) == tokenizer.encode(rest)
    assert tool_turn_tokens(tokenizer, answers, last=x) == [EOS, *tokenizer.encode(rest)]
    # the same as the template makes of the whole conversation
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}]
    before = tokenizer.render_chat(talk, add_generation_prompt=False).partition("</think>\n\n")[2]
    assert before == "x<eos>\n"
    whole = tokenizer.render_chat([*talk, *({"role": "tool", "content": text} for _, text in answers)])
    assert whole.endswith("x<eos>" + rest)


def test_the_builtin_template_can_be_continued(words: Path) -> None:
    tokenizer = Tokenizer(words)
    told = tool_turn_tokens(tokenizer, [("t", "42")], last=EOS)
    assert tokenizer.decode(told) == "\ntool: 42\nassistant: "


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (
            "{% for m in messages %}{{ m.role + m.content }} of {{ messages|length }}{% endfor %}",
            "the messages before it",
        ),
        ("{% for m in messages if m.role != 'tool' %}{{ m.role + m.content }};{% endfor %}", "leaves out messages"),
        (
            "{% for m in messages %}{{ m.content }}{% if loop.last and m.role == 'assistant' %}<eos>{% else %};{% endif %}"
            "{% endfor %}",
            "ends differently when a tool's message follows",
        ),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "0 times, not once"),
        ("{% for m in messages %}{{ m.content + m.content }}{% endfor %}", "2 times, not once"),
        ("{{ raise_exception('no tools here') }}", "no tools here"),
    ],
)
def test_a_template_that_cannot_be_continued_is_refused_in_one_line(
    words: Path, tmp_path: Path, template: str, says: str
) -> None:
    tokenizer = with_template(words, tmp_path / "model", template)
    with pytest.raises(TemplateError, match=says) as error:
        check_template(tokenizer)
    assert "\n" not in str(error.value) and "multi_turn" in str(error.value) and MARK not in str(error.value)
