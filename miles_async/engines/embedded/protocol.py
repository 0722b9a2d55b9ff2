"""What ``POST /generate`` takes, checked: SGLang 0.5.23's native request, for what this engine can do.

Promises: a body is either a list of well-formed :class:`Item` or a RequestError whose status and body are SGLang's;
unknown top-level fields are ignored, as SGLang does; a known field that asks
for something this engine cannot do is refused by name instead of being ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from miles_async.engines.embedded.sampling_params import (
    RequestError,
    RequestLimits,
    Sampling,
    SamplingParams,
    check_samplings,
    schema_error,
)

MAX_RESPONSES = 1 << 16  # of one request
MAX_RID_CHARS = 1000


class Item(NamedTuple):
    """One sequence to generate."""

    rid: str
    prompt: list[int]
    sampling: Sampling
    return_logprob: bool
    logprob_start_len: int  # -1: no log-probs of the prompt
    top_logprobs: int = 0  # of how many of the likeliest tokens at each prompt position, too
    routes_from: int = -1  # the position from which on its experts are asked for; -1: they are not


class Body(msgspec.Struct, kw_only=True):
    """The top level of a request, its polymorphic parts still raw."""

    text: str | list[str] | None = None
    input_ids: msgspec.Raw = msgspec.Raw()
    sampling_params: msgspec.Raw = msgspec.Raw()
    rid: str | list[str] | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = None
    top_logprobs_num: int | list[int] | None = None  # served where nothing is generated: for scoring
    return_routed_experts: bool | None = None  # left out of the answer where the model has none
    routed_experts_start_len: int | None = None
    stream: bool = False
    # known to SGLang, not served here
    input_embeds: Any = None
    image_data: Any = None
    video_data: Any = None
    audio_data: Any = None
    token_ids_logprob: Any = None
    return_text_in_logprobs: bool | None = None
    return_hidden_states: bool | list[bool] | None = None
    lora_path: Any = None
    session_params: Any = None
    custom_logit_processor: Any = None


_UNSERVED = (
    "input_embeds",
    "image_data",
    "video_data",
    "audio_data",
    "token_ids_logprob",
    "return_text_in_logprobs",
    "return_hidden_states",
    "lora_path",
    "session_params",
    "custom_logit_processor",
)

_body = msgspec.json.Decoder(Body)
_one_prompt = msgspec.json.Decoder(list[int])
_prompts = msgspec.json.Decoder(list[list[int]])
_one_sampling = msgspec.json.Decoder(SamplingParams)
_samplings = msgspec.json.Decoder(list[SamplingParams])


class GenerateRequest(NamedTuple):
    """A whole request: prompts are token ids, or texts still to be tokenized."""

    prompts: list[list[int]] | list[str]
    params: list[SamplingParams]  # one, or one for each prompt
    is_list: bool  # the answer is a list
    stream: bool
    body: Body


def parse(data: bytes) -> GenerateRequest:
    """The request in a JSON body. Raises RequestError."""
    try:
        body = _body.decode(data)
        prompts, is_list = _parse_prompts(body)
        params = _parse_sampling(body)
    except (UnicodeDecodeError, RecursionError) as error:
        raise schema_error(str(error)) from None
    except msgspec.DecodeError as error:
        message = str(error)
        if "unknown field" in message:  # "Object contains unknown field `nope` - at `$[...]`"
            name = message.split("`")[1]
            listed = ", ".join(f"`{field}`" for field in SamplingParams.__struct_fields__)
            raise RequestError(message, body={"error": f"unknown field `{name}`, expected one of {listed}"}) from None
        raise schema_error(message) from None
    for name in _UNSERVED:
        value = getattr(body, name)
        if value and value not in ([0], [False]):
            raise RequestError(f"{name} is not supported by the embedded engine")
    if not prompts:
        raise RequestError("input_ids cannot be empty.")
    if len(params) not in (1, len(prompts)):
        raise RequestError(f"sampling_params has {len(params)} entries for {len(prompts)} prompts")
    return GenerateRequest(prompts, params, is_list, body.stream, body)


def expand(
    request: GenerateRequest, prompts: list[list[int]], limits: RequestLimits, new_rid: Callable[[], str]
) -> list[Item]:
    """One Item for each response, the ``n`` responses of a prompt next to each other. Raises RequestError.

    With a sampling_seed, response ``i`` of a prompt gets seed + i: the n responses differ and can be asked for singly.
    """
    copies = request.params[0].n or 1
    if copies < 1 or any((p.n or 1) != copies for p in request.params):
        raise RequestError("The parallel_sample_num should be the same for all samples in sample params.")
    count = len(prompts) * copies
    if count > MAX_RESPONSES:
        raise RequestError(f"at most {MAX_RESPONSES} responses are given to one request, it asks for {count}")
    checked = check_samplings(request.params, limits)
    rids = _spread_rids(request, count, len(prompts), new_rid)
    wants = _spread(request.body.return_logprob, False, count, "return_logprob")
    starts = _spread(request.body.logprob_start_len, -1, count, "logprob_start_len")
    tops = _spread(request.body.top_logprobs_num, 0, count, "top_logprobs_num")
    items = []
    checked_prompt: list[int] | None = None
    for prompt in prompts:
        if prompt != checked_prompt:  # a group repeats one prompt
            limits.check_prompt(prompt)
            checked_prompt = prompt
    for index in range(count):
        prompt = prompts[index // copies]
        sampling = checked[index // copies if len(checked) > 1 else 0]
        if sampling.max_new_tokens is None:
            sampling = sampling._replace(max_new_tokens=limits.context_length - len(prompt))
        assert sampling.max_new_tokens is not None
        total = len(prompt) + sampling.max_new_tokens
        if total > limits.context_length:
            raise RequestError(
                f"Requested token count exceeds the model's maximum context length of {limits.context_length} tokens. "
                f"You requested a total of {total} tokens: {len(prompt)} tokens from the input messages and "
                f"{sampling.max_new_tokens} tokens for the completion."
            )
        start = max(starts[index], -1) if wants[index] else -1
        if start > len(prompt):
            raise RequestError(
                f"logprob_start_len={start} is higher than the number of input tokens {len(prompt)}. "
                "Please use a smaller logprob_start_len."
            )
        top = _top_logprobs(tops[index], limits, scoring=bool(wants[index]) and not sampling.max_new_tokens)
        routes = _routes_from(request.body, limits, len(prompt))
        if copies > 1 and sampling.seed is not None:  # else all n responses would be the same one
            sampling = sampling._replace(seed=sampling.seed + index % copies)
        items.append(Item(rids[index], prompt, sampling, wants[index], start, top, routes))
    return items


def _routes_from(body: Body, limits: RequestLimits, prompt: int) -> int:
    if not (body.return_routed_experts and limits.has_experts):
        return -1
    start = body.routed_experts_start_len or 0
    if not 0 <= start <= prompt:
        raise RequestError(
            f"routed_experts_start_len={start} must be in [0, {prompt}], the number of input tokens. "
            "Please use another routed_experts_start_len."
        )
    return start


def _top_logprobs(number: int, limits: RequestLimits, *, scoring: bool) -> int:
    if not 0 <= number <= limits.vocab_size:
        raise RequestError(f"top_logprobs_num must be in [0, {limits.vocab_size}], got {number}.")
    if number and not scoring:
        where = "but with return_logprob and max_new_tokens = 0"
        raise RequestError(f"top_logprobs_num is not supported by the embedded engine {where}")
    return number


def _parse_prompts(body: Body) -> tuple[list[list[int]] | list[str], bool]:
    if body.text is not None:
        return ([body.text], False) if isinstance(body.text, str) else (body.text, True)
    if bytes(body.input_ids) in (b"", b"null"):
        raise RequestError("Either text, input_ids or input_embeds should be provided.")
    raw = bytes(body.input_ids)
    if raw[1:].lstrip()[:1] == b"[":
        return _prompts.decode(raw), True
    return [_one_prompt.decode(raw)], False


def _parse_sampling(body: Body) -> list[SamplingParams]:
    raw = bytes(body.sampling_params)
    if raw in (b"", b"null"):
        return [SamplingParams()]
    return _samplings.decode(raw) if raw[:1] == b"[" else [_one_sampling.decode(raw)]


def _spread(value: Any, default: Any, count: int, name: str) -> list[Any]:
    if isinstance(value, list):
        if len(value) != count:
            raise RequestError(f"{name} has {len(value)} entries for {count} responses")
        return value
    return [default if value is None else value] * count


def _spread_rids(request: GenerateRequest, count: int, prompts: int, new_rid: Callable[[], str]) -> list[str]:
    rid = request.body.rid
    if any(len(name) > MAX_RID_CHARS for name in ([rid] if isinstance(rid, str) else rid or [])):
        raise RequestError(f"a rid may have {MAX_RID_CHARS} characters")
    if rid is None:
        return [new_rid() for _ in range(count)]
    if isinstance(rid, str):
        return [rid] if count == 1 and not request.is_list else [f"{rid}_{i}" for i in range(count)]
    if len(rid) != prompts:
        raise RequestError("The specified rids length mismatch with the batch_size for batch processing.")
    rids = rid if count == prompts else [f"{name}_{copy}" for name in rid for copy in range(count // prompts)]
    if len(set(rids)) != len(rids):
        raise RequestError(f"Duplicate request ID detected: {min(r for r in rids if rids.count(r) > 1)}")
    return rids
