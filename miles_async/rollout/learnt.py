"""Which tokens of a prompt's own answer are learnt in supervised fine-tuning. Pure.

    a chat          what the assistant says in it, each time to the end of its turn; or, where it says nothing, the label
    any other one   the label, and an end of sequence

Promises: the tokens are those of the whole chat as its template renders it, cut only where the policy begins and ends a turn:
each piece is tokenised by itself, as it will be when the model writes it. Where a template marks what the assistant wrote
(``{% generation %}``), its marks hold. What the template forgets of an earlier turn is not there to be learnt; a turn before
which it would have shown the policy another text than the whole chat does is in a sequence of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from miles_async.config.schema import RunConfig
from miles_async.text.messages import MessageError, Messages, normalized
from miles_async.text.tokenizer import Tokenizer, TokenizerError

Span = tuple[int, int]  # of characters


class SftError(ValueError):
    """A prompt that holds nothing to learn, or an answer that cannot be told from its chat; one line."""


class Learnt(NamedTuple):
    """One sequence: token ids, and for each of the response 1 where the assistant wrote it."""

    prompt: list[int]
    response: list[int]
    mask: list[int]


def learnt(
    config: RunConfig, metadata: Mapping[str, Any], label: str | None, prompt: Sequence[int], tokenizer: Tokenizer
) -> list[Learnt]:
    """The sequences of a prompt, usually one. ``prompt``: its tokens. Raises SftError."""
    messages, tools = metadata.get("messages"), metadata.get("tools")
    if label is not None and not label.strip():
        label = None  # to write nothing is not to be learnt
    try:
        messages = normalized(messages) if messages else []
        if messages and label is not None and not _spoken(messages):
            messages.append({"role": "assistant", "content": label})
        if _spoken(messages):
            return sequences(messages, tokenizer, **({"tools": tools} if tools else {}))
    except (MessageError, TokenizerError) as error:
        raise SftError(str(error)) from None
    if label is None:
        raise SftError("there is neither an assistant's message nor a label to learn")
    tokens = [*tokenizer.encode(label), *tokenizer.end_of_turn.closing(chat=config.data.apply_chat_template)]
    return [Learnt(list(prompt), tokens, [1] * len(tokens))]


def sequences(messages: Messages, tokenizer: Tokenizer, **variables: Any) -> list[Learnt]:
    """Of a chat in which the assistant speaks: every turn of its is learnt once, in the first sequence that shows it as the
    policy would have begun it, where least of it is forgotten. Raises SftError, TokenizerError."""
    left, shown = _spoken(messages), list[tuple[dict[int, Span], str]]()
    while left:
        spans, text = _spans(messages[: left[-1] + 1], tokenizer, variables)
        if left[-1] not in spans:
            raise SftError(f"the chat template does not show where message {left[-1]} begins and ends")
        shown.append((spans, text))
        left = [number for number in left if number not in spans]
    found, done = list[Learnt](), set[int]()
    for spans, text in reversed(shown):
        found.append(_cut(text, [span for number, span in spans.items() if number not in done], tokenizer))
        done |= spans.keys()
    return found


def _spoken(messages: Messages) -> list[int]:
    return [number for number, message in enumerate(messages) if message["role"] == "assistant"]


def _spans(messages: Messages, tokenizer: Tokenizer, variables: dict[str, Any]) -> tuple[dict[int, Span], str]:
    """Where in the chat's text the assistant wrote its messages, by their numbers, those that can be told; and the text."""
    whole = tokenizer.rendered(messages, add_generation_prompt=False, **variables)
    turns = _spoken(messages)
    if whole.generated:
        if len(whole.generated) != len(turns):
            raise SftError(
                f"the chat template marks {len(whole.generated)} texts of {len(turns)} that the assistant says"
            )
        return dict(zip(turns, whole.generated, strict=True)), whole.text
    spans, done = dict[int, Span](), 0
    for number in turns:
        start = _start(messages[:number], whole.text, tokenizer, variables)
        if start is None or start < done:
            continue
        end = _end(messages[: number + 1], whole.text, start, tokenizer, variables)
        if end is not None:
            spans[number], done = (start, end), end
    return spans, whole.text


def _start(before: Messages, whole: str, tokenizer: Tokenizer, variables: dict[str, Any]) -> int | None:
    """Where the turn behind the messages ``before`` begins in the text ``whole``; None: what stands before it is not what the
    policy would have been shown."""
    asked = tokenizer.render_chat(before, **variables)
    if whole.startswith(asked):
        return len(asked)
    # they may part in the words that ask for an answer (some open a thought there), behind a token of these
    bare = tokenizer.render_chat(before, add_generation_prompt=False, **variables) if before else ""
    shown = os.path.commonprefix([asked, bare])  # noqa: RUF071 - texts, no paths
    asking = tokenizer.encode(asked[len(shown) :])
    starts = [shown + tokenizer.decode(asking[:n], skip_special_tokens=False) for n in range(len(asking) + 1)]
    return max((len(text) for text in starts if whole.startswith(text)), default=None)


def _end(upto: Messages, whole: str, start: int, tokenizer: Tokenizer, variables: dict[str, Any]) -> int | None:
    """Where the turn that begins at ``start`` ends: behind its end of turn, or, in a template without one, where the text that
    ends with the turn does."""
    ends = tokenizer.end_of_turn
    if ends.template is not None:
        place = ends.find(whole[start:])
        return None if place < 0 else len(whole) - len(ends.unclosed(whole[start + place :]))
    text = tokenizer.render_chat(upto, add_generation_prompt=False, **variables)
    return len(text) if whole.startswith(text) else None


def _cut(text: str, spans: list[Span], tokenizer: Tokenizer) -> Learnt:
    prompt, tokens, mask = tokenizer.encode(text[: spans[0][0]]), list[int](), list[int]()
    if not prompt:
        raise SftError("there is nothing before the assistant's first message")
    done = spans[0][0]
    for start, end in spans:
        for piece, written in ((text[done:start], 0), (text[start:end], 1)):
            encoded = tokenizer.encode(piece)
            tokens += encoded
            mask += [written] * len(encoded)
        done = end
    rest = tokenizer.encode(text[done:])
    if not any(mask):
        raise SftError("the assistant says nothing")
    return Learnt(prompt, tokens + rest, mask + [0] * len(rest))
