"""Whether a prompt can do what the run will ask of it: be sent, be graded, be learnt from. Pure.

Promises: what would cost its attempts each time its turn comes is said when it is read: text that is no UTF-8, numbers that no
message holds, no label (or a blank one) where its reward compares with one, the name of a reward that is none or that this run
cannot ask, an answer that cannot be told from its chat.
"""

from __future__ import annotations

from importlib.util import find_spec

import msgspec

from miles_async.config.schema import Reward, RunConfig
from miles_async.data.prompt import Prompt
from miles_async.rewards.graded import RewardError
from miles_async.rewards.registry import chosen
from miles_async.rewards.rules import is_graded
from miles_async.rewards.sample import RewardSample
from miles_async.rewards.table import WEIGHTED_SUM, BuiltIn, built_in
from miles_async.rollout.learnt import SftError, learnt
from miles_async.text.tokenizer import Tokenizer


def fault(config: RunConfig, prompt: Prompt, tokenizer: Tokenizer, *, labelled: bool) -> str | None:
    """Why ``prompt`` cannot be used, in one line; None: it can. ``labelled``: whether the prompts it is one of have labels; one
    that names its own reward needs what that needs all the same."""
    if (wrong := _unsendable(prompt)) is not None:
        return wrong
    return _ungraded(config, prompt, labelled) if is_graded(config) else _unlearnt(config, prompt, tokenizer)


def _unsendable(prompt: Prompt) -> str | None:
    try:
        msgspec.msgpack.encode((prompt.text, prompt.label, prompt.metadata))  # what a ticket will do with it
    except OverflowError:
        return "its metadata cannot be sent: it holds an integer of more than 64 bits: write it as text"
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        return f"its text, label or metadata holds half a surrogate pair ({half!a}), which is no text"
    except (TypeError, RecursionError) as error:
        return f"its metadata cannot be sent: {' '.join(str(error).split())}"
    return None


def _ungraded(config: RunConfig, prompt: Prompt, labelled: bool) -> str | None:
    sample = RewardSample(prompt=prompt.text, response="", tokens=[], label=prompt.label, metadata=prompt.metadata)
    try:
        name = chosen(sample, config.reward)
    except RewardError as error:
        return str(error)
    if prompt.metadata.get("rm_type") and (wrong := _unasked(name, config.reward)) is not None:
        return f"the prompt's metadata has rm_type = {name!r}: {wrong}"
    if (prompt.label or "").strip() or not (labelled or prompt.metadata.get("rm_type")):
        return None
    parts = config.reward.rm_weights if name == WEIGHTED_SUM else [name]
    if any((entry := built_in(part)) is not None and _lacks_its_label(entry, prompt) for part in parts):
        no = "no label" if prompt.label is None else "a blank label"
        return f'it has {no}, with which its reward "{name}" compares'
    return None


def _lacks_its_label(reward: BuiltIn, prompt: Prompt) -> bool:
    """Whether ``reward`` would have nothing to compare with; ``prompt`` has no label, or a blank one."""
    others = (str(prompt.metadata.get(key) or "").strip() for key in reward.instead_of_label)
    return reward.compares_with_label and not any(others)


def _unasked(name: str, reward: Reward) -> str | None:
    """Why the run has no answer from the reward ``name``, of which only rows speak (``rewards/rules.py`` has the others)."""
    if name == WEIGHTED_SUM and not reward.rm_weights:
        return "reward.rm_weights is empty"
    if (entry := built_in(name)) is None:
        return None
    if entry.asks_server and reward.rm_url is None:
        return "reward.rm_url is missing"
    if entry.needs is not None and find_spec(entry.needs[0]) is None:
        return f"it needs the package {entry.needs[1]}"
    if reward.reward_key is not None and entry.parts and reward.reward_key not in entry.parts:
        return f'it has no part reward.reward_key = "{reward.reward_key}", but {", ".join(entry.parts)}'
    return None


def _unlearnt(config: RunConfig, prompt: Prompt, tokenizer: Tokenizer) -> str | None:
    if config.rollout.rollout_function != "sft":
        return None
    try:
        learnt(config, prompt.metadata, prompt.label, prompt.tokens.tolist(), tokenizer)
    except SftError as error:
        return str(error)
    return None
