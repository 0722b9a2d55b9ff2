"""What an agent has said and heard in one session, as sequences of tokens. Pure: nothing is generated here.

    branch 0   prompt ─ turn ─ told ─ turn ─ told ─ turn        the messages of a request extend those of an earlier turn
    branch 1      └─────────────────── told ─ turn              they extend one that another turn has extended already
    branch 2   prompt ─ turn                                    the history was rewritten, or the template rewrites it

Promises: tokens that were sampled are never tokenised again; a request that extends a known turn (the same tools and
messages, then the assistant's message exactly as it was returned) gets that turn's tokens, and behind them what the chat
template puts behind that message; a token that was sampled is the policy's own in one branch only: in another one it is
prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from miles_async.rollout.sessions.chat import Messages
from miles_async.rollout.trajectory import Trajectory
from miles_async.text.tokenizer import Tokenizer


@dataclass(eq=False)
class Branch:
    """One sequence. ``inherited``: how many tokens of its prompt are of another branch's response. ``end``: where in its own
    response the last finished turn ends."""

    trajectory: Trajectory
    inherited: int = 0
    end: int = 0
    finish_reason: str = "stop"
    busy: bool = False  # a turn is being generated

    @property
    def length(self) -> int:
        """Response tokens, those of the branch that it left included."""
        return self.inherited + len(self.trajectory.tokens)

    def finished(self) -> Trajectory:
        """A copy without what belongs to a turn under way."""
        return self.trajectory.first(self.end)


@dataclass(frozen=True)
class SessionTurn:
    """A finished turn: its place in the tokens, and in the text that the template makes of its messages."""

    branch: Branch
    end: int  # response tokens of the branch up to here
    # the text up to where the policy began to write: its length and digest, since it holds all that was said before
    asked_length: int
    asked_digest: bytes
    content: str  # of the message that was returned
    raw: str  # what was sampled, special tokens included
    has_calls: bool


@dataclass
class Begun:
    """A turn that can be generated: behind the tokens of ``branch``. ``start``: how many of its response are there before
    it, without what the agent has just told; ``mask``: theirs."""

    branch: Branch
    start: int
    mask: list[int]
    asked: str
    digest: bytes
    is_new: bool


class Conversation:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self.branches: list[Branch] = []
        self._tokenizer = tokenizer
        self._turns: dict[bytes, SessionTurn] = {}  # by the digest of the messages up to and with the assistant's

    def begin(self, messages: Messages, tools: Sequence[dict[str, Any]]) -> Begun:
        """Find or make the branch that the policy is to continue. Raises TokenizerError: the template refuses them.

        :meth:`finish` or :meth:`abandon` must follow.
        """
        asked = self._tokenizer.render_chat(messages, tools=list(tools) or None)
        digests = list(_digests(messages, tools))
        for digest in reversed(digests):
            turn = self._turns.get(digest)
            told = None if turn is None else self._told(turn, asked)
            if turn is not None and told is not None:
                begun = self._continue(turn, told, asked, digests[-1])
                break
        else:
            branch = Branch(Trajectory(self._tokenizer.encode(asked)))
            begun = Begun(branch, 0, [], asked, digests[-1], is_new=True)
        begun.branch.busy = True
        return begun

    def _told(self, turn: SessionTurn, asked: str) -> list[int] | None:
        """The tokens between those of ``turn`` and what the policy is to write next; None: the text does not go on from it.

        Behind the turn's text stands what closes the message; where the policy has closed it itself, that is not repeated.
        """
        if _text_digest(asked[: turn.asked_length]) != turn.asked_digest:
            return None
        rest = asked[turn.asked_length :]
        last, ends = turn.branch.trajectory.tokens[turn.end - 1], self._tokenizer.end_of_turn
        closed = last in ends.token_ids
        raw = turn.raw.removesuffix(self._tokenizer.decode([last], skip_special_tokens=False)) if closed else turn.raw
        # a stop string is no part of the message, and many templates strip what they are given
        said = next((text for text in (raw, turn.content, turn.content.strip()) if rest.startswith(text)), None)
        if said is None:
            return None
        rest = rest[len(said) :]
        if turn.has_calls and said != raw:  # the template writes the calls its own way: go on where the message ends
            if not closed or (end := ends.find(rest)) < 0:
                return None
            rest = rest[end:]
        return self._tokenizer.encode(ends.unclosed(rest) if closed else rest)

    def _continue(self, turn: SessionTurn, told: list[int], asked: str, digest: bytes) -> Begun:
        branch = turn.branch
        if not branch.busy and turn.end == branch.end:
            begun = Begun(branch, turn.end, list(branch.trajectory.mask), asked, digest, is_new=False)
            branch.trajectory.observed(told)
            return begun
        before = branch.trajectory
        trajectory = Trajectory(before.prompt + before.tokens[: turn.end] + told)
        return Begun(Branch(trajectory, branch.inherited + turn.end + len(told)), 0, [], asked, digest, is_new=True)

    def finish(self, begun: Begun, message: dict[str, Any], sampled: Sequence[int], finish_reason: str) -> None:
        """The policy has written ``sampled``, the last tokens of the branch; the agent gets ``message`` (normalized)."""
        branch = begun.branch
        branch.busy, branch.finish_reason, branch.end = False, finish_reason, len(branch.trajectory.tokens)
        if begun.is_new:
            self.branches.append(branch)
        self._turns[_digest(begun.digest, message)] = SessionTurn(
            branch=branch,
            end=branch.end,
            asked_length=len(begun.asked),
            asked_digest=_text_digest(begun.asked),
            content=message["content"],
            raw=self._tokenizer.decode(sampled, skip_special_tokens=False),
            has_calls="tool_calls" in message,
        )

    def abandon(self, begun: Begun) -> None:
        """The turn came to nothing: the branch is as it was."""
        trajectory = begun.branch.trajectory
        trajectory.cut(begun.start)
        trajectory.mask = begun.mask
        begun.branch.busy = False


def _digests(messages: Messages, tools: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    """The digests of the first message, of the first two, and so on, each with the tools."""
    digest = hashlib.blake2b(msgspec.json.encode(tools), digest_size=16).digest()
    for message in messages:
        digest = _digest(digest, message)
        yield digest


def _digest(before: bytes, message: dict[str, Any]) -> bytes:
    return hashlib.blake2b(before + msgspec.json.encode(message, order="sorted"), digest_size=16).digest()


def _text_digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
