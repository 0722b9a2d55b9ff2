"""The tokenizer of a Hugging Face checkpoint directory, read without importing transformers.

Promises: token ids, text and rendered chats equal those of transformers' fast tokenizer for the same files, no special
token is added on its own, and workers that need only this start in a fraction of a second.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import tokenizers
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class TokenizerError(ValueError):
    """The directory has no usable tokenizer, or a chat cannot be rendered; one line."""


class Tokenizer:
    """``tokenizer.json`` of a checkpoint, with what ``config.json`` and its companions say about it.

    ``vocab_size``: rows of the model's embedding, so the ids a prompt may hold are ``0..vocab_size-1``.
    ``eos_token_ids``: the ids that end a response (``generation_config.json``, else ``config.json``, else the eos
    token).
    """

    def __init__(self, directory: str | Path) -> None:
        """Raises TokenizerError: no ``tokenizer.json``, or a file that cannot be read."""
        self.directory = Path(directory)
        path = self.directory / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(f"{self.directory} has no tokenizer.json (a fast tokenizer is needed)")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise TokenizerError(f"{path}: {error}") from None
        # a tokenizer.json may carry the settings of its last use; a prompt is never cut or padded here
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        model = _read_json(self.directory / "config.json")
        self._config = _read_json(self.directory / "tokenizer_config.json")
        self.vocab_size: int = _model_vocab(model) or self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.eos_token_ids: tuple[int, ...] = self._find_eos(model)
        self._template_path: Path | None = None  # None: the checkpoint's own
        self._variables: dict[str, Any] = {}

    def for_chats(self, template: str | Path | None, variables: Mapping[str, Any]) -> Tokenizer:
        """This tokenizer, rendering chats by the jinja file ``template`` (None: the checkpoint's) with ``variables`` set."""
        other = copy.copy(self)
        other.__dict__.pop("_template", None)
        other._template_path = None if template is None else Path(template)
        other._variables = dict(variables)
        return other

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; special tokens only where the text spells them."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)

    def render_chat(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt text of a list of ``{"role", "content"}`` messages, by the chat template.

        ``variables`` (``tools``, ``enable_thinking``, ...) are handed to the template and win over those of
        :meth:`for_chats`. Raises TokenizerError: there is no template, or it refuses the messages.
        """
        template = self._template
        fixed = {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        given = {"tools": None, "documents": None} | self._special_tokens | self._variables | variables | fixed
        try:
            return template.render(given)
        except Exception as error:  # a template is not our code: whatever it raises is its refusal
            raise TokenizerError(f"chat template of {self._template_owner}: {' '.join(str(error).split())}") from None

    @cached_property
    def _template(self) -> jinja2.Template:
        source = self._find_template()
        if source is None:
            raise TokenizerError(
                f"{self.directory} has no chat template (chat_template.jinja or tokenizer_config.json)"
            )
        # transformers' environment, which templates are written for; sandboxed, since a checkpoint is not our code
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            return environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TokenizerError(f"chat template of {self._template_owner}: {error}") from None

    @property
    def _template_owner(self) -> Path:
        return self._template_path or self.directory

    def _find_template(self) -> str | None:
        path = self._template_path or self.directory / "chat_template.jinja"
        if path == self._template_path or path.is_file():
            try:
                return path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise TokenizerError(f"chat template {path}: {getattr(error, 'strerror', None) or error}") from None
        template = self._config.get("chat_template")
        if isinstance(template, list):  # named templates
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        return template

    @property
    def _special_tokens(self) -> dict[str, str]:
        named = {name: _content(value) for name, value in self._config.items() if name.endswith("_token")}
        return {name: text for name, text in named.items() if text is not None}

    def _find_eos(self, model: dict[str, Any]) -> tuple[int, ...]:
        for config in (_read_json(self.directory / "generation_config.json"), model):
            eos = config.get("eos_token_id")
            if eos is not None:
                return tuple(eos) if isinstance(eos, list) else (eos,)
        text = self._special_tokens.get("eos_token")
        eos = None if text is None else self._tokenizer.token_to_id(text)
        return () if eos is None else (eos,)


class _GenerationBlock(Extension):
    """``{% generation %}`` marks what the assistant wrote; for a prompt it only has to be let through."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)  # jinja's own escapes HTML


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(pattern)


def _content(token: Any) -> str | None:
    """A special token in ``tokenizer_config.json``: its text, or a table that holds it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _model_vocab(config: dict[str, Any]) -> int | None:
    text = config.get("text_config")  # models with further modalities keep it one level down
    return config.get("vocab_size") or (text.get("vocab_size") if isinstance(text, dict) else None)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(f"{path}: {error}") from None
    return content if isinstance(content, dict) else {}
