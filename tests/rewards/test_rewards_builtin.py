"""The built-in rewards, against cases made by hand."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miles_async.rewards import RewardConfigError, RewardSample, resolve_reward
from miles_async.rewards.boxed import last_boxed
from miles_async.rewards.dapo import normalized
from miles_async.rewards.registry import BUILT_IN, INLINE, REMOTE


def worth(name: str, response: str, label: str | None = None, **fields: Any) -> Any:
    return resolve_reward(name)(RewardSample(prompt="", response=response, label=label, **fields))


# --- the box


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{7}.", "7"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{1 \boxed{2}}", "2"),
        (r"\boxed {x}", "x"),
        (r"\fbox{x}", "x"),
        (r"\boxed{}", ""),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{[0, 1\}} and more}", r"[0, 1\}"),
        ("\\boxed{two\nlines}", "two\nlines"),
        (r"\boxed{½ — 答案}", "½ — 答案"),
        (r"\boxed{1} no, \boxed{2", None),  # cut off: no earlier attempt takes its place
        (r"\boxed 7", None),
        ("7", None),
        ("", None),
        ("\\boxed{" * 100_000, None),
        ("{" * 100_000 + r"\boxed{7}", "7"),
    ],
)
def test_the_last_box_is_what_its_braces_hold(text: str, content: str | None) -> None:
    assert last_boxed(text) == content


balanced = st.recursive(
    st.text(st.characters(exclude_characters="{}\\")) | st.sampled_from([r"\{", r"\}", r"\\", r"\frac"]),
    lambda inner: st.lists(inner, max_size=4).map("".join) | inner.map(lambda text: "{" + text + "}"),
)


@given(balanced, st.text(), st.text(st.characters(exclude_characters="\\")))
def test_any_balanced_text_comes_out_of_its_box_as_it_went_in(content: str, before: str, after: str) -> None:
    assert last_boxed(before + "\\boxed{" + content + "}" + after) == content


# --- mathematics


@pytest.mark.parametrize(
    ("response", "label", "expected"),
    [
        (r"\boxed{\frac{1}{2}}", "0.5", 1),
        (r"\boxed{0.5}", r"\frac12", 1),
        (r"\boxed{2/4}", "1/2", 1),
        (r"\boxed{x^2+2x+1}", "(x+1)^2", 1),
        (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", 1),
        (r"\boxed{1{,}234}", "1234", 1),
        (r"\boxed{5 \text{ cm}}", "5", 1),
        (r"\boxed{5^\circ}", "5", 1),
        (r"\boxed{(1, 2)}", "(1,2)", 1),
        (r"\boxed{\{2, 1\}}", r"\{1,2\}", 1),
        (r"\boxed{\text{East}}", r"\text{East}", 1),
        (r"\boxed{\text{West}}", r"\text{East}", 0),
        (r"\boxed{−5}", "-5", 1),  # U+2212
        (r"\boxed{7}", r"\boxed{7}", 1),
        (r"\boxed{7}", "8", 0),
        (r"\boxed{1} was wrong, so \boxed{2}", "2", 1),
        (r"\boxed{}", "2", 0),
        (r"\boxed{2", "2", 0),
        ("答案是 \\boxed{12}。", "12", 1),
        ("word " * 20_000 + r"\boxed{4}", "4", 1),
        ("", "4", 0),
    ],
)
def test_mathematics_in_a_box_is_compared_as_such_by_all_four(response: str, label: str, expected: float) -> None:
    assert worth("boxed_math", response, label) == expected
    assert worth("boxed_deepscaler", response, label) == expected
    assert worth("gemma_math", response, label) == expected
    assert worth("deepscaler", f"<think>\\boxed{{99}}</think>{response}", label) == expected


def test_math_finds_an_answer_without_a_box_and_the_others_do_not() -> None:
    assert worth("math", "The answer is 1/2.", "0.5") == 1
    assert worth("boxed_math", "The answer is 1/2.", "0.5") == 0
    assert worth("gemma_math", "The answer is 1/2.", "0.5") == 0


def test_boxed_math_takes_the_last_of_several_boxes_where_math_sees_a_set() -> None:
    assert worth("math", r"\boxed{2} or \boxed{3}", "3") == 0
    assert worth("boxed_math", r"\boxed{2} or \boxed{3}", "3") == 1


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"<think>\boxed{4}</think>\boxed{5}", 0),
        (r"<think>\boxed{5}</think>\boxed{4}", 1),
        (r"<think>a</think>\boxed{5}<think>b</think>\boxed{4}", 1),
        (r"<think>\boxed{4}", 0),  # it never ended its thinking
        (r"\boxed{4}", 0),
        (r"###Response \boxed{4}", 1),
        (r"###Response \boxed{4} ###Response \boxed{5}", 1),
        ("</think>4", 0),
    ],
)
def test_deepscaler_reads_what_follows_the_thinking(response: str, expected: float) -> None:
    assert worth("deepscaler", response, "4") == expected


def test_gemma_math_reads_what_follows_the_last_channel_or_everything() -> None:
    assert worth("gemma_math", r"\boxed{4}", "4") == 1
    assert worth("gemma_math", r"\boxed{5}<channel|>\boxed{4}", "4") == 1
    assert worth("gemma_math", r"\boxed{4}<channel|>\boxed{5}", "4") == 0
    assert worth("gemma_math", r"\boxed{4}<channel|>no box", "4") == 0


@pytest.mark.parametrize("name", ["math", "deepscaler", "gemma_math", "dapo", "f1", "exact_match", "graded_match"])
def test_a_prompt_without_a_label_is_an_error_and_not_a_zero(name: str) -> None:
    with pytest.raises(ValueError, match="the prompt has no label"):
        worth(name, "</think>4")


# --- dapo


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


# --- f1


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


# --- gpqa

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


# --- without looking


def test_random_draws_both_values() -> None:
    assert {worth("random", "x") for _ in range(100)} == {0.0, 1.0}


@settings(max_examples=30)
@given(st.lists(st.integers(0, 200_000)), st.text())
def test_deterministic_random_is_the_parity_of_a_hash_of_tokens_and_response(tokens: list[int], text: str) -> None:
    expected = hashlib.sha256((repr(tokens) + text).encode("utf-8")).digest()[0] % 2
    assert worth("deterministic_random", text, tokens=tokens) == expected


# --- names


@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - {REMOTE}))
def test_every_built_in_has_a_boxed_twin_that_tells_right_from_wrong(name: str) -> None:
    label = "B" if name == "gpqa" else "7"
    right, wrong = (worth(f"boxed_{name}", f"so \\boxed{{{answer}}}", label) for answer in (label, "C"))
    if "random" not in name:
        assert right != wrong
    assert (name in INLINE) == (name not in ("math", "deepscaler", "gemma_math"))


def test_boxed_stands_before_a_built_in_only() -> None:
    with pytest.raises(RewardConfigError, match='"boxed_maths": no built-in follows boxed_; did you mean "math"'):
        resolve_reward("boxed_maths")
