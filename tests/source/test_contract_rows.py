"""The table of what SGLang does and the contract suite name each other's tests, all of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from contract.rows import CONTROL, EXPERTS, GENERATE, REFUSALS, ROWS, WEIGHTS


@pytest.mark.parametrize("module", [CONTROL, EXPERTS, GENERATE, REFUSALS, WEIGHTS])
def test_every_test_covers_a_row_and_every_row_names_tests_that_exist(module: str) -> None:
    named = {name for tests in ROWS.values() if isinstance(tests, dict) for name in tests.get(module, ())}
    tree = ast.parse((Path(__file__).parents[1] / "contract" / f"{module}.py").read_text())
    functions = [node.name for node in tree.body if isinstance(node, ast.AsyncFunctionDef)]
    assert named == {name.removeprefix("test_") for name in functions if name.startswith("test_")}
