"""Prompts: read, checked and tokenized once, then addressed by their position in an endless order.

Promises: a line that cannot be used is refused with file and line number, never skipped; the prompt at a position is a
pure function of position, seed and prompt count, so a resumed run goes on exactly where the first one stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from miles_async import builtin
from miles_async.config import Data, RunConfig
from miles_async.tokenizer import Tokenizer, TokenizerError

log = logging.getLogger(__name__)


class DataError(ValueError):
    """A prompt file that cannot be used; one line with the file and, where there is one, the line number."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """One prompt. ``tokens``: int32 [n], n >= 1. ``index``: its place in the list that ``load_prompts`` gave."""

    index: int
    text: str
    tokens: npt.NDArray[np.int32]
    label: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def load_prompts(config: RunConfig, tokenizer: Tokenizer) -> list[Prompt]:
    """The prompts of ``config.data``, in file order, without those longer than ``rollout_max_prompt_len``.

    A row's ``input`` is text, a list of token ids, or (with ``apply_chat_template``) a list of messages; text is a
    single user message there. Raises DataError: no file, a malformed line, a missing key, an empty prompt, an id the
    model has no embedding for, no prompt left.
    """
    data = config.data
    prompts: list[Prompt] = []
    too_long = 0
    for place, row in _rows(data.prompt_data):
        text, tokens = _input(data, place, row, tokenizer)
        if data.rollout_max_prompt_len is not None and len(tokens) > data.rollout_max_prompt_len:
            too_long += 1
            continue
        prompts.append(
            Prompt(
                index=len(prompts),
                text=text,
                tokens=np.array(tokens, dtype=np.int32),
                label=_label(data, place, row),
                metadata=_metadata(data, place, row),
            )
        )
    if too_long:
        log.info(
            "%s: left out %d prompts of more than %s tokens", data.prompt_data, too_long, data.rollout_max_prompt_len
        )
    if not prompts:
        reason = f"all {too_long} prompts exceed data.rollout_max_prompt_len" if too_long else "there is no prompt"
        raise DataError(f"{data.prompt_data}: {reason}")
    return prompts


@lru_cache(maxsize=4)
@lru_cache(maxsize=2)  # the epoch being dealt and the one before: a permutation of all prompts is not made for each
def order(n_prompts: int, seed: int, epoch: int, shuffle: bool) -> tuple[int, ...]:
    """The permutation of ``range(n_prompts)`` in which ``epoch`` visits the prompts.

    Shuffled as in Miles (``utils/data.py``): a Mersenne Twister seeded with ``seed + epoch``.
    """
    indices = list(range(n_prompts))
    if shuffle:
        random.Random(seed + epoch).shuffle(indices)
    return tuple(indices)


def prompt_at(position: int, n_prompts: int, seed: int, shuffle: bool) -> tuple[int, int]:
    """``(epoch, index)`` of the prompt that is dealt as number ``position`` (0-based) of a run."""
    epoch, place = divmod(position, n_prompts)
    return epoch, order(n_prompts, seed, epoch, shuffle)[place]


def fingerprint(prompts: Sequence[Prompt], seed: int | None) -> str:
    """The same for the same prompts in the same order of dealing. ``seed``: of the shuffle, None without one."""
    digest = hashlib.blake2b(repr(seed).encode(), digest_size=16)
    for prompt in prompts:
        digest.update(len(prompt.tokens).to_bytes(8, "little") + prompt.tokens.tobytes())
    return digest.hexdigest()


def _rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its place for error messages, ``file:line``."""
    if builtin.is_builtin(source):
        if source not in builtin.PROMPTS:
            raise DataError(f"{source}: there is no such built-in prompt set; one of {', '.join(builtin.PROMPTS)}")
        for number, row in enumerate(builtin.prompt_rows(source), 1):
            yield f"{source}:{number}", row
        return
    try:
        with Path(source).open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{source}:{number}", _row(f"{source}:{number}", line)
    except OSError as error:
        raise DataError(f"{source}: {error.strerror}") from None


def _row(place: str, line: bytes) -> dict[str, Any]:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{place}: not a JSON line: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{place}: expected a JSON object, got {_kind(row)}")
    return row


def _input(data: Data, place: str, row: dict[str, Any], tokenizer: Tokenizer) -> tuple[str, Sequence[int]]:
    """Text and token ids of a row's prompt."""
    if data.input_key not in row:
        raise DataError(f'{place}: no key "{data.input_key}" (data.input_key); it has {", ".join(row) or "none"}')
    value = row[data.input_key]
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        if not data.apply_chat_template:
            raise DataError(f'{place}: "{data.input_key}" holds messages: set data.apply_chat_template = true')
        text, tokens = _chat(place, value, tokenizer)
    elif isinstance(value, str):
        if data.apply_chat_template and value:
            text, tokens = _chat(place, [{"role": "user", "content": value}], tokenizer)
        else:
            text, tokens = value, tokenizer.encode(value)
    elif isinstance(value, list) and all(type(item) is int for item in value):
        tokens = value
        _check_ids(place, tokens, tokenizer)  # before decoding, which would fail less clearly
        text = tokenizer.decode(tokens, skip_special_tokens=False)
    else:
        raise DataError(
            f'{place}: "{data.input_key}" must be text, a list of token ids or a list of messages, not {_kind(value)}'
        )
    if not tokens:
        raise DataError(f'{place}: "{data.input_key}" is an empty prompt')
    _check_ids(place, tokens, tokenizer)
    return text, tokens


def _chat(place: str, messages: list[dict[str, Any]], tokenizer: Tokenizer) -> tuple[str, Sequence[int]]:
    try:
        text = tokenizer.render_chat(messages)
    except TokenizerError as error:
        raise DataError(f"{place}: {error}") from None
    return text, tokenizer.encode(text)


def _check_ids(place: str, tokens: Sequence[int], tokenizer: Tokenizer) -> None:
    wrong = next((token for token in tokens if not 0 <= token < tokenizer.vocab_size), None)
    if wrong is not None:
        raise DataError(f"{place}: token id {wrong} is not in the model's vocabulary of {tokenizer.vocab_size}")


def _label(data: Data, place: str, row: dict[str, Any]) -> str | None:
    """The label as text; a number, list or table becomes its JSON."""
    if data.label_key is None:
        return None
    if data.label_key not in row:
        raise DataError(f'{place}: no key "{data.label_key}" (data.label_key; "none" where prompts have no label)')
    value = row[data.label_key]
    return value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False)


def _metadata(data: Data, place: str, row: dict[str, Any]) -> dict[str, Any]:
    value = row.get(data.metadata_key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(f'{place}: "{data.metadata_key}" must be an object, not {_kind(value)}')
    try:
        msgspec.msgpack.encode(value)  # what a ticket will do with it
    except OverflowError:
        raise DataError(
            f'{place}: "{data.metadata_key}" holds an integer of more than 64 bits: write it as text'
        ) from None
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")
