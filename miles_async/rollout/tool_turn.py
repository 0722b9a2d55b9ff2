"""The tokens that follow a turn of the policy: its end, the tools' answers, and the start of its next turn.

Promises: what the policy sampled is never tokenised again; what is appended is exactly what the checkpoint's chat template
puts behind an assistant's message, and a template that would put other things there, depending on what came before, is
refused.

The text is found by rendering a conversation whose last assistant message is a mark, and taking what follows the mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from miles_async.text.tokenizer import MARK, Tokenizer, TokenizerError

Message = dict[str, Any]

_SHORT: list[Message] = [{"role": "user", "content": "Q"}]
_SAID: list[Message] = [*_SHORT, {"role": "assistant", "content": "A"}]


class TemplateError(ValueError):
    """The chat template cannot be continued behind an assistant's message; one line."""


class _RefusedError(TemplateError):
    """The template does not take such a conversation at all."""


def tool_turn_tokens(tokenizer: Tokenizer, answers: Sequence[tuple[str, str]], last: int) -> list[int]:
    """The tokens to append behind a turn of the policy that ended with the token ``last``.

    answers: name of the tool and its text, in the order of the calls. Raises TemplateError.
    """
    check_template(tokenizer)
    text = _behind(tokenizer, _SHORT, _tool_messages(answers), add_generation_prompt=True)
    ends = tokenizer.end_of_turn
    return tokenizer.encode(ends.unclosed(text) if last in ends.token_ids else text)


@lru_cache(maxsize=8)
def check_template(tokenizer: Tokenizer) -> None:
    """Refuse a chat template that is not stable behind an assistant's message. Raises TemplateError."""
    answer = _tool_messages([("t", "B")])
    short = _behind(tokenizer, _SHORT, answer, add_generation_prompt=True)
    if _behind_more(tokenizer, answer) != {short}:
        raise _unstable(tokenizer, "what it puts behind an assistant's message depends on the messages before it")
    if not short.startswith(_behind(tokenizer, _SHORT, [], add_generation_prompt=False)):
        raise _unstable(tokenizer, "an assistant's message ends differently when a tool's message follows it")
    if "B" not in short:
        raise _unstable(tokenizer, 'it leaves out messages of the role "tool"')


def _behind_more(tokenizer: Tokenizer, after: list[Message]) -> set[str]:
    """What :func:`_behind` finds in longer conversations: of a tool and of a user, since some templates refuse one of them."""
    found, refused = set[str](), list[_RefusedError]()
    for before in ([*_SAID, *_tool_messages([("t", "B")])], [*_SAID, *_SHORT]):
        try:
            found.add(_behind(tokenizer, before, after, add_generation_prompt=True))
        except _RefusedError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    return found


def _behind(tokenizer: Tokenizer, before: list[Message], after: list[Message], *, add_generation_prompt: bool) -> str:
    """What the template renders behind the text of an assistant's message between ``before`` and ``after``."""
    messages = [*before, {"role": "assistant", "content": MARK}, *after]
    try:
        text = tokenizer.render_chat(messages, add_generation_prompt=add_generation_prompt)
    except TokenizerError as error:
        raise _RefusedError(f"multi_turn: {error}".replace("\n", " ")) from None
    if text.count(MARK) != 1:
        raise _unstable(tokenizer, f"an assistant's text is in it {text.count(MARK)} times, not once")
    return text.partition(MARK)[2]


def _tool_messages(answers: Sequence[tuple[str, str]]) -> list[Message]:
    # an id is what some templates ask for; this is one that they take
    return [
        {"role": "tool", "name": name, "content": text, "tool_call_id": f"call{number:05d}"}
        for number, (name, text) in enumerate(answers)
    ]


def _unstable(tokenizer: Tokenizer, why: str) -> TemplateError:
    return TemplateError(f"multi_turn cannot continue the chat template of {tokenizer.directory}: {why}")
