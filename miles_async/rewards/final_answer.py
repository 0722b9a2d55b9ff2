"""What a response declares to be its answer, outside of a box, and when two answers are the same text. Pure, linear.

Promises: the spellings of the field are known (``<answer>…</answer>``, ``#### …``, ``The answer is …``, ``Answer: …``) and the
last one counts; two texts are the same if they differ by nothing but delimiters, spacing commands, currency signs of LaTeX,
white space and a full stop at the end.
"""

from __future__ import annotations

import re

_TAG, _END_TAG = "<answer>", "</answer>"
_DECLARED = re.compile(r"^[ \t]*####|\banswer(?:[ \t]+is\b|[ \t]*:)[ \t]*:?", re.IGNORECASE | re.MULTILINE)
_END_OF_MATRIX = re.compile(r"\\end\{[^{}\n]*\}.*")
_SENTENCE_END = re.compile(r"[.!]\s+(?=[A-Z])")  # what follows is another sentence
_MARKDOWN = re.compile(r"\*\*|__|`")

_DELIMITERS = re.compile(r"\\[()\[\]](?!\w)")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\(?:left|right)(?![a-zA-Z])|(?<!\\)\\[,;:! ]|~|\\q?quad(?![a-zA-Z])|\s+")
_WORDS = re.compile(r"[A-Za-z]{3,}")


def declared(response: str) -> str | None:
    """The text of the last answer that ``response`` declares outside of a box, all of its line; None if it declares none."""
    tag = response.rfind(_TAG)
    if tag >= 0:
        return response[tag + len(_TAG) :].partition(_END_TAG)[0].strip()
    start = -1
    for found in _DECLARED.finditer(response):
        start = found.end()
    if start < 0:
        return None
    rest = _MARKDOWN.sub("", response[start:].lstrip(" \t\n*_:"))
    line = rest.partition("\n")[0]
    if "\\begin{" in line and "\\end{" not in line and (end := _END_OF_MATRIX.search(rest)):
        line = rest[: end.end()]
    return line.strip()


def readings(answer: str) -> tuple[str, str]:
    """What ``answer`` may mean: all of it ("St. Louis"), or its first sentence ("5. This is prime.")."""
    return answer, _SENTENCE_END.split(answer, maxsplit=1)[0].strip()


def same_text(one: str, other: str) -> bool:
    """Whether the two answers are the same text and not empty; words, outside of formulas, in any case."""
    one, other = bare(one), bare(other)
    if _WORDS.search(one) and "\\" not in one:
        one, other = one.casefold(), other.casefold()
    return bool(one) and one == other


def bare(answer: str) -> str:
    """``answer`` without what only sets it: delimiters of formulas, ``\\text``, spaces, a currency's backslash, a full stop."""
    text = _DELIMITERS.sub("", answer.strip()).replace("\\$", "$").replace("$", "")
    text = _WRAPPED.sub(r"\1", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = _SPACING.sub("", text).replace("−", "-")
    return text.rstrip(".") or text
