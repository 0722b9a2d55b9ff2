"""The text of each token of a response, so that all of them together are its text. Pure.

A token alone may be half a character, or lose the space before it; so each is decoded behind those that came before it, as far
back as the last one that ended a character (the window of vLLM's and text-generation-inference's streaming).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"  # what a decoder says of half a character
LONGEST = 8  # tokens of one character: more are no character


def pieces(decode: Callable[[Sequence[int]], str], tokens: Sequence[int]) -> list[str]:
    """One text for each of ``tokens``; of several that make up a character the last one has it, the others are empty."""
    found: list[str] = []
    begin = read = 0  # of the window: where it begins, and up to where its text was given
    for end in range(1, len(tokens) + 1):
        before, now = decode(tokens[begin:read]), decode(tokens[begin:end])
        is_whole = not now.endswith(BROKEN) or end - read >= LONGEST or end == len(tokens)
        if is_whole:
            found.append(now[len(before) :] if now.startswith(before) else now)
            begin, read = read, end
        else:
            found.append("")
    return found
