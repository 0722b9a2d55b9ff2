"""The tokenizer of a Hugging Face checkpoint directory, read without importing transformers.

Promises: token ids and text are those of ``tokenizer.json`` (with the added tokens that only ``tokenizer_config.json`` knows),
chats those of transformers' ``apply_chat_template`` for the same files, variables and messages; no special token is added on
its own, nothing is cut, padded or cleaned up, and workers that need only this start in a fraction of a second. What the Python
class of a tokenizer would add to its files (special tokens of its own, code of the checkpoint) is not looked for: a directory
that needs it has to be saved once with ``save_pretrained``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import tokenizers
import tokenizers.decoders

from miles_async.models.context_length import model_length
from miles_async.text import tokenizer_files as files
from miles_async.text.chat_template import ChatTemplate, Rendered
from miles_async.text.end_of_turn import EndOfTurn
from miles_async.text.tokenizer_files import TokenizerError

__all__ = ["Tokenizer", "TokenizerError"]

MARK = "miles-async-marks-this-turn"  # an assistant's text that no template takes for anything else

# arguments of transformers' apply_chat_template that a template never sees, or that are set for each chat
NO_VARIABLES = frozenset(
    (
        *("conversation", "messages", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize"),
        *("padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
        "tokenizer_kwargs",
    )
)


class Tokenizer:
    """``tokenizer.json`` of a checkpoint, with what ``config.json`` and its companions say about it.

    ``vocab_size``: rows of the model's embedding, so the ids a prompt may hold are ``0..vocab_size-1``.
    ``context_length``: how many tokens prompt and response may have together; None: unknown.
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
        model = files.read_json(self.directory / "config.json")
        self._config = files.tokenizer_config(self.directory)
        self._add_tokens()
        self.vocab_size: int = files.model_vocab(model) or self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.context_length: int | None = model_length(self.directory)
        self._template_path: Path | None = None  # None: the checkpoint's own
        self._variables: dict[str, Any] = {}

    def for_chats(self, template: str | Path | None, variables: Mapping[str, Any]) -> Tokenizer:
        """This tokenizer, rendering chats by the jinja file ``template`` (None: the checkpoint's) with ``variables`` set.

        Raises TokenizerError: one of them is no variable, but an argument of transformers' ``apply_chat_template``.
        """
        if (wrong := next((name for name in variables if name in NO_VARIABLES), None)) is not None:
            raise TokenizerError(
                f'data.apply_chat_template_kwargs: "{wrong}" is no variable of a chat template; a template of your own is '
                "named by data.chat_template_path"
            )
        other = copy.copy(self)
        for name in ("_templates", "end_of_turn"):
            other.__dict__.pop(name, None)
        other._template_path = None if template is None else Path(template)
        other._variables = dict(variables)
        return other

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; special tokens only where the text spells them."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)

    def texts(self, tokens: Sequence[int]) -> tuple[str, str]:
        """Text of token ids without special tokens and with them, as :meth:`decode` has them, from one call where that can
        be: no token is special, or only the last one is."""
        special = self._special.keys()
        if special.isdisjoint(tokens):
            text = self.decode(tokens)
            return text, text
        if (end := self._special.get(tokens[-1])) is not None and special.isdisjoint(tokens[:-1]):
            text = self.decode(tokens[:-1])
            return text, text + end
        return self.decode(tokens), self.decode(tokens, skip_special_tokens=False)

    @cached_property
    def _special(self) -> dict[int, str | None]:
        """The special tokens, and what each adds to any text that it stands behind; None: that depends on the text."""
        # these join what they have; behind bytes that are no letter yet, a whole one completes nothing
        joins = isinstance(self._tokenizer.decoder, tokenizers.decoders.ByteLevel | tokenizers.decoders.Fuse)
        found: dict[int, str | None] = {}
        for number, token in self._tokenizer.get_added_tokens_decoder().items():
            if token.special:
                alone = self.decode([number], skip_special_tokens=False)
                found[number] = alone if joins and alone == token.content else None
        return found

    def render_chat(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt text of a list of ``{"role", "content"}`` messages, by the chat template.

        ``variables`` (``tools``, ``enable_thinking``, ...) are handed to the template and win over those of
        :meth:`for_chats`. Raises TokenizerError: there is no template, or it refuses the messages.
        """
        return self.rendered(messages, add_generation_prompt=add_generation_prompt, **variables).text

    def rendered(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> Rendered:
        """The chat as :meth:`render_chat` has it, with the places of the template's ``{% generation %}`` blocks."""
        fixed = {"messages": list(messages), "add_generation_prompt": add_generation_prompt}
        given = {"tools": None, "documents": None} | self._special_tokens | self._variables | variables | fixed
        template = self._template(with_tools=given["tools"] is not None)
        try:
            return template.render(given)
        except Exception as error:  # a template is not our code: whatever it raises is its refusal
            raise TokenizerError(f"chat template of {self._template_owner}: {' '.join(str(error).split())}") from None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a turn, the tokenizer's own end of sequence first."""
        return self.end_of_turn.token_ids

    @cached_property
    def end_of_turn(self) -> EndOfTurn:
        """What ends a turn of this model, in its chats and elsewhere."""
        engines, template = files.engine_ends(self.directory, self._tokenizer.token_to_id), self._template_end()
        ids = engines if template is None else (*engines, template)
        texts = dict.fromkeys(self.decode([token], skip_special_tokens=False) for token in ids)
        return EndOfTurn(engines, template, tuple(text for text in texts if text))

    def _template_end(self) -> int | None:
        """The special token that the chat template puts behind an assistant's message, if there is one."""
        messages = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": MARK}]
        try:
            behind = self.render_chat(messages, add_generation_prompt=False).partition(MARK)[2]
        except TokenizerError:  # none, or one for other messages
            return None
        special = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        end = next((token for token in self.encode(behind) if token in special), None)
        before = "" if end is None else behind.partition(self.decode([end], skip_special_tokens=False))[0]
        return None if before.strip() else end

    def _template(self, *, with_tools: bool) -> ChatTemplate:
        """The template that transformers would choose: "tool_use" where there are tools and such a template, else "default"."""
        if not self._templates:
            raise TokenizerError(
                f"{self.directory} has no chat template (chat_template.jinja or tokenizer_config.json)"
            )
        name = files.TOOL_TEMPLATE if with_tools and files.TOOL_TEMPLATE in self._templates else files.DEFAULT_TEMPLATE
        if name not in self._templates:
            raise TokenizerError(
                f'{self.directory} has several chat templates, and none is called "{name}": {", ".join(self._templates)}; '
                "data.chat_template_path names the file of one"
            )
        return self._templates[name]

    @cached_property
    def _templates(self) -> dict[str, ChatTemplate]:
        if self._template_path is not None:
            sources = {files.DEFAULT_TEMPLATE: files.read_template(self._template_path)}
        else:
            sources = files.chat_templates(self.directory, self._config)
        try:
            return {name: ChatTemplate(source) for name, source in sources.items()}
        except jinja2.TemplateError as error:
            raise TokenizerError(f"chat template of {self._template_owner}: {error}") from None

    @property
    def _template_owner(self) -> Path:
        return self._template_path or self.directory

    @property
    def _special_tokens(self) -> dict[str, str]:
        return files.special_tokens(self._config)

    def _add_tokens(self) -> None:
        """Add what only ``tokenizer_config.json`` knows. Raises TokenizerError: it would get another id than is said there."""
        known = self._tokenizer.token_to_id
        for number, fields in files.added_tokens(self.directory, self._config).items():
            text = fields["content"]
            if known(text) is None:
                self._tokenizer.add_tokens([tokenizers.AddedToken(**fields)])
                if known(text) != number:
                    raise TokenizerError(
                        f'{self.directory}: tokenizer.json lacks "{text}", which has the id {number} in '
                        f"tokenizer_config.json and would get {known(text)}"
                    )
