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

from miles_async.sessions.errors import ApiError

Messages = list[dict[str, Any]]


class Part(msgspec.Struct):
    """A piece of a message's content; only text can be served."""

    type: str
    text: str = ""


class FunctionCall(msgspec.Struct):
    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(msgspec.Struct):
    function: FunctionCall
    id: str = ""


class Message(msgspec.Struct):
    """One message of a conversation, as a client sends it; its further fields (refusal, audio, ...) are ignored."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
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

    messages: Annotated[list[Message], Meta(min_length=1)]
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
        return [self.stop] if isinstance(self.stop, str) else [text for text in self.stop or () if text]

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        """The tools that the policy is shown."""
        return [] if self.tool_choice == "none" else self.tools or []


_decoder = msgspec.json.Decoder(ChatRequest)


def parse(data: bytes) -> ChatRequest:
    """The request in a body. Raises ApiError."""
    try:
        request = _decoder.decode(data)
        msgspec.convert(request.tools or [], list[ToolSpec])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(400, f"the request cannot be read: {error}") from None
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


def normalized(messages: Sequence[Message]) -> Messages:
    """The messages as a chat template takes them, and as they are compared: unset fields left out, content always a text,
    arguments of tool calls as an object where they are one. Raises ApiError: a part of a content is not text."""
    return [_normalized(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _normalized(message: Message, place: str) -> dict[str, Any]:
    content = message.content or ""
    if isinstance(content, list):
        for part in content:
            if part.type != "text":
                raise ApiError(400, f'{place}: a part of the type "{part.type}"; only text is served', param="messages")
        content = "".join(part.text for part in content)
    result: dict[str, Any] = {"role": message.role, "content": content}
    if message.name:
        result["name"] = message.name
    if message.tool_call_id:
        result["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        result["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return result


def _arguments(value: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return parsed if isinstance(parsed, dict) else value
    return value


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
