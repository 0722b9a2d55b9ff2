"""The reward of DAPO, against cases made by hand: the last answer line, as normalised text."""

from __future__ import annotations

import pytest
from grading import worth
from hypothesis import given
from hypothesis import strategies as st

from miles_async.rewards.dapo import normalized


@pytest.mark.parametrize(
    ("response", "label", "correct"),
    [
        ("Answer: 34", "34", True),
        ("so\nanswer : 34", "34", True),
        ("ANSWER:34\n", "34", True),
        ("Answer: 33\nAnswer: 34", "34", True),
        ("Answer: 34\nAnswer: 33", "34", False),
        (r"Answer: $\boxed{34}$", "34", True),
        (r"Answer: \(x = 34\)", "34\\)", True),  # what follows the last =
        ("Answer: $x = 34$", "34", True),
        ("Answer: it is $34$ in all", "34", True),
        ("Answer: 1,234", "1234", True),
        (r"Answer: \$1{,}234", "1234", True),
        ("Answer: 34 degrees", "34", True),
        (r"Answer: 34^\circ", "34", True),
        (r"Answer: \text{34}", "34", True),
        (r"Answer: \frac12", r"\frac{1}{2}", True),
        ("Answer: 34", "34.0", True),
        ("Answer: 0", "0.5", False),  # Miles takes it
        ("Answer: 0.5", "0.5", True),
        ("Answer: 12345678901234567890", "12345678901234567890", True),  # no float can hold it
        ("Answer: 34.", "34", False),  # the answer is a text and nothing else
        (r"\boxed{34}", "34", False),
        ("34", "34", False),
        ("", "34", False),
        ("Answer:", "34", False),
        ("Answer: 34" + " " * 295, "34", False),  # further back than 300 characters
        ("Answer: ３４", "34", False),
    ],
)
def test_dapo_compares_the_last_answer_line_as_normalised_text(response: str, label: str, correct: bool) -> None:
    expected = {"score": 1.0, "acc": 1.0} if correct else {"score": -1.0, "acc": 0.0}
    assert worth("dapo", response, label) == expected


def test_boxed_dapo_takes_the_box_for_the_answer() -> None:
    assert worth("boxed_dapo", r"so \boxed{1,234}", "1234")["score"] == 1
    assert worth("boxed_dapo", r"Answer: 1,234", "1234")["score"] == -1


@given(st.integers())
def test_normalisation_leaves_any_integer_alone_with_and_without_commas(number: int) -> None:
    assert normalized(str(number)) == str(number)
    assert normalized(f"{abs(number):,}") == str(abs(number))
