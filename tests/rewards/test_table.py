"""What the table says of a built-in reward is true of its function."""

from __future__ import annotations

from typing import Any

import pytest
from grading import worth

from miles_async.rewards.table import BUILT_IN, BuiltIn

LOCAL = {name: entry for name, entry in BUILT_IN.items() if not entry.asks_server}


@pytest.mark.parametrize(("name", "entry"), LOCAL.items(), ids=LOCAL)
def test_a_reward_gives_the_parts_that_the_table_names(name: str, entry: BuiltIn) -> None:
    given: Any = worth(name, "7", "7")
    assert entry.parts == (tuple(given) if isinstance(given, dict) else ())
    assert entry.reward_part in (entry.parts or (None,))


@pytest.mark.parametrize(("name", "entry"), LOCAL.items(), ids=LOCAL)
def test_a_reward_asks_for_a_label_where_the_table_says_so(name: str, entry: BuiltIn) -> None:
    for key in entry.instead_of_label:
        worth(name, "B", metadata={key: "B"})
    if entry.compares_with_label:
        with pytest.raises(ValueError):
            worth(name, "B")
    else:
        worth(name, "B")


def test_what_works_out_mathematics_never_runs_in_the_event_loop() -> None:
    mathematics = {name for name, entry in BUILT_IN.items() if entry.needs == ("math_verify", "math-verify")}
    assert mathematics and not [name for name in mathematics if BUILT_IN[name].inline]
