"""The two texts of a response, without special tokens and with them, are those of two calls of ``decode``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from miles_async.text.tokenizer import Tokenizer

BYTES = pre_tokenizers.ByteLevel.alphabet()  # a token for each byte, so that letters may be broken off
SPECIAL = ["<eos>", "<｜end｜>", "½", "é!"]  # the last two are bytes to a decoder of bytes
SIZE = len(BYTES) + 2  # the other two are in it
DECODERS: dict[str, Any] = {
    "bytes": decoders.ByteLevel(),
    "fuse": decoders.Fuse(),
    "words": decoders.WordPiece(),
    "metaspace": decoders.Metaspace(),
    "none": None,
}


def tokenizer_with(decoder: Any, directory: Path) -> tuple[Tokenizer, list[int]]:
    """The tokenizer and its special tokens."""
    made = tokenizers.Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(sorted(BYTES))}, unk_token="!"))
    made.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in SPECIAL])
    if decoder is not None:
        made.decoder = decoder
    made.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text("{}")
    return Tokenizer(directory), [token for token in map(made.token_to_id, SPECIAL) if token is not None]


@pytest.mark.parametrize("decoder", DECODERS)
def test_both_texts_are_those_of_two_calls_whatever_the_decoder(decoder: str, tmp_path: Path) -> None:
    tokenizer, special = tokenizer_with(DECODERS[decoder], tmp_path)
    assert len(special) == len(SPECIAL)

    @given(st.lists(st.integers(0, SIZE - 1), max_size=6), st.lists(st.sampled_from(special), max_size=2))
    def both(tokens: list[int], end: list[int]) -> None:
        tokens = tokens + end
        expected = tokenizer.decode(tokens), tokenizer.decode(tokens, skip_special_tokens=False)
        assert tokenizer.texts(tokens) == expected

    both()
