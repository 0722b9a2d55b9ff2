"""The pieces of a response, one for each token, make up its text."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from miles_async.web.pieces import pieces


def of_bytes(tokens: Sequence[int]) -> str:
    """A tokenizer whose tokens are bytes."""
    return bytes(tokens).decode(errors="replace")


def words(tokens: Sequence[int]) -> str:
    """One that puts no space before a text's first word."""
    return " ".join(["the", "cat", "sat"][token] for token in tokens)


@given(st.text(max_size=20))
def test_characters_of_several_tokens_are_whole(text: str) -> None:
    tokens = list(text.encode())
    found = pieces(of_bytes, tokens)
    assert len(found) == len(tokens) and "".join(found) == text


def test_a_space_before_a_word_is_not_lost() -> None:
    assert pieces(words, [0, 1, 2, 1]) == ["the", " cat", " sat", " cat"]


def test_bytes_that_are_no_character_are_shown_as_such() -> None:
    found = pieces(of_bytes, [0xFF, *b"ok"])
    assert "".join(found).endswith("ok") and len(found) == 3
