"""One table over all hooks: whatever a function of the user's gives or raises, it costs what its row says, and a line says so.

A hook without a row fails here. What is right for each hook is in the tests of its own.
"""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest
from hook_feed import FINE, Row
from hook_rows import ROWS

from miles_async.cli.hook_points import HOOKS
from miles_async.hooks.hook import Hook, HookError

HEAD = """
import asyncio
import numpy as np
import torch

class Mute(Exception):
    def __str__(self): raise RuntimeError
class Shy:
    def __repr__(self): raise RuntimeError
    __str__ = __repr__
"""
VALUES = {
    "none": "None",
    "nan": "float('nan')",
    "text": "'yes'",
    "half_a_letter": "'\\ud800'",
    "true": "True",
    "np_scalar": "np.float32(0.5)",
    "torch_scalar": "torch.tensor(0.5)",
    "array": "np.zeros(77)",
    "tensor": "torch.zeros(77)",
    "complex_tensor": "torch.zeros(2, dtype=torch.complex64)",
    "odd_list": "[None, 'x', float('nan')]",
    "parts": "{'a': float('nan')}",
    "shy": "Shy()",
}
ERRORS = {
    "ValueError('mine')": ValueError,
    "LookupError('mine\\ud800\\nof two lines')": LookupError,
    "asyncio.CancelledError('mine')": asyncio.CancelledError,
    "SystemExit('mine')": SystemExit,
    "KeyboardInterrupt('mine')": KeyboardInterrupt,
    "StopIteration('mine')": StopIteration,
    "Mute()": RuntimeError,
}
CALLED = [pytest.param(hook, id=f"{hook.key}({', '.join(hook.parameters)})") for hook in HOOKS]
_numbers = itertools.count()


def row_of(hook: Hook) -> Row:
    return ROWS[(hook.key, hook.parameters)]


def written(directory: Path, hook: Hook, last: str) -> str:
    """A file with one function of the hook's form; its path as a configuration names it."""
    row, file = row_of(hook), directory / f"wrong_{next(_numbers)}.py"
    kind = "async def" if hook.form == "async" else "def"
    good = f"    if {row.when}:\n        return {row.good}\n" if row.when else ""
    file.write_text(f"{HEAD}{row.head}\n{kind} wrong({', '.join(hook.parameters)}):\n{good}    {last}\n")
    return f"{file}:wrong"


def check_line(line: str, hook: Hook) -> None:
    """It can be written, and says whose fault it is: by the key, or by the line of the function that raised."""
    line.encode()
    assert ("\n" not in line or row_of(hook).costs == "answer") and len(line) < 2500  # an answer is no record's line
    assert (row_of(hook).said or hook.key) in line or " in wrong)" in line, line


def test_every_hook_has_a_row_and_every_row_a_hook() -> None:
    assert ROWS.keys() == {(hook.key, hook.parameters) for hook in HOOKS}


@pytest.mark.parametrize("hook", CALLED)
def test_a_value_that_a_hook_cannot_take_costs_what_its_row_says_and_is_named(hook: Hook, tmp_path: Path) -> None:
    row = row_of(hook)
    for name, value in (VALUES | row.more).items():
        costs, line = row.feed(written(tmp_path, hook, f"return {value}"), tmp_path)
        if name in VALUES and ("*" in row.takes or name in row.takes):
            assert (costs, line) == FINE or row.costs == "answer", (name, line)
        else:
            assert costs == row.costs, (name, costs, line)
            check_line(line, hook)


@pytest.mark.parametrize("hook", CALLED)
def test_whatever_a_function_raises_costs_what_its_row_says_and_is_named(hook: Hook, tmp_path: Path) -> None:
    row = row_of(hook)
    for text, error in ERRORS.items():
        path = written(tmp_path, hook, f"raise {text}")
        if error in row.lets_by:
            with pytest.raises(error):
                row.feed(path, tmp_path)
            continue
        costs, line = row.feed(path, tmp_path)
        assert costs == row.costs, (text, costs, line)
        if error is StopIteration and hook.form == "async":
            continue  # which no coroutine raises: Python makes a RuntimeError of it
        check_line(line, hook)
        assert text.partition("(")[0].rpartition(".")[2] in line, line


@pytest.mark.parametrize("hook", CALLED)
def test_a_function_of_another_form_is_refused_before_the_start(hook: Hook, tmp_path: Path) -> None:
    parameters = ", ".join(hook.parameters)
    bodies = {
        "plain": f"def form({parameters}): return None",
        "async": f"async def form({parameters}): return None",
        "yields": f"def form({parameters}): yield None",
        "async_yields": f"async def form({parameters}): yield None",
        "object": f"class Form:\n    async def __call__(self, {parameters}): return None\nform = Form()",
    }
    takes = {
        "plain": {"plain"},
        "iterated": {"plain", "yields"},
        "async": {"async", "object"},
        "either": {"plain", "async", "object"},
    }
    for name, body in bodies.items():
        file = tmp_path / f"{name}.py"
        file.write_text(body + "\n")
        if name in takes[hook.form]:
            hook.load(f"{file}:form")
            continue
        with pytest.raises(HookError) as caught:
            hook.load(f"{file}:form")
        line = str(caught.value)
        assert hook.key in line and "form" in line and "it must" in line and "\n" not in line


@pytest.mark.parametrize("hook", CALLED)
def test_an_awaitable_that_nobody_awaits_is_no_result(hook: Hook, tmp_path: Path) -> None:
    """A plain function may give one, too: it would be dropped, and what it should do, never done."""
    if hook.form in ("plain", "iterated"):
        costs, line = row_of(hook).feed(written(tmp_path, hook, "return asyncio.sleep(0)"), tmp_path)
        assert costs == row_of(hook).costs
        check_line(line, hook)
