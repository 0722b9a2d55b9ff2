"""Every label of a data set, graded against itself, is right: for each built-in, in every spelling that it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bus.messages import Sample, Ticket
from miles_async.rewards import Graded, RewardSample, resolve_reward
from miles_async.rewards.final_answer import bare, declared
from miles_async.rewards.table import BUILT_IN
from miles_async.rollout.scoring import score
from miles_async.rollout.trajectory import Trajectory
from miles_async.text.tokenizer import Tokenizer

LABELS = {
    "numbers": [
        "18",
        "-7",
        "−7",
        "+3",
        "00",
        "5.",
        "5.0",
        ".5",
        "1,234",
        "1,234.5",
        r"1{,}234",
        "1 000 000",
        "0.333...",
    ],
    "money": [r"\$18.90", "$18.90", "$1,234,567", "€5", "US$5", "5 dollars", r"50\text{ cents}"],
    "fractions": [r"\frac{1}{2}", r"\frac12", r"\dfrac{3}{4}", "1/2", "3 1/2", r"3\frac{1}{2}", "½", r"$\frac{1}{2}$"],
    "percent": ["50%", r"50\%", "50 percent"],
    "units": [
        "5 cm",
        r"5\text{ cm}",
        r"42\,\text{km/h}",
        "3.0 × 10^8 m/s",
        "90^\\circ",
        "90°",
        r"120^{\circ}",
        "90 degrees",
    ],
    "intervals": ["(1,2]", r"[0, \infty)", r"(-\infty, 3)\cup(3,\infty)", r"x \le 5", "$-3 < x < 5$"],
    "sets": [r"\{1,2,3\}", "{1,2,3}", "1, 2, 3", r"\emptyset", r"\left(\frac{1}{2},3\right)", "2 and 3"],
    "matrices": [
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        "\\begin{pmatrix}\n1 & 2 \\\\\n3 & 4\n\\end{pmatrix}",
        "[[1,2],[3,4]]",
    ],
    "scientific": ["1.5e3", r"1.5\times 10^3", "1e-5", r"6.02\times10^{23}", "10^{100}"],
    "formulas": ["x^2+1", "y = 2x+1", r"2\sqrt{3}", "sqrt(2)", r"\pi", "3+4i", "5!", r"\log_2 3", "1010_2", r"\pm 3"],
    "texts": [
        r"\text{East}",
        "East",
        "St. Louis",
        r"\text{Dr. Smith}",
        "yes",
        "Paris, France",
        "12:30",
        "C++",
        "U.S. Army",
    ],
    "choices": ["A", "b", "(B)", r"\text{(C)}", "B.", "i"],
    "boxes": [r"\boxed{5}", r"\(3\)", r"\[4\]"],
}
BARE, BOX = "{}", "So $\\boxed{{{}}}$."
SAID = ("<think>hm</think> <answer>{}</answer>", "#### {}", "The answer is {}.", "**Final Answer:** {}", "Answer: {}")
SPELLINGS = {
    "math": (BARE, BOX, *SAID),
    "deepscaler": (r"<think>\boxed{{9}}</think>" + BOX,),
    "gemma_math": (BOX, r"\boxed{{9}}<channel|>" + BOX),
    "dapo": ("Answer: {}",),
    "gpqa": (BARE, BOX, *SAID),
    "f1": (BARE,),
    "exact_match": (BARE,),
    "graded_match": (BARE,),
}


def worth(name: str, response: str, label: str, **fields: Any) -> float:
    value = resolve_reward(name)(RewardSample(prompt="", response=response, label=label, **fields))
    return value["acc"] if isinstance(value, dict) else value


def test_there_are_spellings_for_every_built_in_that_looks_at_the_label() -> None:
    assert set(SPELLINGS) == {name for name, entry in BUILT_IN.items() if entry.compares_with_label}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("name", SPELLINGS)
def test_every_label_graded_against_itself_is_right_in_every_spelling(name: str, kind: str) -> None:
    for label in LABELS[kind]:
        wrong = [form for form in SPELLINGS[name] if worth(name, form.format(label), label) != 1]
        assert wrong == [], label
        assert worth(f"boxed_{name}", BOX.format(label), label) == 1, label


@pytest.mark.parametrize(
    ("response", "label"),
    [
        ("The answer is 8.", "7"),
        ("The answer is East.", "West"),
        ("The answer is 7. No, the answer is 8.", "7"),
        (r"\boxed{\$18.91}", r"\$18.90"),
        ("<answer>2</answer>", "3"),
        ("#### 12", "2"),
        ("it may be East", "East"),
        ("x", "X"),
        ("", r"\emptyset"),
    ],
)
def test_math_tells_another_answer_from_the_label(response: str, label: str) -> None:
    assert worth("math", response, label) == 0


@pytest.mark.parametrize(
    ("response", "label", "expected"),
    [
        ("The answer is b.", "B", 1),
        ("the answer is (b), since", "B", 1),
        ("Answer: b", "B", 1),
        ("Answer: $\\text{b}$", "B", 1),
        ("The answer is option b.", "B", 1),
        ("**Answer:**\nb", "B", 1),
        ("<answer>b</answer>", "B", 1),
        ("b.", "B", 1),
        ("The answer is b.", "C", 0),
        ("The answer is a bit of a riddle", "A", 0),
        ("The answer is B.", "(B)", 1),
        ("The answer is B.", r"\text{(B)}", 1),
        ("The answer is Vitamin C.", "Vitamin C", 1),
        ("The answer is A: Vitamin C.", "B", 0),
    ],
)
def test_gpqa_takes_a_small_letter_where_it_is_the_answer_and_no_word(
    response: str, label: str, expected: float
) -> None:
    metadata = {"choices": ["Vitamin A", "Vitamin C", "iron"]} if "Vitamin" in response + label else {}
    assert worth("gpqa", response, label, metadata=metadata) == expected


def test_the_search_for_an_answer_is_linear_in_the_response() -> None:
    for part in ("answer ", "answer is \\begin{", "#### ", "\n####", "answer:\n", "<answer>", "answer is\\begin{a}\n"):
        declared(part * 20_000)  # minutes, if it were not
        bare(part * 20_000)
    assert declared("answer: 3" + " " * 100_000) == "3"


def test_money_is_compared_as_a_number() -> None:
    assert worth("math", r"\boxed{\$18.9}", r"\$18.90") == 1
    assert worth("math", r"It costs \$18.90, so \boxed{18.90}", r"\$18.9") == 1


async def test_a_reward_sees_the_response_with_special_tokens_and_without_by_name() -> None:
    """Also where ``</think>`` is such a token; what is published holds the text once."""
    seen: list[RewardSample] = []

    class Keeps:
        async def score(self, samples: Any) -> list[Any]:
            seen.extend(samples)
            return [Graded(resolve_reward("deepscaler")(sample)) for sample in samples]

    sample = Sample(
        index=0,
        tokens=b"",
        logprobs=b"",
        loss_mask=b"",
        versions=b"",
        reward=0.0,
        finish_reason="stop",
        text=r"hm\boxed{4}",
        raw_text=r"<think>hm</think>\boxed{4}<|im_end|>",
    )
    ticket = Ticket(group_id="0-0-0", prompt_tokens=b"", sampling_seed=0, label="4")
    (scored,), _ = await score(ticket, [sample], Keeps())
    assert (seen[0].response, seen[0].raw_response) == (sample.text, sample.raw_text)
    assert (scored.reward, scored.raw_text) == (1.0, "")
    raw = "<think>The answer is A.</think>b<|im_end|>"
    assert worth("gpqa", "The answer is A.b", "B", raw_response=raw) == 1
    assert worth("gemma_math", r"\boxed{9}\boxed{4}", "4", raw_response=r"\boxed{9}<channel|>\boxed{4}") == 1
    assert worth("gemma_math", r"\boxed{4}", "4", raw_response=r"\boxed{4}<channel|>no") == 0


def test_a_rollout_hands_on_its_text_with_special_tokens(digits_model: Path) -> None:
    tokenizer = Tokenizer(digits_model)
    end = tokenizer.eos_token_ids[0]
    trajectory = Trajectory(tokenizer.encode("7>"))
    trajectory.sampled([*tokenizer.encode("77"), end], [0.0] * 3, [0] * 3)
    sample = trajectory.sample(0, "stop", tokenizer)
    assert (sample.text, sample.raw_text) == ("77", "77" + tokenizer.decode([end], skip_special_tokens=False))
    assert sample.raw_text != sample.text
