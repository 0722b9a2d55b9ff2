"""The list of planted bugs fits the tree: each has its line and its tests, and every invariant has some.

That the tests catch them is shown by ``python -m tests.mutations`` (``make mutants``), which takes minutes.
"""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.mutations.catalogue import ROOT, Mutation, load

MUTATIONS = load()


@cache
def functions(file: str) -> set[str]:
    """The names of the functions at the top of a test file."""
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_invariant_of_the_architecture_has_a_planted_bug() -> None:
    section = (ROOT / "docs" / "architecture.md").read_text().partition("## Invariants")[2].partition("\n## ")[0]
    numbers = {int(number) for number in re.findall(r"^(\d+)\. \*\*", section, re.MULTILINE)}
    assert numbers == set(range(1, 14)) == {mutation.invariant for mutation in MUTATIONS}


def test_no_two_planted_bugs_share_a_name() -> None:
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_bug_has_its_line_and_its_tests(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text()
    mutated = mutation.applied(text)  # raises where the old text is not there exactly once
    assert mutated != text
    if mutation.file.endswith(".py"):
        ast.parse(mutated)  # a syntax error would fail every test
    assert mutation.tests
    for test in mutation.tests:
        file, _, name = test.partition("::")
        assert name in functions(file), test
