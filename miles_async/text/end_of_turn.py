"""What ends a turn of the policy: one answer for engines, rollouts, sessions and SFT.

    engines stop by themselves on    config.json, generation_config.json, the tokenizer's eos, what SGLang adds
    requests ask them to stop on     what the chat template closes an assistant's message with, where none of those is it
    a turn is closed with            that token in a chat, the tokenizer's eos behind plain text

Promises: a turn that the policy has closed with any of these is closed; what is appended behind it closes it no second time.
Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EndOfTurn:
    """``engines``: ids on which engines stop by themselves, the tokenizer's own end first. ``template``: what the chat
    template closes an assistant's message with, if that is a special token. ``texts``: of all of them."""

    engines: tuple[int, ...]
    template: int | None = None
    texts: tuple[str, ...] = ()

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Every token that ends a turn."""
        return self.engines if self.template in (None, *self.engines) else (*self.engines, self.template)

    @property
    def unknown_to_engines(self) -> tuple[int, ...]:
        """What a request has to name among its ``stop_token_ids``."""
        return self.token_ids[len(self.engines) :]

    def closing(self, *, chat: bool) -> tuple[int, ...]:
        """The token, or none, that closes an answer which somebody else has written for the policy."""
        if chat and self.template is not None:
            return (self.template,)
        return self.engines[:1]

    def unclosed(self, text: str) -> str:
        """``text`` without the end that it begins with: what follows a turn that is closed already."""
        rest = text.lstrip()  # some templates put a blank before it
        for end in sorted(self.texts, key=len, reverse=True):
            if rest.startswith(end):
                return rest[len(end) :]
        return text

    def find(self, text: str) -> int:
        """Where in ``text`` the first end begins; -1: there is none."""
        return min((place for end in self.texts if (place := text.find(end)) >= 0), default=-1)

    def length(self, tokens: Sequence[int]) -> int | None:
        """How many of ``tokens`` the first turn in them takes, its end included; None: none ends there."""
        ends = frozenset(self.token_ids)
        return next((place for place, token in enumerate(tokens, 1) if token in ends), None)
