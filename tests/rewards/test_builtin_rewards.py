"""The other built-in rewards, against cases made by hand; and the names by which all of them are called."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from grading import worth
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_async.rewards import RewardConfigError, resolve_reward
from miles_async.rewards.table import BUILT_IN


@pytest.mark.parametrize(
    ("response", "label", "expected"),
    [
        ("the cat sat", "A cat, sat!", 1.0),
        ("cat", "cat sat", 2 / 3),  # precision 1, recall 1/2
        ("cat cat cat", "cat", 1 / 2),  # one of three is shared
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("", "", 0.0),
        ("the", "the", 0.0),  # articles are no words
        ("yes it is", "yes", 0.0),  # a bare yes is right or wrong, whoever says it
        ("yes", "yes it is", 0.0),
        ("Yes.", "yes", 1.0),
        ("no", "yes", 0.0),
        ("Čech 猫", "čech 猫", 1.0),
        ("cat " * 50_000, "cat", 2 / 50_001),
    ],
)
def test_f1_is_that_of_squad(response: str, label: str, expected: float) -> None:
    assert worth("f1", response, label) == pytest.approx(expected)


words = st.lists(st.sampled_from(["cat", "sat", "the", "yes", "no", "Mat.", "猫"])).map(" ".join) | st.text()


@given(words, words)
def test_f1_is_symmetric_and_between_0_and_1(one: str, other: str) -> None:
    value = worth("f1", one, other)
    assert 0 <= value <= 1
    assert value == worth("f1", other, one)


CHOICES = {"choices": ["red light", "green light", "blue light", "no light at all"]}


@pytest.mark.parametrize(
    ("response", "label", "metadata", "expected"),
    [
        ("B", "B", {}, 1),
        ("b", "B", {}, 1),
        ("(B)", "B", {}, 1),
        ("The answer is B.", "B", {}, 1),
        ("the answer depends on the case; I say C", "C", {}, 1),  # "answer d" chooses nothing
        ("Answer: (B)", "B", {}, 1),
        ("**Answer:** B", "B", {}, 1),
        ("the correct answer is option B", "B", {}, 1),
        ("Option A is wrong. The answer is B, since option C fails.", "B", {}, 1),
        ("D is correct", "D", {}, 1),
        (r"Answer: A, or rather \boxed{B}", "B", {}, 1),
        (r"\boxed{\text{B}}", "B", {}, 1),
        (r"\boxed{B. green light}", "B", {}, 1),
        ("<think>The answer is A.</think>The answer is B", "B", {}, 1),
        ("<think>The answer is B.", "B", {}, 1),  # all there is
        ("A then C", "C", {}, 1),
        ("because", "B", {}, 0),  # a letter is no text to be found inside a word
        ("", "B", {}, 0),
        ("The answer is J", "J", {}, 1),  # beyond H, but the label says that there is one
        ("B", "green light", CHOICES, 1),
        ("B", "Green-Light", CHOICES, 1),
        ("A", "green light", CHOICES, 0),
        ("B", "1", CHOICES, 1),  # its place
        ("it is green light, surely", "B", CHOICES, 1),
        ("it is evergreen light", "B", CHOICES, 0),
        ("B", None, {"correct_letter": "b"}, 1),
        ("the mitochondrion", None, {"correct_answer": "Mitochondrion"}, 1),
        ("C", "C", {"valid_letters": ["C", "D"], "choices": {"C": "one", "D": "two"}}, 1),
        ("it must be two", "D", {"valid_letters": ["C", "D"], "choices": {"C": "one", "D": "two"}}, 1),
        ("答案是 B", "B", {}, 1),
        ("answer" + " " * 100_000 + "B", "B", {}, 1),
        ("answer " * 50_000, "B", {}, 0),
    ],
)
def test_gpqa_reads_the_chosen_letter(response: str, label: str | None, metadata: Any, expected: float) -> None:
    assert worth("gpqa", response, label, metadata=metadata) == expected


def test_boxed_gpqa_looks_only_into_the_box() -> None:
    assert worth("boxed_gpqa", r"The answer is A. \boxed{B}", "B") == 1
    assert worth("boxed_gpqa", "The answer is B", "B") == 0


def test_gpqa_says_when_nobody_told_it_the_answer() -> None:
    with pytest.raises(ValueError, match="neither the label nor the metadata"):
        worth("gpqa", "B")


def test_random_draws_both_values() -> None:
    assert {worth("random", "x") for _ in range(100)} == {0.0, 1.0}


@settings(max_examples=30)
@given(st.lists(st.integers(0, 200_000)), st.text())
def test_deterministic_random_is_the_parity_of_a_hash_of_tokens_and_response(tokens: list[int], text: str) -> None:
    expected = hashlib.sha256((repr(tokens) + text).encode("utf-8")).digest()[0] % 2
    assert worth("deterministic_random", text, tokens=tokens) == expected


@pytest.mark.parametrize("name", [name for name, entry in BUILT_IN.items() if not entry.asks_server])
def test_every_built_in_has_a_boxed_twin_that_tells_right_from_wrong(name: str) -> None:
    label = "B" if name == "gpqa" else "7"
    right, wrong = (worth(f"boxed_{name}", f"so \\boxed{{{answer}}}", label) for answer in (label, "C"))
    if BUILT_IN[name].compares_with_label:
        assert right != wrong


def test_boxed_stands_before_a_built_in_only() -> None:
    with pytest.raises(RewardConfigError, match='"boxed_maths": no built-in follows boxed_; did you mean "math"'):
        resolve_reward("boxed_maths")
