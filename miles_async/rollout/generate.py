"""Sampling through SGLang's native /generate: what is asked for, what an answer says, going on where an engine broke off.

Promises: token ids and log-probs are the engine's own, never re-tokenised; every token carries the weight version that
sampled it (``meta_info.weight_versions``); a sample that an engine aborts (a weight update with ``pause_mode = "abort"``, a
drain) goes on from the tokens it has, so that they are lost only with their engine.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import uuid4

from bus.codec import TOKENS, unpack
from bus.fields import MAX_NUMBER
from bus.messages import Sample, Ticket
from miles_async.config.schema import Rollout
from miles_async.groups.routes import RouteShape
from miles_async.rollout.bounds import NO_BOUNDS, Bounds
from miles_async.rollout.interface import Ask
from miles_async.rollout.routes import has_routes, read_routes, routes_asked, unpaired_in
from miles_async.rollout.trajectory import Trajectory
from miles_async.text.tokenizer import Tokenizer

MAX_ABORTS = 5  # a sample aborted so often in a row, without a token more, costs its group
SEED_SPACE = 2**31 - 1  # what SGLang takes as a sampling_seed
CANCELED = "canceled by its own worker"  # in the place of an engine's message, for what was called back to go on later


class AbortedError(RuntimeError):
    """An engine aborted the same sample again and again."""


class OutdatedError(RuntimeError):
    """A response has a token too old for any learner to come; one line."""


class NoRoomError(RuntimeError):
    """A prompt fills the engines' context; one line."""


class AnswerError(RuntimeError):
    """An engine's answer contradicts itself, or does not say what is needed."""


@dataclass
class Turn:
    """What the policy is to write next in ``trajectory``: up to an end of its own, or to the limit of the response.

    rid: of its requests, each with its number behind it. seed: of the whole sample.
    """

    trajectory: Trajectory
    rid: str
    seed: int
    finish: dict[str, Any] = field(default_factory=dict)  # SGLang's finish_reason, once it has ended
    start: int = 0  # response tokens that were there before it
    aborts: int = 0  # in a row, without a token more

    def __post_init__(self) -> None:
        self.start = len(self.trajectory.tokens)

    @property
    def finish_reason(self) -> str:
        """ "stop" or "length"."""
        return self.finish["type"]


class EngineAnswer(NamedTuple):
    """What an engine sampled, one entry for each token; and its ``meta_info``."""

    tokens: list[int]
    logprobs: list[float]
    versions: list[int]
    finish: dict[str, Any]
    meta: dict[str, Any]


def sampling_params(
    config: Rollout, seed: int, max_new_tokens: int | None = None, stop_token_ids: Sequence[int] = ()
) -> dict[str, Any]:
    """SGLang's sampling parameters of one sample; ``max_new_tokens``: None for a whole response. ``stop_token_ids``: beside
    those of the configuration."""
    params: dict[str, Any] = {
        "temperature": config.rollout_temperature,
        "top_p": config.rollout_top_p,
        "top_k": config.rollout_top_k,
        "max_new_tokens": config.rollout_max_response_len if max_new_tokens is None else max_new_tokens,
        "sampling_seed": seed,
        "no_stop_trim": True,
        "spaces_between_special_tokens": False,
    }
    if stops := [text for text in config.rollout_stop if text]:  # SGLang finds an empty one behind every token
        params["stop"] = stops
    if ids := list(dict.fromkeys([*config.rollout_stop_token_ids, *stop_token_ids])):
        params["stop_token_ids"] = ids
    return params


