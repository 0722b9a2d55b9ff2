"""Rewards that compare mathematics, against cases made by hand: the box, and where each of them finds the answer."""

from __future__ import annotations

import pytest
from grading import worth
from hypothesis import given
from hypothesis import strategies as st

from miles_async.rewards.boxed import last_boxed


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
