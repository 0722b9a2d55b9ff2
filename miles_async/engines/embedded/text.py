"""Text in and out through the checkpoint's ``tokenizer.json``, where there is one.

Promises: without a tokenizer (file or library) the engine still serves token ids, texts come back empty and a request
that needs one is refused; a matched stop string or stop token is left out of the text unless asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miles_async.engines.embedded.sampling_params import RequestError, Sampling
from miles_async.text.tokenizer_files import engine_ends


class TextCodec:
    """Tokenizer of one checkpoint directory. ``eos_token_ids``: on what a response ends where ``ignore_eos`` is not set."""

    def __init__(self, path: str | Path) -> None:
        """Raises TokenizerError: a file of the tokenizer that cannot be read."""
        self._tokenizer: Any = _load(Path(path) / "tokenizer.json")
        self.eos_token_ids = frozenset(
            engine_ends(Path(path), self._tokenizer.token_to_id if self.available else lambda _: None)
        )

    @property
    def available(self) -> bool:
        return self._tokenizer is not None

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of texts, with the tokenizer's own special tokens. Raises RequestError without a tokenizer."""
        if self._tokenizer is None:
            raise RequestError("text needs a tokenizer: the checkpoint has no tokenizer.json; send input_ids")
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]

    def decode(self, tokens: list[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; empty without a tokenizer."""
        if self._tokenizer is None or not tokens:
            return ""
        return self._tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens)

    def stop_window(self, stops: tuple[str, ...]) -> int:
        """How many of the last tokens must be looked at to see a stop string that the newest token completes.

        A token can be a single byte of a character, and a tokenizer can spell a string in several ways: the number of
        its bytes bounds them all.
        """
        return max((len(stop.encode()) for stop in stops), default=0) + 1

    def matched_stop(self, tail: list[int], sampling: Sampling) -> str | None:
        """The first of the stop strings in the text of the last tokens."""
        text = self.decode(tail, skip_special_tokens=sampling.skip_special_tokens)
        return next((stop for stop in sampling.stop if stop in text), None)

    def answer(self, output: list[int], sampling: Sampling, finish: dict[str, Any] | None) -> str:
        """The text of a response, what it stopped on trimmed as SGLang does (``no_stop_trim`` keeps it)."""
        if self._tokenizer is None:
            return ""
        matched = finish.get("matched") if finish else None
        if isinstance(matched, int) and not sampling.no_stop_trim:
            output = output[:-1]
        text = self.decode(output, skip_special_tokens=sampling.skip_special_tokens)
        if isinstance(matched, str):
            at = text.find(matched)
            if at >= 0:
                return text[: at + len(matched)] if sampling.no_stop_trim else text[:at]
        return text


def _load(file: Path) -> Any:
    """The tokenizer in ``file``; None without the file, or without the library."""
    if not file.exists():
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
