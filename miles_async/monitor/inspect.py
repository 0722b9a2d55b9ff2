"""What became of one group, step or actor of a run, and what was dropped: answers from the record of its transitions.

Promises: reading changes nothing, neither on disk nor on the bus; of a run whose supervisor has not ended in order, what
is not on disk yet is read from the bus' ``events``, each entry once, and if the bus does not answer the answer says so;
the file is streamed, so that memory does not grow with the run; a name that is not there is one line with the nearest.
Times are seconds since the epoch; ``start`` is the run's first.
"""

from __future__ import annotations

import difflib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from miles_async.monitor.group_lives import STATES, Life, live, moment
from miles_async.monitor.inspect_record import InspectError, Record
from miles_async.monitor.record_lines import EventLine, TransitionLine

SUBJECTS = ("group", "step", "actor", "drops")
_NOTHING: Mapping[str, Callable[[Path, str], dict[str, Any]]] = {}
LATEST = 20  # drops, and moments of an actor, that are told one by one


def inspect(
    run_dir: Path, subject: str, name: str = "", more: Mapping[str, Callable[[Path, str], dict[str, Any]]] = _NOTHING
) -> dict[str, Any]:
    """What there is to say of the ``subject`` (one of SUBJECTS, or of ``more``, which have answers of their own) ``name``.

    Raises InspectError, RecordError.
    """
    subjects = (*SUBJECTS, *more)
    if subject not in subjects:
        raise InspectError(f'cannot inspect "{subject}"{_nearest(subject, subjects)} (one of: {", ".join(subjects)})')
    if (subject == "drops") == bool(name):
        raise InspectError("inspect RUN drops takes no name" if name else f"inspect RUN {subject}: which {subject}?")
    if subject in more:
        return more[subject](run_dir, name)
    record = Record(run_dir)
    answers: dict[str, Callable[[Record, str], dict[str, Any]]] = {
        "group": inspect_group,
        "step": inspect_step,
        "actor": inspect_actor,
        "drops": inspect_drops,
    }
    head = {"inspect": subject, "run_dir": str(run_dir), "start": record.start, "note": record.note}
    return head | answers[subject](record, name)


def inspect_group(record: Record, group_id: str) -> dict[str, Any]:
    """The life of one group."""
    life = live([group_id], record.transitions()).get(group_id)
    if life is None:
        ids = (i for line in record.transitions() if line.kind in ("admitted", "reconciled") for i in line.groups)
        raise InspectError(f'no group "{group_id}"{_nearest_id(group_id, ids)}')
    letters = [event.data for event in record.events() if _dead(event) == group_id]
    return {
        **msgspec.to_builtins(life),
        "lag": life.lag(life.step - 1) if life.step else None,
        "ages": life.ages(),
        "mean_reward": life.mean_reward(),
        "dead_letter": letters[-1] if letters else None,
    }


def inspect_step(record: Record, name: str) -> dict[str, Any]:
    """The groups of one step, as its last record has them."""
    batches, trained, undone, known = _step_lines(record.transitions(), name)
    if not batches:
        near = min(known, key=lambda step: abs(step - int(name))) if known and name.isdecimal() else None
        there = f" (there are {min(known)} to {max(known)})" if known else " (none is batched yet)"
        raise InspectError(f'no step "{name}"' + (f'; did you mean "{near}"?' if near is not None else "") + there)
    last = batches[-1]
    lives = live(last.groups, record.transitions())
    rows = [_row(lives.get(group_id) or Life(group_id), last.step) for group_id in last.groups]
    trained_on = [row for row in rows if row["state"] != "dropped"]  # the others are quarantined
    rewards = [row["mean_reward"] for row in trained_on if row["mean_reward"] is not None]
    versions = Counter[int]()
    for row in trained_on:
        versions.update(dict(row["versions"]))
    tokens = sum(versions.values())
    return {
        "step": last.step,
        "batched": last.time,
        "trained": trained,
        "undone": undone,
        "mean_reward": sum(rewards) / len(rewards) if rewards else None,
        "max_lag": last.step - 1 - min(versions) if versions else None,
        "mean_lag": last.step - 1 - sum(v * n for v, n in versions.items()) / tokens if tokens else None,
        "groups": rows,
        "earlier": [{"batched": batch.time, "groups": batch.groups} for batch in batches[:-1]],
    }


def _step_lines(
    lines: Iterable[TransitionLine], name: str
) -> tuple[list[TransitionLine], float | None, bool, set[int]]:
    """The records of the step, when the last one of them was trained, whether it is undone, and all steps there are."""
    batches: list[TransitionLine] = []
    trained, undone, known, wanted = None, False, set[int](), int(name) if name.isdecimal() else -1
    quarantined = set[str]()
    for line in lines:
        if line.kind == "batched":
            known.add(line.step)
            undone = undone or (bool(batches) and line.step < wanted and trained is None)
            if line.step == wanted:
                batches.append(line)
                trained, undone = None, False
        elif line.kind == "extended" and batches and line.step == wanted:
            batches[-1] = msgspec.structs.replace(batches[-1], groups=(*batches[-1].groups, *line.groups))
        elif line.kind == "quarantined":
            quarantined.update(line.groups)
        elif batches and (
            (line.kind == "trained" and line.step == wanted)
            or (line.kind == "reconciled" and set(batches[-1].groups) - quarantined <= set(line.groups))
        ):
            trained, undone = line.time, False
    return batches, trained, undone, known


