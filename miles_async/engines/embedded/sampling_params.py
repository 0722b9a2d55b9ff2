"""The sampling parameters of a request, checked: SGLang's, for what this engine can do.

Promises: unknown parameters are refused, as SGLang does; a known one that asks for something this engine cannot do is refused
by name instead of being ignored; what is within :class:`RequestLimits` can be computed with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from miles_async.engines.embedded.sampling import NO_TOP_K

MAX_STOP_STRINGS = 32
MAX_STOP_CHARS = 1000  # of each: as many tokens are looked at after every token
MAX_STOP_IDS = 1024
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


class RequestLimits(NamedTuple):
    """What the served model allows."""

    vocab_size: int
    context_length: int
    has_tokenizer: bool
    has_experts: bool = False

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


def check_samplings(params: list[SamplingParams], limits: RequestLimits) -> list[Sampling]:
    """:func:`check_sampling` for each. The samples of a group differ in their seeds only: the rest is checked once."""
    checked: list[Sampling] = []
    known: tuple[SamplingParams, Sampling] | None = None
    for one in params:
        seed, one.sampling_seed = one.sampling_seed, None
        if known is None or one != known[0]:
            known = one, check_sampling(one, limits)
        _check_seed(seed)
        checked.append(known[1]._replace(seed=seed))
    return checked


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
    _check_seed(seed)
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


def _check_seed(seed: int | None) -> None:
    if seed is not None and not -SEED_LIMIT <= seed < SEED_LIMIT:
        raise RequestError(f"sampling_seed must be in [-2**63, 2**63 - 1], got {seed}.")


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
