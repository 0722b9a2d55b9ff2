"""The built-in rewards that compare texts, or look at nothing: plain functions of a ``RewardSample``, with their formulas.

All are cheap enough for an event loop: linear in the length of the response.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from collections import Counter
from operator import eq

from miles_async.rewards.sample import RewardSample

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CLOSED = {"yes", "no", "noanswer"}


def graded_match(sample: RewardSample) -> float:
    """Positions where response and label agree / length of the longer one, counted in characters; in [0, 1].

    The end of sequence counts as one position: the label always has one, the response if it ended by itself. So 1 means
    the label and then a stop, and both rambling and stopping early cost. Raises ValueError without a label.
    """
    label, response, ended = label_of(sample), sample.response, sample.finish_reason == "stop"
    equal = sum(map(eq, response, label)) + (ended and len(response) == len(label))
    return equal / (max(len(response) + ended, len(label) + 1))


def exact_match(sample: RewardSample) -> float:
    """1 if the response is the label, surrounding white space aside, else 0. Raises ValueError without a label."""
    return float(sample.response.strip() == label_of(sample).strip())


def f1(sample: RewardSample) -> float:
    """``2 n / (words in the response + words in the label)``, n the words they share (as multisets); in [0, 1].

    The token F1 of SQuAD: lower case, without ASCII punctuation and the articles a, an, the. 0 if they share nothing, also
    where both are empty; and 0 if one of them is yes, no or noanswer and the other one is not the same (HotpotQA).
    A bare letter A is no article, but a choice. Raises ValueError without a label.
    """
    response, label = _squad_words(sample.response), _squad_words(label_of(sample))
    if response != label and any(len(words) == 1 and words[0] in _CLOSED for words in (response, label)):
        return 0.0
    shared = sum((Counter(response) & Counter(label)).values())
    if not response and not label:  # a bare A is a choice and no article
        return float(all(text.strip().strip("().").lower() == "a" for text in (sample.response, label_of(sample))))
    return 2 * shared / (len(response) + len(label)) if shared else 0.0


def random(sample: RewardSample) -> float:
    """0 or 1, each with probability 1/2, drawn anew for every call: to measure a pipeline, or as a baseline."""
    return float(secrets.randbelow(2))


def deterministic_random(sample: RewardSample) -> float:
    """0 or 1, always the same for the same tokens and response: the parity of the first byte of a SHA-256.

    Hashed is the UTF-8 of the response's token ids as Python writes a list, ``[3, 7, 1]``, followed by the response's text.
    (Miles hashes the prompt's ids too.)
    """
    hashed = hashlib.sha256((str(sample.tokens) + sample.response).encode()).digest()
    return float(hashed[0] % 2)


def label_of(sample: RewardSample) -> str:
    """The label. Raises ValueError: there is none."""
    if sample.label is None:
        raise ValueError("the prompt has no label")
    return sample.label


def _squad_words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
