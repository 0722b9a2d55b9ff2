"""What ``POST /generate`` takes, checked: SGLang 0.5.23's native request, for what this engine can do.

Promises: a body is either a list of well-formed :class:`Item` or a RequestError whose status and body are SGLang's;
unknown top-level fields are ignored and unknown sampling parameters refused, as SGLang does; a known field that asks
for something this engine cannot do is refused by name instead of being ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from miles_async.engines.embedded.sampling import NO_TOP_K

MAX_STOP_STRINGS = 32
MAX_STOP_CHARS = 1000  # of each: as many tokens are looked at after every token
MAX_STOP_IDS = 1024
MAX_RESPONSES = 1 << 16  # of one request
MAX_RID_CHARS = 1000
FLOAT_LIMIT = 1e30  # a float32 holds it, and what is computed with it
SEED_LIMIT = 1 << 63


class RequestError(ValueError):
    """A refused request: HTTP ``status`` and the JSON ``body`` SGLang would answer with."""

    def __init__(self, message: str, *, body: Any = None, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message}} if body is None else body


def schema_error(message: str) -> RequestError:
    """The body is not JSON or has a field of the wrong type."""
    return RequestError(message, body={"object": "error", "message": message, "type": "Bad Request", "code": 400})


class SamplingParams(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """SGLang's sampling parameters, null meaning the default. The lower part is known, but only its default is served."""

    max_new_tokens: int | None = 128
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    top_k: int | None = -1
    min_p: float | None = 0.0
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = False
    sampling_seed: int | None = None
    n: int | None = 1
    skip_special_tokens: bool | None = True
    spaces_between_special_tokens: bool | None = True
    no_stop_trim: bool | None = False
    logit_bias: dict[str, float] | None = None
    stream_interval: int | None = None

    frequency_penalty: float | None = 0.0
    presence_penalty: float | None = 0.0
    repetition_penalty: float | None = 1.0
    min_new_tokens: int | None = 0
    beam_width: int | None = None
    stop_regex: str | list[str] | None = None
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    custom_params: dict[str, Any] | None = None
    watermark: dict[str, Any] | None = None


# from here on a parameter may only have its default
_FIRST_UNSERVED = SamplingParams.__struct_fields__.index("frequency_penalty")
_DEFAULT_TAIL = msgspec.structs.astuple(SamplingParams())[_FIRST_UNSERVED:]


class Sampling(NamedTuple):
    """Checked parameters of one response. ``top_k`` is NO_TOP_K for none; ``seed`` None: the engine picks one."""

    max_new_tokens: int | None  # None: as many as the context holds
    temperature: float
    greedy: bool
    top_p: float
    top_k: int
    min_p: float
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    ignore_eos: bool
    seed: int | None
    skip_special_tokens: bool
    no_stop_trim: bool
    logit_bias: dict[int, float] | None = None  # added to the logits, before the temperature


class Item(NamedTuple):
    """One sequence to generate."""

    rid: str
    prompt: list[int]
    sampling: Sampling
    return_logprob: bool
    logprob_start_len: int  # -1: no log-probs of the prompt
    top_logprobs: int = 0  # of how many of the likeliest tokens at each prompt position, too


class Body(msgspec.Struct, kw_only=True):
    """The top level of a request, its polymorphic parts still raw."""

    text: str | list[str] | None = None
    input_ids: msgspec.Raw = msgspec.Raw()
    sampling_params: msgspec.Raw = msgspec.Raw()
    rid: str | list[str] | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: int | list[int] | None = None
    top_logprobs_num: int | list[int] | None = None  # served where nothing is generated: for scoring
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
    checked = [check_sampling(p, limits) for p in request.params]
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
        if copies > 1 and sampling.seed is not None:  # else all n responses would be the same one
            sampling = sampling._replace(seed=sampling.seed + index % copies)
        items.append(Item(rids[index], prompt, sampling, wants[index], start, top))
    return items


def _top_logprobs(number: int, limits: RequestLimits, *, scoring: bool) -> int:
    if not 0 <= number <= limits.vocab_size:
        raise RequestError(f"top_logprobs_num must be in [0, {limits.vocab_size}], got {number}.")
    if number and not scoring:
        where = "but with return_logprob and max_new_tokens = 0"
        raise RequestError(f"top_logprobs_num is not supported by the embedded engine {where}")
    return number


