"""What the small files of a Hugging Face checkpoint directory say about its tokenizer: special tokens, templates, sizes.

Promises: the files are taken in the order in which transformers takes them (``_from_pretrained``):
``chat_template.jinja`` and ``additional_chat_templates/NAME.jinja`` before ``tokenizer_config.json``, and
``special_tokens_map.json`` over ``tokenizer_config.json`` where that has no ``added_tokens_decoder``. What cannot be meant is a
TokenizerError that names the file. Nothing here imports a tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

# the added tokens on which SGLang stops whatever a model's files say (``attach_additional_stop_token_ids``, 0.5.23)
ALWAYS_STOPS = ("<|eom_id|>", "<|content_model_end_sampling|>", "<|ifm|im_end|>")
TOKEN_FLAGS = ("lstrip", "rstrip", "single_word", "normalized", "special")
DEFAULT_TEMPLATE, TOOL_TEMPLATE = "default", "tool_use"


class TokenizerError(ValueError):
    """The directory has no usable tokenizer, or a chat cannot be rendered; one line."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``; empty where there is no such file. Raises TokenizerError."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: {error}") from None
    return content if isinstance(content, dict) else {}


def tokenizer_config(directory: Path) -> dict[str, Any]:
    """``tokenizer_config.json``, with ``special_tokens_map.json`` over an older form of it. Raises TokenizerError."""
    config = read_json(directory / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= read_json(directory / "special_tokens_map.json")
    return config


def special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """The named special tokens of a :func:`tokenizer_config` (``bos_token``, ``eos_token``, ...): variables of a template."""
    named = {name: _content(value) for name, value in config.items() if name.endswith("_token")}
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict):
        named |= {name: _content(value) for name, value in extra.items()}
    return {name: text for name, text in named.items() if text is not None}


def added_tokens(directory: Path, config: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The fields of each token in the ``added_tokens_decoder`` of a :func:`tokenizer_config`, by ascending id.

    Raises TokenizerError.
    """
    try:
        decoder = {int(number): token for number, token in (config.get("added_tokens_decoder") or {}).items()}
        return {
            number: {"content": str(decoder[number]["content"])}
            | {name: bool(decoder[number][name]) for name in TOKEN_FLAGS if name in decoder[number]}
            for number in sorted(decoder)
        }
    except (ValueError, TypeError, LookupError, AttributeError):
        path = directory / "tokenizer_config.json"
        raise TokenizerError(f"{path}: added_tokens_decoder must be a table of ids and tokens") from None


def chat_templates(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    """The chat templates of a checkpoint by name; the only one is "default". Raises TokenizerError."""
    found: dict[str, str] = {}
    if (path := directory / "chat_template.jinja").is_file():
        found[DEFAULT_TEMPLATE] = read_template(path)
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = read_template(path)
    if found:
        return found
    legacy = read_json(directory / "chat_template.json")  # of a processor
    for name, given in (("tokenizer_config.json", config), ("chat_template.json", legacy)):
        if (template := given.get("chat_template")) is not None:
            return _named(directory / name, template)
    return {}


def read_template(path: Path) -> str:
    """Raises TokenizerError: there is no such file, or it is no text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"chat template {path}: {getattr(error, 'strerror', None) or error}") from None


def config_ends(directory: Path) -> list[int]:
    """The end-of-sequence ids of ``generation_config.json`` and ``config.json`` together, as engines take them."""
    found: list[int] = []
    for name in ("generation_config.json", "config.json"):
        given = read_json(directory / name)
        text = given.get("text_config")  # models with further modalities keep it one level down
        for part in (given, text if isinstance(text, dict) else {}):
            ids = part.get("eos_token_id")
            found += [token for token in (ids if isinstance(ids, list) else [ids]) if type(token) is int]
    return list(dict.fromkeys(found))


def engine_ends(directory: Path, token_id: Callable[[str], int | None]) -> tuple[int, ...]:
    """Every id on which an engine that serves the directory stops by itself (as SGLang), the tokenizer's own end first.

    token_id: the id of an added or ordinary token; None where it is none.
    """
    eos = special_tokens(tokenizer_config(directory)).get("eos_token")
    own = [] if eos is None else [token_id(eos)]
    always = [token_id(text) for text in ALWAYS_STOPS]
    ids = [*own, *config_ends(directory), *always]
    return tuple(dict.fromkeys(token for token in ids if token is not None))


def model_vocab(config: dict[str, Any]) -> int | None:
    """The rows of the embedding, by ``config.json``."""
    text = config.get("text_config")
    return config.get("vocab_size") or (text.get("vocab_size") if isinstance(text, dict) else None)


def _named(path: Path, template: Any) -> dict[str, str]:
    """Templates as they stand in JSON: one text, a list of names and texts, or a table of them."""
    if isinstance(template, str):
        return {DEFAULT_TEMPLATE: template}
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    if isinstance(template, dict) and all(isinstance(text, str) for pair in template.items() for text in pair):
        return template
    raise TokenizerError(f"{path}: chat_template must be a text, or a list of names and templates")


def _content(token: Any) -> str | None:
    """A special token: its text, or a table that holds it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