def continuation_seed(seed: int, tokens: int) -> int:
    """The seed of the request that goes on behind ``tokens`` response tokens of the sample with ``seed``.

    An engine draws its noise from the seed and the place in *its* response, so the sample's own seed would repeat the noise
    that the first tokens had. The mixture (splitmix64, Steele et al. 2014) is unrelated to it and the same in every run.
    """
    if tokens == 0:
        return seed
    x = (seed + tokens * 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return (x ^ (x >> 31)) % SEED_SPACE


async def complete(turns: Sequence[Turn], config: Rollout, ask: Ask, bounds: Bounds = NO_BOUNDS) -> None:
    """Let the policy write every turn to its end; those that an engine aborts are asked for again, together.

    A stop string that lies across such a seam is not seen: an engine looks for it in what it samples itself.
    Raises NoRoomError, OutdatedError (before anything is asked), AnswerError, AbortedError, and what ``ask`` raises.
    """
    open_turns, number = list(turns), 0
    while open_turns:
        for turn in open_turns:
            if turn.trajectory.versions and bounds.outdated(oldest := min(turn.trajectory.versions)):
                raise OutdatedError(
                    f"sample {turn.rid} has a token of version {oldest}, which no step can train any more"
                )
        body = _body(open_turns, config, bounds, number)
        answers = await ask(body)
        if not isinstance(answers, list) or len(answers) != len(open_turns):
            raise AnswerError(f"{len(open_turns)} answers were asked for, not {answers!r:.100}")
        for turn, answer in zip(open_turns, answers, strict=True):
            _take(turn, read_answer(answer), config, bounds, body.get("routed_experts_start_len", 0))
        open_turns = [turn for turn in open_turns if not turn.finish]
        number += 1


def _room(turn: Turn, config: Rollout, bounds: Bounds) -> int:
    """Tokens that the response may still get, at least one. Raises NoRoomError."""
    room = bounds.room(turn.trajectory, config)
    if room < 1:
        raise NoRoomError(
            f"sample {turn.rid}: {len(turn.trajectory.prompt)} tokens of prompt and {len(turn.trajectory.tokens)} of response "
            f"leave no room: rollout.rollout_max_response_len = {config.rollout_max_response_len}, the engines' context is "
            f"{bounds.context_length} (engine.context_length)"
        )
    return room


def _body(turns: Sequence[Turn], config: Rollout, bounds: Bounds, number: int) -> dict[str, Any]:
    same = sampling_params(config, 0, 0, bounds.stop_token_ids)
    return {
        "rid": [f"{turn.rid}.{number}" for turn in turns],
        "input_ids": [turn.trajectory.input_ids for turn in turns],
        "sampling_params": [
            {
                **same,
                "sampling_seed": continuation_seed(turn.seed, len(turn.trajectory.tokens)),
                "max_new_tokens": _room(turn, config, bounds),
            }
            for turn in turns
        ],
        "return_logprob": True,
        **({} if bounds.routes is None else routes_asked([len(turn.trajectory.routes) for turn in turns])),
    }


def _take(turn: Turn, answer: EngineAnswer, config: Rollout, bounds: Bounds, first_route: int) -> None:
    """Add what was sampled to the turn's trajectory, and see whether it has ended. ``first_route``: the first row asked for."""
    trajectory = turn.trajectory
    if answer.finish["type"] == "abort":
        kept = config.partial_rollout and _is_sound(answer) and (bounds.routes is None or has_routes(answer.meta))
        if kept and answer.tokens:
            turn.aborts = 0
        elif answer.finish.get("message") != CANCELED:
            turn.aborts += 1
        if turn.aborts >= MAX_ABORTS:
            raise AbortedError(f"sample {turn.rid} was aborted {MAX_ABORTS} times: {answer.finish.get('message')}")
        if not kept or not answer.tokens:
            return
    if bounds.routes is None:
        trajectory.sampled(answer.tokens, answer.logprobs, answer.versions)
    else:
        _take_routed(trajectory, answer, bounds, bounds.routes, first_route)
    if answer.finish["type"] != "abort":
        turn.finish = answer.finish
    elif bounds.room(trajectory, config) < 1:
        turn.finish = {"type": "length", "length": len(trajectory.tokens)}
    elif config.mask_offpolicy_in_partial_rollout:
        trajectory.mask_all()


def _take_routed(trajectory: Trajectory, answer: EngineAnswer, bounds: Bounds, shape: RouteShape, start: int) -> None:
    """What was sampled, with the experts of all tokens that had none yet; those that do not belong to it are not trained on."""
    rows = len(trajectory.prompt) + len(trajectory.tokens) + len(answer.tokens) - 1
    try:
        routes = read_routes(answer.meta, shape, start, rows, len(trajectory.routes))
        unpaired = unpaired_in(answer.meta, answer.versions, updates_retract=bounds.updates_retract)
    except (TypeError, ValueError) as error:
        raise AnswerError(f"{answer.meta.get('id')}: {error}") from None
    trajectory.sampled(answer.tokens, answer.logprobs, answer.versions, routes, unpaired)


def _is_sound(answer: EngineAnswer) -> bool:
    """Whether the tokens of an aborted answer can be gone on from: not those of weights that have diverged."""
    return answer.finish.get("status_code") is None and all(map(math.isfinite, answer.logprobs))


def own_cache(body: dict[str, Any]) -> dict[str, Any]:
    """``body`` with a prefix cache that no other request shares, for ``weights.pause_mode = "in_place"``.

    There the engines cannot flush what the old weights have cached, since requests go on with it. A key of the version would
    not do: nobody but the engine knows with which weights it will fill the cache. The samples of one body share theirs.
    """
    return {**body, "extra_key": uuid4().hex}


def mark_canceled(answers: Any) -> None:
    """Say in the answers that were aborted that it was their worker's own wish: no failure of theirs."""
    for answer in answers if isinstance(answers, list) else ():
        with contextlib.suppress(LookupError, TypeError):  # of another form: whoever reads it will refuse it
            finish = answer["meta_info"]["finish_reason"]
            if finish["type"] == "abort":
                finish["message"] = CANCELED


def read_answer(answer: dict[str, Any]) -> EngineAnswer:
    """The tokens of one answer. Raises AnswerError: it has another form than /generate gives, or its ids, log-probs and
    version spans do not fit together."""
    try:
        meta = answer["meta_info"]
        logprobs, tokens = _columns(meta["output_token_logprobs"])
        if tokens != list(answer["output_ids"]):
            raise AnswerError(f"{meta.get('id')}: output_ids and output_token_logprobs differ")
        finish = dict(meta["finish_reason"])
        if finish["type"] not in ("stop", "length", "abort"):
            raise AnswerError(f"{meta.get('id')}: finish_reason {finish!r:.100}")
        return EngineAnswer(tokens, logprobs, token_versions(meta, len(tokens)), finish, meta)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise AnswerError(f"an answer of another form than /generate gives: {type(error).__name__}: {error}") from None


def _columns(entries: Sequence[Any]) -> tuple[list[float], list[int]]:
    """The log-probs and the ids of ``[log-prob, id, ...]`` for each token."""
    return [entry[0] for entry in entries], [entry[1] for entry in entries]


def token_versions(meta: dict[str, Any], n_tokens: int) -> list[int]:
    """The weight version that sampled each of ``n_tokens`` tokens, from SGLang's ``weight_versions`` spans.

    Raises AnswerError: the spans, which follow one another, leave a token without a version. No spans at all (a server before
    0.5.2x) means that all tokens are booked under ``weight_version``, which is the newest one and so could understate the lag:
    refused too.
    """
    versions: list[int] = []
    for span in meta.get("weight_versions") or ():
        start, end, version = max(int(span["start"]), 0), min(int(span["end"]), n_tokens), int(span["version"])
        if start >= end:
            continue
        if not 0 <= version <= MAX_NUMBER:
            raise AnswerError(f"{meta.get('id')}: weight version {version}")
        if start > len(versions):
            break
        versions[start:end] = [version] * (end - start)
    if len(versions) < n_tokens:
        spans = meta.get("weight_versions")
        raise AnswerError(f"{meta.get('id')}: a token without a weight version in spans {spans}")
    return versions


async def generate_group(
    ticket: Ticket, config: Rollout, ask: Ask, tokenizer: Tokenizer, bounds: Bounds = NO_BOUNDS
) -> list[Sample]:
    """The ``n_samples_per_prompt`` responses to ``ticket``, in one request; unscored (reward 0).

    Raises what :func:`complete` raises.
    """
    prompt = unpack(ticket.prompt_tokens, TOKENS).tolist()
    turns = [
        Turn(Trajectory(prompt), rid=f"{ticket.group_id}.{i}", seed=ticket.sampling_seed + i)
        for i in range(config.n_samples_per_prompt)
    ]
    await complete(turns, config, ask, bounds)
    return [turn.trajectory.sample(i, turn.finish_reason, tokenizer) for i, turn in enumerate(turns)]
