"""The planted bugs: read from the ``*.toml`` files beside this one, one or more for each invariant of docs/architecture.md.

Promises: a mutation has every field; its old text can be looked for, and be replaced, in any copy of the tree.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


class DoesNotApply(ValueError):
    """The tree has changed: the text that a mutation replaces is not there exactly once."""


@dataclass(frozen=True)
class Mutation:
    """A bug: ``old`` in ``file`` becomes ``new``, and then each of ``tests`` has to fail."""

    name: str
    invariant: int
    breaks: str  # what goes wrong with it, for the reader
    file: str
    old: str
    new: str
    tests: tuple[str, ...]  # pytest node ids, without parameters: of a parametrized test one case has to fail

    def applied(self, text: str) -> str:
        """The text of ``file`` with the bug in it. Raises DoesNotApply."""
        if (count := text.count(self.old)) != 1:
            raise DoesNotApply(f"{self.name}: its old text is in {self.file} {count} times, not once")
        return text.replace(self.old, self.new)


def load() -> list[Mutation]:
    """All mutations, in the order of their invariants. Raises for a field that is missing or unknown."""
    found = []
    for path in sorted(HERE.glob("*.toml")):
        document = tomllib.loads(path.read_text())
        for entry in document["mutation"]:
            fields = entry | {"tests": tuple(entry["tests"]), "invariant": document["invariant"]}
            found.append(Mutation(**fields))
    return found
