"""Which token ids a request may hold.

Promises: pure; what passes has no id that the model has no row for. SGLang does not look: such an id is an IndexError in its
scheduler, upon which the whole server exits (ids of ``logit_bias`` and ``token_ids_logprob`` it checks itself).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard


class TokenIdError(ValueError):
    """One line: which id, where it stands, and what is allowed."""


def check_token_ids(body: Mapping[str, Any], vocab_size: int) -> None:
    """Refuse ids outside ``0..vocab_size-1`` in the ``input_ids`` and ``stop_token_ids`` of a /generate body.

    Raises TokenIdError.
    """
    given = body.get("input_ids")
    if _is_list(given):
        batch = given and _is_list(given[0])
        for number, ids in enumerate(given if batch else [given]):
            _check(ids, f"input_ids of prompt {number}" if batch else "input_ids", vocab_size)
    sampling = body.get("sampling_params")
    for params in sampling if _is_list(sampling) else [sampling]:
        if isinstance(params, Mapping) and params.get("stop_token_ids") is not None:
            _check(params["stop_token_ids"], "sampling_params.stop_token_ids", vocab_size)


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return type(value) is list or (isinstance(value, Sequence) and not isinstance(value, str))


def _check(ids: Any, where: str, vocab_size: int) -> None:
    if not _is_list(ids):
        raise TokenIdError(f"{where}: a list of token ids is expected, not {ids!r:.40}")
    if not ids or (set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < vocab_size):
        return  # the usual case, at the speed of C
    for place, token in enumerate(ids):
        if type(token) is not int or not 0 <= token < vocab_size:
            raise TokenIdError(
                f"{where}: token id {token!r:.40} at position {place}, allowed are 0 to {vocab_size - 1}"
            )
