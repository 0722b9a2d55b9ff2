"""Where a run's prompts come from: files, or a function of the user's; checked in the same way before anything is dealt.

Promises: what comes out is what the dealer, a dry run and the launch see alike; a prompt that cannot be dealt is refused in
one line, and so is a source of which no prompt is left.
"""

from __future__ import annotations

import hashlib
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from miles_async.config.schema import Data, RunConfig
from miles_async.data.fitting import Loaded, short_enough
from miles_async.data.prompt import DataError, Prompt
from miles_async.data.rows import plain, sources, split_slice
from miles_async.data.usable import fault
from miles_async.hooks.faults import words
from miles_async.hooks.hook import Hook
from miles_async.models.builtin import is_builtin
from miles_async.models.context_length import context_length
from miles_async.text.messages import MessageError, normalized
from miles_async.text.tokenizer import Tokenizer

FILES = "files"

DATA_SOURCE = Hook(
    "data.data_source",
    ("config", "tokenizer"),
    returns="a list of Prompt; index i at place i, the prompts of source 0 first, the same list at every call",
    default=FILES,
    built_in={FILES: "miles_async.data.files.files"},
)


def load_prompts(config: RunConfig, tokenizer: Tokenizer) -> list[Prompt]:
    """The prompts of :func:`load_counted`."""
    return load_counted(config, tokenizer).prompts


def load_counted(config: RunConfig, tokenizer: Tokenizer) -> Loaded:
    """What ``config.data.data_source`` gives, without the prompts longer than ``rollout_max_prompt_len`` and those that leave
    no room for a response.

    The source is handed the tokenizer with the chat template and its variables that ``config.data`` asks for. Raises
    DataError (a prompt that cannot be used, a source without any, as many weights as there are not sources), HookError.
    """
    data = config.data
    (source,) = DATA_SOURCE.functions(config)
    tokenizer = tokenizer.for_chats(data.chat_template_path, data.apply_chat_template_kwargs)
    _check_stops(config.rollout.rollout_stop_token_ids, tokenizer)
    if data.data_source == FILES:
        prompts = source(config, tokenizer)
    else:
        prompts = _checked(config, _called(data, source, config, tokenizer), tokenizer)
    names = sources(data) if data.data_source == FILES else (f'data.data_source = "{data.data_source}"',)
    context = context_length(config, tokenizer.directory)
    kept = short_enough(prompts, names, data.rollout_max_prompt_len, context)
    n_sources = len(counts(kept.prompts))
    if data.prompt_weights is not None and len(data.prompt_weights) != n_sources:
        raise DataError(f"data.prompt_weights has {len(data.prompt_weights)} numbers for {n_sources} sources")
    return kept


def _check_stops(ids: list[int], tokenizer: Tokenizer) -> None:
    """Refuse stop tokens that no engine would be sent; only here the vocabulary is known. Raises DataError."""
    wrong = [token for token in ids if not 0 <= token < tokenizer.vocab_size]
    if wrong:
        raise DataError(
            f"rollout.rollout_stop_token_ids = {ids}: {wrong[0]} is not in the model's vocabulary of {tokenizer.vocab_size}"
        )


def counts(prompts: Sequence[Prompt]) -> tuple[int, ...]:
    """The number of prompts of each source."""
    return tuple(Counter(prompt.source for prompt in prompts).values())  # in the order in which they are met


def fingerprint(prompts: Sequence[Prompt], seed: int | None, weights: Sequence[float] | None = None) -> str:
    """The same for the same prompts in the same order of dealing. ``seed``: of the shuffle, None without one."""
    digest = hashlib.blake2b(repr(seed).encode(), digest_size=16)
    for prompt in prompts:
        digest.update(len(prompt.tokens).to_bytes(8, "little") + prompt.tokens.tobytes())
    if len(of_each := counts(prompts)) > 1:  # one source is dealt alike whatever its weight
        digest.update(repr((of_each, weights and [float(weight) for weight in weights])).encode())
    return digest.hexdigest()


def bytes_to_read(data: Data) -> int | None:
    """The size of the files of ``data.prompt_data``, in bytes; None where a function of the user's gives the prompts.

    Raises OSError: a file is not there.
    """
    if data.data_source != FILES:
        return None
    paths = [split_slice(source)[0] for source in sources(data)]
    return sum(Path(path).stat().st_size for path in paths if not is_builtin(path))


def _called(data: Data, source: Any, config: RunConfig, tokenizer: Tokenizer) -> Any:
    try:
        return source(config, tokenizer)
    except (DataError, KeyboardInterrupt):  # the latter is Ctrl-C: this also runs in a launch
        raise
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{words(error)} ({last.filename}:{last.lineno})"
        raise DataError(f'data.data_source = "{data.data_source}": {reason}') from error


def _checked(config: RunConfig, prompts: Any, tokenizer: Tokenizer) -> list[Prompt]:
    """What a function of the user's gave, if it can be dealt. Raises DataError with the first thing that is wrong."""
    data = config.data
    if not isinstance(prompts, list | tuple):
        raise DataError(f'data.data_source = "{data.data_source}": it must give a list, not {type(prompts).__name__}')
    checked, before = list[Prompt](), 0
    for index, prompt in enumerate(prompts):
        wrong = _fault(index, prompt, before, tokenizer)
        try:
            prompt = prompt if wrong else _with_messages(prompt)
        except MessageError as error:
            wrong = str(error)
        if wrong := wrong or fault(config, prompt, tokenizer, labelled=True):
            raise DataError(f'data.data_source = "{data.data_source}": prompt {index}: {wrong}')
        checked.append(prompt)
        before = prompt.source
    return checked


def _with_messages(prompt: Prompt) -> Prompt:
    """The prompt with its messages in the form that a chat template takes. Raises MessageError."""
    given = plain(prompt.metadata.get("messages"))
    if not isinstance(given, list) or not given:
        return prompt
    return replace(prompt, metadata=prompt.metadata | {"messages": normalized(given)})


def _fault(index: int, prompt: Any, before: int, tokenizer: Tokenizer) -> str | None:
    """Why ``prompt`` cannot be prompt ``index``, of which the one before is of source ``before``."""
    if not isinstance(prompt, Prompt):
        return f"it must be a miles_async.data.Prompt, not {type(prompt).__name__}"
    if prompt.index != index:
        return f"its index is {prompt.index}"
    if prompt.source not in (before, before + 1) or (index == 0 and prompt.source != 0):
        return f"it is of source {prompt.source} after source {before}: the prompts of source 0 come first, then those of 1"
    tokens = prompt.tokens
    if not isinstance(tokens, np.ndarray) or tokens.dtype != np.int32 or tokens.ndim != 1 or not len(tokens):
        return "its tokens must be an int32 array of one dimension that is not empty"
    if tokens.min() < 0 or tokens.max() >= tokenizer.vocab_size:
        return f"a token id is not in the model's vocabulary of {tokenizer.vocab_size}"
    if not isinstance(prompt.text, str) or not isinstance(prompt.label, str | None):
        return "its text must be text, and its label text or None"
    if not isinstance(prompt.metadata, dict):
        return f"its metadata must be a dict, not {type(prompt.metadata).__name__}"
    return None
