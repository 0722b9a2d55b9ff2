"""What a block changes of the environment is as it was behind it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from miles_async.hooks.environment import environment

NAMES = ("MILES_SET", "MILES_EMPTY", "MILES_UNSET")


def test_variables_are_as_wanted_inside_and_as_they_were_behind_also_where_something_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MILES_SET", "theirs")
    monkeypatch.setenv("MILES_EMPTY", "")
    before = dict(os.environ)
    with pytest.raises(LookupError), environment(dict.fromkeys(NAMES, "ours")):
        says = f"import os; print([os.environ[name] for name in {NAMES}])"
        said = subprocess.run([sys.executable, "-S", "-c", says], check=True, capture_output=True, text=True).stdout
        assert said == f"{['ours'] * 3}\n"
        raise LookupError
    assert dict(os.environ) == before
