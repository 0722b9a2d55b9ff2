"""What a model wrote in a step: its samples as rows, and one of them token by token.

Promises: of a run whose tokenizer cannot be had the recorded text is shown, and ids in the place of tokens; the pieces of a
response, one for each token, make up its text; rows of the steps that were looked at last are kept, not more.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, CodecError, unpack
from bus.messages import UNSAMPLED, Group, Sample
from miles_async.monitor.inspect_record import InspectError
from miles_async.recording.learner_log_probs import of_sample
from miles_async.recording.samples import tokenizer_of
from miles_async.text.tokenizer import Tokenizer, TokenizerError
from miles_async.web.pieces import pieces
from miles_async.web.recorded import NotKeptError, RecordIndex
from miles_async.web.sample_rows import Row, Wanted, chosen, row, summary

STEPS_KEPT = 4
PAGE = 50  # rows of an answer
EXCERPT = 600  # characters of prompt and of response in a row


class RecordedSteps:
    """The samples of the run in ``run_dir``. Its methods may be called from several threads."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._index, self._lock = RecordIndex(run_dir), threading.Lock()
        self._rows: OrderedDict[tuple[int, tuple[str, ...]], tuple[list[Row], list[str]]] = OrderedDict()

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        try:
            return tokenizer_of(self.run_dir)
        except (TokenizerError, InspectError, KeyError, TypeError, OSError):
            return None

    def step(self, step: int | None, wanted: Wanted, offset: int = 0) -> dict[str, Any]:
        """The rows of a step (None: the newest) that are asked for, from the ``offset``-th on. Raises NotKeptError, OSError."""
        with self._lock:
            self._index.refresh()
            steps = self._index.steps()
            if not steps:
                raise NotKeptError("no step of this run is on record yet")
            step = steps[-1] if step is None else step
            if step not in steps:
                raise NotKeptError(f"step {step} is not on record: there are {steps[0]} to {steps[-1]}")
            rows, missing = self._rows_of(step)
            found = chosen(rows, wanted)
            return {
                "step": step,
                "first": steps[0],
                "last": steps[-1],
                "samples": len(rows),
                "found": len(found),
                "offset": offset,
                "rows": [_excerpt(one) for one in found[offset : offset + PAGE]],
                "of_all": summary(rows),
                "missing": missing[:3],
                "trouble": self._index.trouble,
            }

    def _rows_of(self, step: int) -> tuple[list[Row], list[str]]:
        """All rows of a step, and why groups of it are not among them."""
        groups = self._index.trained(step)
        if (step, groups) in self._rows:
            self._rows.move_to_end((step, groups))
            return self._rows[step, groups]
        rows: list[Row] = []
        missing: list[str] = []
        for group_id in groups:
            try:
                group = self._index.group(group_id)
                for sample in group.samples:
                    rows.append(row(len(rows), group, sample, step, self._prompt(group, sample), self._text(sample)))
            except (NotKeptError, CodecError) as error:
                missing.append(str(error))
        if not missing:
            self._rows[step, groups] = rows, missing
            while len(self._rows) > STEPS_KEPT:
                self._rows.popitem(last=False)
        return rows, missing

    def sample(self, group_id: str, index: int, step: int | None) -> dict[str, Any]:
        """One sample token by token. ``step``: that trained on it, for its lag. Raises NotKeptError, OSError."""
        with self._lock:
            self._index.refresh()
            group = self._index.group(group_id)
            sample = next((one for one in group.samples if one.index == index), None)
            if sample is None:
                there = ", ".join(str(one.index) for one in group.samples)
                raise NotKeptError(f"group {group_id} has no sample {index} (one of: {there})")
            try:
                about = row(0, group, sample, step or 1, self._prompt(group, sample), self._text(sample))
                found = {**msgspec.to_builtins(about), "worker": group.worker, "tokens": self._tokens(sample, group_id)}
                return found if step is not None else {**found, "lag": None}
            except CodecError as error:
                raise NotKeptError(f"group {group_id}: {error}") from None

    def _tokens(self, sample: Sample, group_id: str) -> dict[str, list[Any]]:
        """Columns, one entry for each token of the response. ``teacher``: empty where nobody teaches; ``learner``: where its
        log-probs are not kept."""
        tokens = unpack(sample.tokens, TOKENS).tolist()
        return {
            "text": self._pieces(tokens),
            "version": [None if v == UNSAMPLED else v for v in unpack(sample.versions, VERSIONS).tolist()],
            "logprob": _finite(unpack(sample.logprobs, LOGPROBS).tolist()),
            "teacher": _finite(unpack(sample.teacher_logprobs, LOGPROBS).tolist()),
            "learner": _finite(of_sample(self._index.log_probs(group_id), sample)),
            "trained": [bool(bit) for bit in unpack(sample.loss_mask, MASK).tolist()],
        }

    def _prompt(self, group: Group, sample: Sample) -> str:
        tokens = unpack(sample.prompt_tokens or group.prompt_tokens, TOKENS).tolist()
        return "".join(self._pieces(tokens)) if self._tokenizer is None else self._decode(tokens)

    def _text(self, sample: Sample) -> str:
        return sample.text if self._tokenizer is None else self._decode(unpack(sample.tokens, TOKENS).tolist())

    def _pieces(self, tokens: Sequence[int]) -> list[str]:
        return [f"[{token}]" for token in tokens] if self._tokenizer is None else pieces(self._decode, tokens)

    def _decode(self, tokens: Sequence[int]) -> str:
        assert self._tokenizer is not None
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)


def _excerpt(one: Row) -> dict[str, Any]:
    """A row of the list, whose texts may be cut."""
    prompt = one.prompt if len(one.prompt) <= EXCERPT else "…" + one.prompt[-EXCERPT:]
    response = one.response if len(one.response) <= EXCERPT else one.response[:EXCERPT] + "…"
    return {**msgspec.to_builtins(one), "prompt": prompt, "response": response}


def _finite(values: Sequence[float]) -> list[float | None]:
    return [round(value, 5) if math.isfinite(value) else None for value in values]
