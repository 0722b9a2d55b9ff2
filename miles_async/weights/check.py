"""Whether engines have the weights they say they have: checksums of one version, held against the snapshot or each other.

Promises: pure but for the question to an engine; an engine is named with the first tensor that is wrong. SGLang names and
hashes its fused tensors in its own way, so its engines are compared with each other: the majority is right, and of a tie
nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import torch

from miles_async.engines.checksum import checksum
from miles_async.engines.client import EngineClient, EngineError
from miles_async.weights.buckets import Bucket, unflatten
from miles_async.weights.update import Key

Sums = Mapping[str, str]  # tensor, by the engine's own names, to its checksum


async def engine_sums(client: EngineClient, timeout_s: float) -> dict[str, str]:
    """The checksums of all tensors of an engine; of one with several ranks as ``rank/name``. Raises EngineError."""
    answer = await client.checksums(timeout_s)
    try:
        ranks = [dict(rank["checksums"]) for rank in answer["ranks"]]
    except (KeyError, TypeError, ValueError):
        raise EngineError(client.name, "/weights_checker", f"no checksums in {str(answer)[:200]}") from None
    if len(ranks) == 1:
        return ranks[0]
    return {f"{rank}/{name}": value for rank, sums in enumerate(ranks) for name, value in sums.items()}


def bucket_sums(buckets: Iterable[Bucket], dtype: str) -> dict[str, str]:
    """The checksums that an embedded engine which computes in ``dtype`` has after it took ``buckets``."""
    kind: torch.dtype = getattr(torch, dtype)
    return {name: checksum(tensor.to(kind)) for bucket in buckets for name, tensor in unflatten(bucket).items()}


class Checks:
    """When engines are asked (every ``interval`` versions; None: never) and what their answers mean together."""

    def __init__(self, interval: int | None) -> None:
        self._interval = interval
        self._key: Key | None = None  # of the last version that was due
        self._sums: dict[str, Sums] = {}  # of that version, by engine
        self._suspects: set[str] = set()  # asked after every update, until they are right again

    def due(self, engine: str, key: Key) -> bool:
        """Whether ``engine``, just brought to the version ``key``, is to be asked."""
        if self._interval is None:
            return False
        last = self._key
        if last is None or key[0] != last[0] or not last[1] <= key[1] < last[1] + self._interval:
            self._key, self._sums = key, {}
        return key == self._key or engine in self._suspects

    def judge(self, key: Key, sums: Mapping[str, Sums], expected: Sums | None) -> dict[str, str]:
        """The engines that are wrong, and why, given what those of ``sums`` answered at the version ``key``.

        ``expected``: of the snapshot, where the engines name and hash tensors as it does. What was answered at the same
        version before counts, too.
        """
        if key == self._key:
            self._sums |= sums
        wrong = differing(self._sums | dict(sums) if key == self._key else sums, expected)
        self._suspects = (self._suspects - sums.keys()) | wrong.keys()
        self._sums = {engine: found for engine, found in self._sums.items() if engine not in wrong}
        return wrong


def differing(sums: Mapping[str, Sums], expected: Sums | None) -> dict[str, str]:
    """The engines whose weights are not ``expected``, or not those of the majority of the engines with the same names."""
    if expected is not None:
        found = {engine: _first_difference(own, expected) for engine, own in sums.items()}
        return {engine: f"{name} is not as in the snapshot" for engine, name in found.items() if name is not None}
    wrong: dict[str, str] = {}
    for engines in _alike(sums):
        answers = [_frozen(sums[engine]) for engine in engines]
        (most, count), *others = Counter(answers).most_common()
        tied = bool(others) and others[0][1] == count
        for engine, answer in zip(engines, answers, strict=True):
            if tied or answer != most:
                reference = next(other for other in answers if other != answer) if answer == most else most
                name = _first_difference(dict(answer), dict(reference))
                wrong[engine] = f"{name} is not as in {'another engine' if tied else 'most engines'}"
    return wrong


def _alike(sums: Mapping[str, Sums]) -> list[list[str]]:
    """The engines with the same names of tensors, together."""
    kinds: dict[frozenset[str], list[str]] = {}
    for engine, own in sums.items():
        kinds.setdefault(frozenset(own), []).append(engine)
    return list(kinds.values())


def _frozen(sums: Sums) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(sums.items()))


def _first_difference(own: Sums, expected: Sums) -> str | None:
    """The first tensor of an engine that is another one in ``expected``, or is not there."""
    return next((name for name in sorted(own) if own[name] != expected.get(name)), None)
