"""The built-in reward of multiple-choice questions (GPQA, MMLU-Pro): which letter does the response choose?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any

from miles_async.rewards.boxed import last_boxed
from miles_async.rewards.final_answer import declared, same_text
from miles_async.rewards.sample import RewardSample

N_LETTERS = 8  # A to H, where the prompt does not say how many choices there are

LABEL_CHARS = 30  # of a letter in markup

_END = "</think>"
_SPECIAL = re.compile(r"<[|｜][^<>]{1,60}[|｜]>|<(?:eos|end_of_turn|pad)>")
_MARKUP = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf)\b|[*${}()\[\]_`\\\s]+")
# what says more is looked for first; of several matches the last one counts
_CHOICES = (
    r"\b(?i:answer)(?: is)?(?: ?: ?| )(?:(?i:option|choice) )?([A-Z])\b",
    r"\b([A-Z]) is (?:the )?(?:correct|right)\b",
    r"\b(?i:option|choice)(?: is)?(?: ?: ?| )([A-Z])\b",
    r"\b([A-Z])\b",
)
# a letter and nothing else, or one that is marked as a choice: "a" and "i" are words, too
_LETTER = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:,;]|$)(?!\w)")
_SETTING = re.compile(
    r"\\(?:boxed|text|textbf|mathrm|mathbf)\b|[*$`\"'{}]|^(?:the\s+)?(?:option|choice)\s+", re.IGNORECASE
)


def gpqa(sample: RewardSample) -> float:
    """1 if the response chooses the right letter, else 0; where no letter is known or chosen, 1 if it holds the right text.

    Read from the metadata, all optional: ``choices`` (a list, or an object whose values they are), ``valid_letters``,
    ``correct_letter``, ``correct_answer``, ``answer_text``. The label is the right letter, the text of the right choice, or
    its place (0-based). Only what follows the last ``</think>`` counts. A text is held as whole words, punctuation and case
    aside, and a single letter is no text. Raises ValueError: neither label nor metadata say what is right.
    """
    choices = _listed(sample.metadata.get("choices"))
    letters = [str(letter).upper() for letter in _listed(sample.metadata.get("valid_letters"))]
    letters = letters or list(ascii_uppercase[: len(choices) or N_LETTERS])
    right = _right_letter(sample, choices, letters)
    answer = _after_thinking(sample)
    texts = [sample.label, *(sample.metadata.get(key) for key in ("correct_answer", "answer_text"))]
    if right in letters[: len(choices)]:
        texts.append(choices[letters.index(right)])
    said = last_boxed(answer) or declared(answer) or answer
    if any(same_text(said, str(text)) for text in texts if text):
        return 1.0  # the label itself, or the right choice's text
    chosen = chosen_letter(answer, {*letters, right} if right else set(letters))
    if right and chosen:
        return float(right == chosen)
    targets = {_words(str(text)) for text in texts if text and len(str(text).strip()) > 1}
    if not targets and not right:
        raise ValueError("neither the label nor the metadata say which choice is right")
    response = _words(answer)
    return float(any(target.strip() and target in response for target in targets))


def chosen_letter(response: str, letters: set[str]) -> str | None:
    """The one of ``letters`` that ``response`` chooses, None if none.

    In this order: the last box, "answer is X" or "Answer: X" (and its like, ``final_answer.py``), "X is correct", "option X",
    the last capital that stands alone, or all of the response.
    """
    content = last_boxed(response)
    in_box = re.match(r"[A-Za-z]\b", _plain(content or ""))
    if in_box and in_box[0].upper() in letters:
        return in_box[0].upper()
    marked = _LETTER.match(_SETTING.sub("", declared(response) or "").strip())
    if marked and marked[1].upper() in letters:
        return marked[1].upper()
    text = _plain(response)
    if text.rstrip(".:,").upper() in letters:
        return text.rstrip(".:,").upper()
    for pattern in _CHOICES:
        found = [letter for letter in re.findall(pattern, text) if letter in letters]
        if found:
            return found[-1]
    return None


def _right_letter(sample: RewardSample, choices: list[Any], letters: list[str]) -> str | None:
    given = sample.metadata.get("correct_letter")
    label = (sample.label or "").strip()
    if isinstance(given, str) and given.strip():
        return given.strip().upper()
    letter = _plain(label).strip(".: ") if len(label) <= LABEL_CHARS else ""
    if len(letter) == 1 and letter.upper() in ascii_uppercase:
        return letter.upper()
    same = [letter for letter, choice in zip(letters, choices, strict=False) if _words(str(choice)) == _words(label)]
    if label and same:
        return same[0]
    return letters[int(label)] if label.isdecimal() and int(label) < len(letters) else None


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        return list(value.values())
    if not isinstance(value, list | tuple | str):
        raise ValueError(f"choices and valid_letters are lists, not {value!r}")
    return list(value)


def _after_thinking(sample: RewardSample) -> str:
    """The part of the response without special tokens, also where the end of the thinking is one of those."""
    if _END not in sample.raw_response or _END in sample.response:
        return sample.response.rpartition(_END)[2]
    answer = _SPECIAL.sub("", sample.raw_response.rpartition(_END)[2])
    return answer.removesuffix("</s>").strip()


def _plain(text: str) -> str:
    """The text without markup, a single space between words."""
    return " ".join(_MARKUP.sub(" ", text).split())


def _words(text: str) -> str:
    """The words in lower case with a space around each, so that ``in`` finds whole ones."""
    return " ".join(["", *re.findall(r"\w+", text.lower()), ""])