def _row(life: Life, step: int) -> dict[str, Any]:
    """A group in the table of its step."""
    published = life.published
    lengths, versions = (published.lengths, published.versions) if published else ((), ())
    return {
        "id": life.id,
        "state": life.state,
        "by": published.by if published else "",
        "versions": versions,
        "lag": life.lag(step - 1),
        "ages": life.ages(),
        "mean_reward": life.mean_reward(),
        "lengths": lengths,
    }


def inspect_actor(record: Record, name: str) -> dict[str, Any]:
    """What one actor claimed and what became of it, what it holds, and its events."""
    counts, holds = Counter[str](), dict[str, TransitionLine]()
    latest, leases, others = deque[dict[str, Any]](maxlen=LATEST), dict[str, float](), set[str]()

    def note(line: TransitionLine, kind: str, group_id: str) -> None:
        counts[kind] += 1
        latest.append({**msgspec.to_builtins(moment(line)), "kind": kind, "group": group_id})

    for line in record.transitions():
        mine = line.by.partition("/")[0] == name
        others.add(line.by.partition("/")[0])
        if mine and line.kind == "claimed":
            leases.setdefault(line.by, line.time)
        for group_id in line.groups:
            held = holds.get(group_id)
            if held is not None and line.kind in ("claimed", "dropped", "reconciled") and line.by != held.by:
                note(line, "lost", group_id)  # its lease had ended
            if line.kind == "released" and held is not None:
                note(line, "lost" if line.detail else "handed back", group_id)
            elif mine and line.kind != "released":
                note(line, line.kind, group_id)
            if line.kind in STATES:
                holds.pop(group_id, None)
            if mine and line.kind == "claimed":
                holds[group_id] = line
    events = []
    for event in record.events():
        about = {event.actor, event.data.get("actor"), event.data.get("engine")}
        others.update(who for who in about if isinstance(who, str))
        if name in about:
            events.append(event)
    others.update(path.stem for path in (record.run_dir / "logs").glob("*.log"))
    if name not in others or not name:
        there = sorted(others - {""})
        raise InspectError(f'no actor "{name}"{_nearest(name, there)} (there are: {", ".join(there) or "none"})')
    return {
        "actor": name,
        "leases": [{"lease": lease, "first_claim": time} for lease, time in leases.items()],
        "counts": dict(counts),
        "holds": [{"group": g, "since": t.time, "attempt": t.attempt, "by": t.by} for g, t in holds.items()],
        "latest": list(latest),
        "events": msgspec.to_builtins(events),
    }


def inspect_drops(record: Record, _: str = "") -> dict[str, Any]:
    """What was dropped, by reason; the latest ones and the dead letters with their causes."""
    dropped: dict[str, TransitionLine] = {}
    for line in record.transitions():
        if line.kind in ("dropped", "quarantined"):
            dropped.pop(line.groups[0], None)
            dropped[line.groups[0]] = line
        elif line.kind in ("admitted", "batched", "extended") and dropped:  # once more: a rollback took the drop back
            for group_id in line.groups:
                dropped.pop(group_id, None)
    latest = list(dropped.values())[-LATEST:]
    lives = live([line.groups[0] for line in latest], record.transitions())
    return {
        "total": len(dropped),
        "reasons": dict(Counter(_reason(line) for line in dropped.values()).most_common()),
        "without_lengths": sum(not line.lengths for line in dropped.values()),
        "latest": [
            {**msgspec.to_builtins(moment(t)), "group": t.groups[0], "causes": lives[t.groups[0]].causes}
            for t in latest
        ],
        "dead_letters": [{"time": event.time, **event.data} for event in record.events() if _dead(event)],
    }


def _reason(line: TransitionLine) -> str:
    """The reason of a line, as the ledger counts it."""
    return line.kind if line.kind == "quarantined" else line.reason


def _dead(event: EventLine) -> str:
    return str(event.data.get("group", "")) if event.kind == "dead_letter" else ""


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), 1)
    return f'; did you mean "{near[0]}"?' if near else ""


def _nearest_id(group_id: str, ids: Iterable[str]) -> str:
    """The id nearest by its numbers, epoch, index and attempt: there may be millions of them."""
    wanted = _numbers(group_id)
    near = min(ids, key=lambda i: [abs(a - b) for a, b in zip(_numbers(i), wanted, strict=True)], default=None)
    return f'; did you mean "{near}"?' if near is not None else " (none is dealt yet)"


def _numbers(group_id: str) -> list[int]:
    parts = [int(part) if part.isdecimal() else 0 for part in group_id.split("-")[:3]]
    return parts + [0] * (3 - len(parts))