class RequestLimits(NamedTuple):
    """What the served model allows."""

    vocab_size: int
    context_length: int
    has_tokenizer: bool

    def check_prompt(self, prompt: list[int]) -> None:
        """Raises RequestError for an empty or too long prompt, or an id outside of the vocabulary (named)."""
        if not prompt:
            raise RequestError("input_ids cannot be empty.")
        if len(prompt) >= self.context_length:
            raise RequestError(
                f"The input ({len(prompt)} tokens) is longer than the model's context length "
                f"({self.context_length} tokens)."
            )
        if min(prompt) < 0 or max(prompt) >= self.vocab_size:
            bad = next(token for token in prompt if not 0 <= token < self.vocab_size)
            raise RequestError(f"token id {bad} in input_ids is outside of the vocabulary [0, {self.vocab_size - 1}]")


def check_sampling(params: SamplingParams, limits: RequestLimits) -> Sampling:
    """Defaults for nulls, SGLang's ranges. Raises RequestError naming the parameter and its value."""
    temperature = 1.0 if params.temperature is None else params.temperature
    if not 0.0 <= temperature <= FLOAT_LIMIT:
        raise RequestError(f"temperature must be a non-negative finite number, got {temperature}.")
    top_p = 1.0 if params.top_p is None else params.top_p
    if not 0.0 < top_p <= 1.0:
        raise RequestError(f"top_p must be in (0, 1], got {top_p}.")
    top_k = -1 if params.top_k is None else params.top_k
    if top_k < 1 and top_k != -1:
        raise RequestError(f"top_k must be -1 (disable) or at least 1, got {top_k}.")
    min_p = params.min_p or 0.0
    if not 0.0 <= min_p <= 1.0:
        raise RequestError(f"min_p must be in [0, 1], got {min_p}.")
    max_new = params.max_new_tokens
    if max_new is not None and max_new < 0:
        raise RequestError(f"max_new_tokens must be at least 0, got {max_new}.")
    seed = params.sampling_seed
    if seed is not None and not -SEED_LIMIT <= seed < SEED_LIMIT:
        raise RequestError(f"sampling_seed must be in [-2**63, 2**63 - 1], got {seed}.")
    tail = msgspec.structs.astuple(params)[_FIRST_UNSERVED:]
    if tail != _DEFAULT_TAIL:
        for name, value, default in zip(params.__struct_fields__[_FIRST_UNSERVED:], tail, _DEFAULT_TAIL, strict=True):
            if value and value != default:
                raise RequestError(f"{name} is not supported by the embedded engine")
    greedy = temperature < 1e-6 or top_k == 1
    return Sampling(
        max_new_tokens=max_new,
        temperature=1.0 if temperature < 1e-6 else temperature,
        greedy=greedy,
        top_p=top_p,
        top_k=NO_TOP_K if top_k == -1 else min(top_k, NO_TOP_K),
        min_p=min_p,
        stop=_check_stop(params.stop, limits),
        stop_token_ids=_check_stop_ids(params.stop_token_ids or [], limits),
        ignore_eos=bool(params.ignore_eos),
        seed=seed,
        skip_special_tokens=params.skip_special_tokens is not False,
        no_stop_trim=bool(params.no_stop_trim),
        logit_bias=_check_bias(params.logit_bias, limits),
    )


def _check_bias(bias: dict[str, float] | None, limits: RequestLimits) -> dict[int, float] | None:
    for token in bias or ():
        if not (token.isascii() and token.isdecimal() and len(token) < 10) or int(token) >= limits.vocab_size:
            raise RequestError(f"logit_bias must has keys in [0, {limits.vocab_size - 1}], got {token}.")
    for token, value in (bias or {}).items():
        if not abs(value) <= FLOAT_LIMIT:
            raise RequestError(f"logit_bias of {token} must be a number of at most {FLOAT_LIMIT:g}, got {value}.")
    return {int(token): value for token, value in bias.items()} if bias else None


def _check_stop_ids(ids: list[int], limits: RequestLimits) -> frozenset[int]:
    """Those that the model can sample: another one never stops it."""
    if len(ids) > MAX_STOP_IDS:
        raise RequestError(f"at most {MAX_STOP_IDS} stop_token_ids are allowed, got {len(ids)}")
    return frozenset(token for token in ids if 0 <= token < limits.vocab_size)


def _check_stop(stop: str | list[str] | None, limits: RequestLimits) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(strings) > MAX_STOP_STRINGS:
        raise RequestError(f"at most {MAX_STOP_STRINGS} stop strings are allowed, got {len(strings)}")
    if any(len(text) > MAX_STOP_CHARS for text in strings):
        raise RequestError(f"a stop string may have {MAX_STOP_CHARS} characters")
    if strings and not limits.has_tokenizer:
        raise RequestError("stop strings need a tokenizer: the checkpoint has no tokenizer.json")
    return tuple(text for text in strings if text)


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
