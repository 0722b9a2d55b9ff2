"""Text in and out through the checkpoint's ``tokenizer.json``, where there is one.

Promises: without a tokenizer (file or library) the engine still serves token ids, texts come back empty and a request
that needs one is refused; a matched stop string or stop token is left out of the text unless asked for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from miles_async.engine.protocol import RequestError, Sampling


class TextCodec:
    """Tokenizer of one checkpoint directory. ``eos_token_ids`` holds the tokenizer's own end-of-sequence id, if any."""

    def __init__(self, path: str | Path) -> None:
        self._tokenizer: Any = None
        self.eos_token_ids: frozenset[int] = frozenset()
        file = Path(path) / "tokenizer.json"
        if not file.exists():
            return
        try:
            from tokenizers import Tokenizer  # optional: comes with the [train] extra
        except ImportError:
            return
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.eos_token_ids = self._read_eos(Path(path) / "tokenizer_config.json")

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

    def _read_eos(self, config: Path) -> frozenset[int]:
        if not config.exists():
            return frozenset()
        token = json.loads(config.read_bytes()).get("eos_token")
        content = token.get("content") if isinstance(token, dict) else token
        found = self._tokenizer.token_to_id(content) if content else None
        return frozenset() if found is None else frozenset((found,))
