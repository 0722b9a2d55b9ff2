"""OpenAI's ``/v1/chat/completions``: a request's JSON to checked fields, a reply to JSON or to server-sent events. Pure.

Promises: a body is a :class:`ChatRequest` or an ApiError (400) that names the field; what would change how tokens are drawn
in a way that the learner does not know of (penalties, a forced tool) is refused. ``temperature``, ``top_p`` and ``seed`` are
checked and then not used: the run's own hold, since the learner computes log-probs at ``rollout.rollout_temperature`` and
the samples of a group must differ. Unknown fields are ignored, as other servers do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from miles_async.rollout.sessions.errors import ApiError
from miles_async.text import messages as shared
from miles_async.text.messages import Messages
from miles_async.text.unicode import is_json_of_half_a_letter, well_formed

MAX_STOPS = 16  # stop strings of one request: each is looked for behind every token
MAX_STOP_CHARS = 1000


class ChatPart(msgspec.Struct):
    """A piece of a message's content; only text can be served."""

    type: str
    text: str = ""


class FunctionCall(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(msgspec.Struct):
    function: FunctionCall
    id: str = ""


class ChatMessage(msgspec.Struct):
    """One message of a conversation, as a client sends it; its further fields (refusal, audio, ...) are ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ChatPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class FunctionSpec(msgspec.Struct):
    name: str


class ToolSpec(msgspec.Struct):
    type: Literal["function"]
    function: FunctionSpec


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class ResponseFormat(msgspec.Struct):
    type: str


class ChatRequest(msgspec.Struct, kw_only=True):
    """The fields that are looked at; null means unset."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    model: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: int | None = None
    # only their defaults are served
    n: int | None = None
    top_logprobs: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: ResponseFormat | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens that the client wants."""
        limits = [limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None]
        return min(limits, default=None)

    @property
    def stops(self) -> list[str]:
        """The stop strings; an empty one, which would end every answer at once, is none."""
        return [text for text in ([self.stop] if isinstance(self.stop, str) else self.stop or ()) if text]

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        """The tools that the policy is shown."""
        return [] if self.tool_choice == "none" else self.tools or []


_decoder = msgspec.json.Decoder(ChatRequest)


def parse(data: bytes) -> ChatRequest:
    """The request in a body. Raises ApiError."""
    try:
        request = _decode(data)
        msgspec.convert(request.tools or [], list[ToolSpec])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ApiError(400, f"the request cannot be read: {error}") from None
    if len(request.stops) > MAX_STOPS or any(len(text) > MAX_STOP_CHARS for text in request.stops):
        raise ApiError(400, f"stop: at most {MAX_STOPS} texts of {MAX_STOP_CHARS} characters", param="stop")
    if request.n not in (None, 1):
        raise ApiError(400, f"n = {request.n}: only 1 is served", param="n")
    if request.tool_choice not in (None, "auto", "none"):
        raise ApiError(400, 'tool_choice: only "auto" and "none" are served', param="tool_choice")
    if request.response_format is not None and request.response_format.type != "text":
        raise ApiError(400, 'response_format: only {"type": "text"} is served', param="response_format")
    for name in ("top_logprobs", "presence_penalty", "frequency_penalty", "logit_bias"):
        if getattr(request, name):
            raise ApiError(400, f"{name} is not served", param=name)
    return request


def _decode(data: bytes) -> ChatRequest:
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError:
        if not is_json_of_half_a_letter(data):
            raise
        # half of a surrogate pair, of a tool or of the policy itself: msgspec takes no such text, and says something else
        return msgspec.convert(well_formed(json.loads(data)), ChatRequest)


def normalized(messages: Sequence[ChatMessage]) -> Messages:
    """The messages as a chat template takes them, and as they are compared. Raises ApiError."""
    try:
        return shared.normalized([msgspec.to_builtins(message) for message in messages])
    except shared.MessageError as error:
        raise ApiError(400, str(error), param="messages") from None


def check_rendered(messages: Messages, prompt: str) -> None:
    """Refuse what the policy would not see. An assistant's own words may be left out, as some templates do with a call's.

    Raises ApiError.
    """
    try:
        shared.check_rendered(messages, prompt, but_assistants=True)
    except shared.MessageError as error:
        raise ApiError(400, str(error), param="messages") from None


@dataclass
class Reply:
    """What the policy said. ``calls``: ``{"id", "name", "arguments"}`` of each tool call, arguments an object."""

    content: str
    finish_reason: str  # "stop" | "length" | "tool_calls"
    prompt_tokens: int
    completion_tokens: int
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[tuple[str, float]] = field(default_factory=list)  # text and log-prob of each sampled token

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message, as a client gets it and sends it back."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content, "refusal": None}
        if self.calls:
            message["content"] = self.content or None
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)},
                }
                for call in self.calls
            ]
        return message

    @property
    def usage(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def logprobs_object(self, wanted: bool | None) -> dict[str, Any] | None:
        if not wanted:
            return None
        entries = [
            {"token": text, "logprob": logprob, "bytes": list(text.encode(errors="replace")), "top_logprobs": []}
            for text, logprob in self.logprobs
        ]
        return {"content": entries, "refusal": None}


def completion(request: ChatRequest, reply: Reply, head: dict[str, Any]) -> bytes:
    """The answer to a request that does not stream. ``head``: id, created and model."""
    choice = {
        "index": 0,
        "message": reply.message,
        "logprobs": reply.logprobs_object(request.logprobs),
        "finish_reason": reply.finish_reason,
    }
    return msgspec.json.encode({**head, "object": "chat.completion", "choices": [choice], "usage": reply.usage})


def chunks(request: ChatRequest, reply: Reply, head: dict[str, Any]) -> Iterator[bytes]:
    """The server-sent events of a request that streams: the whole message, then why it ended."""
    message = reply.message
    for index, call in enumerate(message.get("tool_calls", ())):
        call["index"] = index
    delta = {"index": 0, "delta": message, "logprobs": reply.logprobs_object(request.logprobs), "finish_reason": None}
    last = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": reply.finish_reason}
    for choice in (delta, last):
        yield _event({**head, "object": "chat.completion.chunk", "choices": [choice]})
    if request.stream_options is not None and request.stream_options.include_usage:
        yield _event({**head, "object": "chat.completion.chunk", "choices": [], "usage": reply.usage})
    yield b"data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"
