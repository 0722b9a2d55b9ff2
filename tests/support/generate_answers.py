"""What an engine answers, and a stand-in for a tokenizer."""

from __future__ import annotations

from typing import Any

from miles_async.text.end_of_turn import EndOfTurn


class Decoder:
    """Stands in for a tokenizer."""

    context_length = None
    end_of_turn = EndOfTurn(())

    def decode(self, tokens: list[int], skip_special_tokens: bool = False) -> str:
        return " ".join(map(str, tokens))

    def texts(self, tokens: list[int]) -> tuple[str, str]:
        return self.decode(tokens), self.decode(tokens)


def answer(rid: str, tokens: list[int], finish: str = "stop", version: int = 4, **meta: Any) -> dict[str, Any]:
    spans = [{"version": str(version), "start": 0, "end": len(tokens)}]
    logprobs = [[-0.5, token, None] for token in tokens]
    fields = {"id": rid, "finish_reason": {"type": finish}, "output_token_logprobs": logprobs, "weight_versions": spans}
    return {"output_ids": tokens, "meta_info": fields | meta}
