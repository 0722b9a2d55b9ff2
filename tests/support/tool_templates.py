"""A chat template with tools, and a model that has it."""

from __future__ import annotations

import shutil
from pathlib import Path

from miles_async.text.tokenizer import Tokenizer

EOS = 1

# the parts of Qwen3's that matter here: thinking is shown of the newest turn only, tools answer within a user's message
QWEN = """
{%- set ns = namespace(last=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
  {%- if not ns.found and message.role == "user" %}
    {%- set ns.last = messages|length - 1 - loop.index0 %}{% set ns.found = true %}
  {%- endif %}
{%- endfor %}
{%- for message in messages %}
{%- if message.role == "assistant" %}
{{- "[assistant\\n" }}{% if loop.last and loop.index0 > ns.last %}{{ "<think>\\n\\n</think>\\n\\n" }}{% endif %}
{{- message.content + "<eos>\\n" }}
{%- elif message.role == "tool" %}
{%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{ "[user" }}{% endif %}
{{- "\\n<tool_response>\\n" + message.content + "\\n</tool_response>" }}
{%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{ "<eos>\\n" }}{% endif %}
{%- else %}
{{- "[" + message.role + "\\n" + message.content + "<eos>\\n" }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "[assistant\\n" }}{% endif %}
"""


def with_template(words: Path, directory: Path, template: str) -> Tokenizer:
    shutil.copytree(words, directory)
    (directory / "chat_template.jinja").write_text(template)
    return Tokenizer(directory)
