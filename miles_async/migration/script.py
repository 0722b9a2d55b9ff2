"""The flags in a launch script of Miles or slime: a shell script with arrays of flags, or a Python one with texts of them.

    ROLLOUT_ARGS=(--rollout-batch-size 32 --rm-type math)
    python3 train_async.py --actor-num-nodes 1 ${ROLLOUT_ARGS[@]}

Promises: nothing of the script is run; what other commands in it are given (``ray start``, a job's own options) is none of the
training's; a variable that the script gives a plain value stands for that, any other one stays as it is written. Pure.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import NamedTuple

PROGRAMS = ("train.py", "train_async.py")
UNKNOWN = "${"  # what a value that only the running script knows has in it

_ASSIGNED = re.compile(r"\s*(?:export\s+)?([A-Za-z_]\w*)=(?!\()(.*)")
_ARRAY = re.compile(r"\s*([A-Za-z_]\w*)\+?=\((.*)")
_ALL_OF = re.compile(r"\$\{?([A-Za-z_]\w*)(?:\[[@*]\]\})?")
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)(?::?-([^}]*))?\}|([A-Za-z_]\w*))")


class Script(NamedTuple):
    """``flags``: each with its words, the last of several with one name, as argparse takes it. ``is_async``: which program.
    ``missing``: arrays that the training is given and another file has."""

    flags: dict[str, list[str]]
    is_async: bool = False
    missing: tuple[str, ...] = ()


def read(text: str, *, is_python: bool = False) -> Script:
    """The flags that the training is given."""
    if is_python:
        return Script(_flags(_words_of_python(text)), PROGRAMS[1] in text)
    variables, arrays, commands = _parts(text.replace("\\\n", " "))
    if not commands:
        return Script(_flags(word for words in arrays.values() for word in words), PROGRAMS[1] in text)
    words, missing = list[str](), list[str]()
    for word in commands[-1][1:]:
        named = _ALL_OF.fullmatch(word)
        if named is None:
            words.append(_expanded(word, variables))
        elif named[1] in arrays:
            words += arrays[named[1]]
        elif named[1] in variables:
            words += variables[named[1]].split()
        else:
            missing.append(named[1])
    return Script(_flags(words), commands[-1][0].endswith(PROGRAMS[1]), tuple(missing))


def _parts(text: str) -> tuple[dict[str, str], dict[str, list[str]], list[list[str]]]:
    """Variables by name, arrays by name, and what follows the training's program in each command that has it."""
    variables, arrays, commands = dict[str, str](), dict[str, list[str]](), list[list[str]]()
    array: list[str] | None = None
    for line in text.splitlines():
        if array is None and (begun := _ARRAY.match(line)):
            array = arrays.setdefault(begun[1], [])
            line = begun[2]
        if array is not None:
            words = _words(line)
            is_last = bool(words) and words[-1].endswith(")")
            if is_last:
                words[-1] = words[-1][:-1]
            array += [_expanded(word, variables) for word in words if word]
            array = None if is_last else array
        elif any(program in line for program in PROGRAMS):
            words = _words(line)
            place = next((i for i, word in enumerate(words) if word.endswith(PROGRAMS)), None)
            if place is not None:
                commands.append(words[place:])
        elif (assigned := _ASSIGNED.match(line)) and len(words := _words(assigned[2])) == 1:
            variables[assigned[1]] = _expanded(words[0], variables)
    return variables, arrays, commands


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # a text of several lines: none of ours
        return []


def _expanded(word: str, variables: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        name = found[1] or found[3]
        return variables.get(name, found[2] if found[2] is not None else f"{UNKNOWN}{name}}}")

    return _VARIABLE.sub(value, word)


def _words_of_python(text: str) -> list[str]:
    """The words of all texts in a Python file that hold flags; what is computed in them is ``${...}``."""
    found: list[str] = []
    inside: set[ast.AST] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            inside.update(node.values)
            parts = [
                str(part.value) if isinstance(part, ast.Constant) else f"{UNKNOWN}{ast.unparse(part)[2:-2]}" + "}"
                for part in node.values
            ]
            found.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            found.append(node.value)
    return [word for part in found if part.lstrip().startswith("--") for word in _words(part)]


def _flags(words: Iterable[str]) -> dict[str, list[str]]:
    flags: dict[str, list[str]] = {}
    last: list[str] = []
    for word in words:
        if re.match(r"--[a-zA-Z]", word):
            name, equals, value = word.partition("=")
            last = flags[name] = [value] if equals else []
        elif word:
            last.append(word)
    return flags
