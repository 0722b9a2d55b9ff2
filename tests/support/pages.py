"""The pages of docs/ and the README: their blocks of code, and the files that they tell a reader to write."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("", "sh")  # what blocks of commands are marked as

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")


class Block(NamedTuple):
    """``name``: of the file that it is, where the paragraph before it begins with that."""

    page: str
    line: int
    language: str
    text: str
    name: str = ""


def blocks(page: Path, *languages: str) -> list[Block]:
    """Those of ``page`` in one of ``languages``, in order."""
    text, found = page.read_text(), []
    for match in _BLOCK.finditer(text):
        before = text[: match.start()]
        named = re.match(r"`([\w.]+)`", before.rstrip("\n").rpartition("\n\n")[2])
        line, name = before.count("\n") + 1, named[1] if named else ""
        found.append(Block(page.name, line, match[1], match[2], name))
    return [block for block in found if block.language in languages]


def spans(page: Path) -> list[str]:
    """What is code within sentences."""
    return _SPAN.findall(_BLOCK.sub("", page.read_text()))


def write_files(page: Path, directory: Path) -> None:
    """What ``page`` tells a reader to write, in ``directory``."""
    for block in blocks(page, "python", "toml", "json"):
        if block.name:
            (directory / block.name).write_text(block.text)


def commands(page: Path) -> list[str]:
    """What follows ``miles-async`` in the commands of ``page``, without comments and what they are piped into."""
    lines = [line for block in blocks(page, *SHELL) for line in block.text.replace("\\\n", " ").splitlines()]
    called = [re.search(r"(?:^|[\s/])miles-async (?=[a-z-])(.*)", re.sub(r"(?:^|\s)#.*", "", line)) for line in lines]
    written = [match[1] for match in called if match]
    named = [span.removeprefix("miles-async ") for span in spans(page) if re.match(r"miles-async [a-z-]", span)]
    return [command.partition(" | ")[0] for command in (*written, *named)]
