"""Chat templates of the kinds that are in the field, in our own words, and tiny checkpoints that have them.

The templates keep what matters to whoever renders with them: where a system message goes, what is trimmed, what is forgotten,
how tools answer, which roles are refused, what closes a message.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miles_async.models import builtin
from miles_async.text.tokenizer import Tokenizer

# chatml.jinja
# tools.jinja      as Qwen2.5: a system message of its own, calls as JSON in tags, answers of tools in one user's message
# thinking.jinja   as Qwen3: what was thought is shown behind the last question only, and forgotten before it
# llama.jinja      as Llama 3.1: dates, everything trimmed, one call in the place of the text, a tool's answer as JSON
# mistral.jinja    as Mistral's: user and assistant take turns, tools before the last question, ids of nine characters
# gemma.jinja      as Gemma's: no system role, the assistant is called model
# marked.jinja     as templates made for training: what the assistant wrote is marked
TEMPLATES = {path.stem: path.read_text() for path in sorted((Path(__file__).parent / "chat_templates").glob("*.jinja"))}

# special tokens that take the places of spare ones: ids from 100 on
SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|python_tag|>",
)
FIRST_SPECIAL = 100
ID = {text: number for number, text in enumerate(SPECIAL, FIRST_SPECIAL)}


def edit(file: Path, **fields: Any) -> None:
    """Set ``fields`` of a JSON file; those that are None are taken out."""
    content = {**(json.loads(file.read_text()) if file.exists() else {}), **fields}
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def chat_model(
    directory: Path,
    template: str | None,
    *,
    eos_token: str = "<eos>",
    generation: int | Sequence[int] = 1,
    model: int | Sequence[int] = 1,
) -> Path:
    """The files of a tokenizer with ``SPECIAL`` and the chat template, one of TEMPLATES or its own text; weights, too.

    eos_token: of ``tokenizer_config.json``. generation, model: ``eos_token_id`` of ``generation_config.json``, ``config.json``.
    """
    builtin.make_model("builtin:words", directory, seed=1)
    content = json.loads((directory / "tokenizer.json").read_text())
    vocab = {number: text for text, number in content["model"]["vocab"].items()} | {i: text for text, i in ID.items()}
    content["model"]["vocab"] = {text: number for number, text in sorted(vocab.items())}
    (eos,) = content["added_tokens"]
    content["added_tokens"] += [eos | {"id": number, "content": text} for text, number in ID.items()]
    (directory / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    edit(
        directory / "tokenizer_config.json",
        eos_token=eos_token,
        bos_token="<|begin_of_text|>",
        chat_template=None if template is None else TEMPLATES.get(template, template),
    )
    edit(directory / "generation_config.json", eos_token_id=generation)
    edit(directory / "config.json", eos_token_id=model)
    return directory


def chat_tokenizer(directory: Path, template: str | None, **options: Any) -> Tokenizer:
    return Tokenizer(chat_model(directory, template, **options))
