"""Which events are worth words on the terminal, and which: pure but for what was said before.

Promises: a failure of the user's code is said once for each cause, with its traceback; so is why a point of an evaluation is
not made, on a line; an engine or weights that cannot be trusted are said; groups that are given up by one cause are said at the
first, tenth, hundredth, … of them, in one line, whatever their prompts hold, and so is whatever each batch or version may have;
everything is in ``events.jsonl`` in any case.
"""

from __future__ import annotations

from collections import Counter

from bus.messages import Event
from miles_async.hooks.faults import one_line
from miles_async.rollout.first_failures import kind_of

OFTEN = frozenset({"steps_skipped", "nothing_to_learn", "snapshot_refused"})  # each batch or version may have one
# events of actors that are worth a line of their own; what the supervisor says is said
ANNOUNCED = OFTEN | {
    "died",
    "mismatch",
    "no_variance",
    "checkpoint_damaged",
    "checkpoint_unverified",
    "group_not_recorded",
    "log_probs_not_recorded",
}
ANNOUNCED |= {"engine_down", "engine_back", "engine_suspected", "engine_trusted", "engine_suspicious", "weights_differ"}
ANNOUNCED |= {"engine_hung", "engine_dead", "teacher_down", "teacher_up"}  # servers that are not the run's
FAILURE, DEAD_LETTER, HOOK_FAILED = "failure", "dead_letter", "hook_failed"
QUARANTINED = "quarantined"  # the reason of a dead letter
EVALUATION = {"eval_skipped": "no point of the evaluation", "eval_log_failed": "eval.eval_log_function"}
PROMPT_CHARS = 80
_HIDDEN = frozenset({"waits", "traceback"})


class Announcer:
    """What one launch has said on the terminal already, and what it says next."""

    def __init__(self) -> None:
        self._told: Counter[str] = Counter()  # by kind of cause

    def text(self, event: Event) -> str:
        """What to say of ``event``, empty: nothing."""
        if event.kind == HOOK_FAILED:
            return self._said(event, f"{event.data.get('key')}: {event.data.get('cause')}")
        if event.kind == FAILURE or (event.kind == "sample_lost" and "traceback" in event.data):
            return self._failure(event)
        if event.kind == DEAD_LETTER:
            return self._dead_letter(event)
        if event.kind in EVALUATION:
            return self._evaluation(event)
        count = self._count(event.kind) if event.kind in OFTEN else 1
        if not _is_power_of_ten(count):
            return ""
        if event.actor != "supervisor" and event.kind not in ANNOUNCED:
            return ""
        details = " ".join(f"{key}={value}" for key, value in event.data.items() if key not in _HIDDEN)
        times = f" ({count} times by now)" if count > 1 else ""
        return one_line(f"{event.actor}: {event.kind} {details}".rstrip()) + times

    def _failure(self, event: Event) -> str:
        reason, cause = str(event.data.get("reason", "")), str(event.data.get("cause", ""))
        if self._count(f"{FAILURE} {kind_of(reason, cause)}") > 1:
            return ""
        return self._said(event, f"{reason}: {cause}")

    def _count(self, key: str) -> int:
        """How often that has come by now."""
        self._told[key] += 1
        return self._told[key]

    def _evaluation(self, event: Event) -> str:
        reason, cause = str(event.data.get("reason", "")), str(event.data.get("cause", ""))
        if self._count(f"{event.kind} {kind_of(reason, cause)}") > 1:
            return ""
        what = f"{EVALUATION[event.kind]} at version {event.data.get('version')}"
        return self._said(event, ": ".join(filter(None, (what, reason, cause))))

    def _said(self, event: Event, text: str) -> str:
        trace = "".join(f"\n    {line}" for line in str(event.data.get("traceback", "")).splitlines())
        return f"{event.actor}: {one_line(text)}{trace}"

    def _dead_letter(self, event: Event) -> str:
        data = event.data
        causes = [str(cause).partition(": ")[2] for cause in data.get("causes", ())]  # without the lease
        last = causes[-1] if causes else str(data.get("reason", ""))
        reason, _, detail = last.partition(": ")
        count = self._count(f"{DEAD_LETTER} {kind_of(reason, detail)}")
        if count > 1:
            return f"{count} groups are given up by that cause: {one_line(last)}" if _is_power_of_ten(count) else ""
        different = list(dict.fromkeys(one_line(cause) for cause in causes))
        prompt = f"; prompt {one_line(repr(data['prompt']), PROMPT_CHARS)}" if data.get("prompt") else ""
        how = "taken out of its step" if data.get("reason") == QUARANTINED else f"given up after {len(causes)} attempts"
        return f"group {data.get('group')} is {how}: {'; '.join(different)}{prompt}"


def _is_power_of_ten(number: int) -> bool:
    while number % 10 == 0:
        number //= 10
    return number == 1
