"""What a worker reports of tokens whose routes are of a later pass than their log-probs (routes.py). Pure."""

from __future__ import annotations

import contextlib
from typing import Any

from miles_async.rollout.generate import AnswerError, token_versions
from miles_async.rollout.routes import unpaired_in


class UnpairedShare:
    """Of the tokens that engines have sampled since the last report, those that are not trained on for this. updates_retract:
    as routes.unpaired has it."""

    def __init__(self, *, updates_retract: bool) -> None:
        self._updates_retract = updates_retract
        self._tokens = self._unpaired = 0

    def count(self, answers: Any) -> None:
        """Those of a request; whoever reads its tokens will refuse what has another form than /generate gives."""
        for answer in answers if isinstance(answers, list) else ():
            with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError, OverflowError, AnswerError):
                versions = token_versions(answer["meta_info"], len(answer["output_ids"]))
                self._unpaired += unpaired_in(answer["meta_info"], versions, updates_retract=self._updates_retract)
                self._tokens += len(versions)

    def report(self) -> dict[str, float]:
        """Nothing where there was no token."""
        share = {"rollout/unpaired_routes": self._unpaired / self._tokens} if self._tokens else {}
        self._tokens = self._unpaired = 0
        return share
