"""The built-in reward of DAPO (arXiv:2503.14476): final answers compared as texts, after Minerva's normalisation."""

from __future__ import annotations

import re

from miles_async.rewards.builtin_rewards import label_of
from miles_async.rewards.sample import RewardSample

TAIL = 300  # characters

_ANSWER = re.compile(r"(?i)Answer\s*:\s*([^\n]+)")
_LINES = re.compile(r"(?is)Answer\s*:\s*(.+)")
# in this order: a later one finds what an earlier one has left
_REPLACED = (
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
)
_WORDS = (
    "square ways integers dollars mph inches hours km units \\ldots sue points feet minutes digits cents degrees cm gm pounds "
    "meters meals edges students childrentickets multiples"
)
_MARKS = (
    *("\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}", "\\text{}"),
    *("\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"', "\\dots", "<|im_end|>", "<|endoftext|>"),
)


def dapo(sample: RewardSample) -> dict[str, float]:
    """``score``: 1 if the answer is the label, else -1; ``acc``: 1 or 0. The reward is ``score``, or what reward_key says.

    The answer is what follows the last ``Answer:`` (in any case) on its line, within the last 300 characters; it and the
    label are compared as texts, both :func:`normalized`, or as they are. A label that is a whole number in another form
    (``34.0``) is brought to digits; other numbers stay as they are (Miles cuts 0.5 to 0). Raises ValueError without a label.
    """
    label = label_of(sample)
    # of a label that is longer than a line or the tail, its own text has to fit
    form, tail = (_LINES if "\n" in label.strip() else _ANSWER), max(TAIL, len(label) + len("Answer: "))
    answers = form.findall(sample.response[-tail:])
    correct = bool(answers) and _same(answers[-1], label)
    return {"score": 1.0 if correct else -1.0, "acc": float(correct)}


def _same(answer: str, label: str) -> bool:
    one, other = normalized(answer), normalized(label)
    return one in (other, _digits(other)) or answer.strip() == label.strip()


def normalized(answer: str) -> str:
    """The text of a final answer without units, articles and LaTeX's ornaments (Minerva, arXiv:2206.14858, appendix D)."""
    text = answer.rpartition("=")[2]
    for old, new in _REPLACED:
        text = text.replace(old, new)
    for removed in (*_WORDS.split(), *_MARKS):
        text = text.replace(removed, "")
    # of a line with a formula only the formula counts, of text in LaTeX its content
    text = re.sub(r".*?(\$.*?\$).*", r"\1", text)
    for command in (r"\\text\{(.*?)\}", r"\\textbf\{(.*?)\}", r"\\overline\{(.*?)\}", r"\\boxed\{(.*)\}"):
        text = re.sub(command, r"\1", text)
    # \frac12 and \sqrt2
    text = re.sub(r"frac([^{])(.)", r"frac{\1}{\2}", text)
    text = re.sub(r"sqrt([^{])", r"sqrt{\1}", text)
    text = text.replace("$", "")
    return (text.replace(",", "") if text.replace(",", "").isdigit() else text).strip()


def _digits(label: str) -> str:
    try:
        return str(int(label))
    except ValueError:
        pass
    try:
        number = float(label)
    except ValueError:
        return label
    return str(int(number)) if number.is_integer() else label
