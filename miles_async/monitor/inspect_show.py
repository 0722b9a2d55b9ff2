"""What :mod:`miles_async.monitor.inspect` found, for a reader: a timeline or a table, times from the run's start."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from miles_async.groups.ages import shown

EVENTS_SHOWN = 30


def show(found: Mapping[str, Any]) -> str:
    """``found``, as ``inspect`` returned it."""
    lines = {"group": _group, "step": _step, "actor": _actor, "drops": _drops}[found["inspect"]](found)
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["start"]))
    foot = [f"times from the run's start, {clock}"] + ([f"note: {found['note']}"] if found["note"] else [])
    return "\n".join([*lines, *foot])


def at(when: float, start: float) -> str:
    """``+12.345 s``, ``+3 min 20.1 s``, ``+2 h 05 min 07 s`` since ``start``."""
    since = when - start
    if since < 60:
        return f"{since:+.3f} s"
    if since < 3600:
        return f"+{int(since // 60)} min {since % 60:04.1f} s"
    return f"+{int(since // 3600)} h {int(since % 3600 // 60):02d} min {int(since % 60):02d} s"


def _group(found: Mapping[str, Any]) -> list[str]:
    where = f" in step {found['step']}" if found["step"] else f" under {found['holder']}" if found["holder"] else ""
    lag = f", lag {found['lag']}" if found["lag"] is not None else ""
    lines = [f"group {found['id']}: {found['state']}{where}{lag}"]
    lines += [f"  {shown(found['ages'])}"] if found["ages"] else []
    lines += [f"  {at(m['time'], found['start']):<20} {_told(m)}" for m in found["moments"]]
    if found["state"] == "dropped":
        lines += [f"  cause of attempt {number}: {cause}" for number, cause in enumerate(found["causes"], 1)]
    if found["dead_letter"]:
        lines.append(f"  dead letter, prompt: {str(found['dead_letter'].get('prompt', ''))[:200]!r}")
    return lines


def _told(m: Mapping[str, Any]) -> str:
    """One moment in words."""
    kind, by, why = m["kind"], m.get("by", ""), _why(m)
    match kind:
        case "claimed":
            return f"claimed by {by}, attempt {m.get('attempt', 0)}"
        case "published":
            rewards = m.get("rewards", ())
            finite = [reward for reward in rewards if reward is not None]
            mean = f" (mean {sum(finite) / len(finite):.3f})" if finite and len(finite) == len(rewards) else ""
            listed = " ".join("not finite" if reward is None else f"{reward:.3g}" for reward in rewards)
            return f"published by {by}: lengths {_lengths(m)}; rewards {listed}{mean}; tokens by {_versions(m)}"
        case "first_token":
            return "its first token"
        case "generated":
            return "its last token"
        case "graded":
            return "its rewards"
        case "released":
            return f"waits again: {why}" if why else f"handed back by {by}" if by else "waits again: the launch ended"
        case "failed":
            return f"failed under {by}: {why}"
        case "batched" | "extended":
            return f"batched in step {m['step']}"
        case "trained":
            return f"trained: a durable checkpoint contains step {m['step']}"
        case "reconciled":
            return f"trained, as the checkpoint of step {m['step']} knows and the ledger had forgotten"
        case "dropped":
            under = f" under {by}" if by else ""
            return f"dropped{under}: {why}" + (f"; lengths {_lengths(m)}" if m.get("lengths") else "")
        case "quarantined":
            return f"quarantined, no part of step {m['step']} any more: {why}"
        case "lease_ended":
            return f"the lease of {by} ended"
        case "undone":
            return f"ready again: the ledger lost its record of step {m['step']}"
        case _:
            return kind


def _step(found: Mapping[str, Any]) -> list[str]:
    start, rows = found["start"], found["groups"]
    end = (
        f"trained (in a durable checkpoint) {at(found['trained'], start)}"
        if found["trained"] is not None
        else "undone: the ledger lost this record, and has not batched the step again yet"
        if found["undone"]
        else "in no durable checkpoint yet"
    )
    lines = [
        f"step {found['step']}: {len(rows)} groups, batched {at(found['batched'], start)}, {end}",
        f"  reward {_number(found['mean_reward'], '.3f')}   "
        f"lag max {_number(found['max_lag'], 'd')} mean {_number(found['mean_lag'], '.2f')} "
        f"(trained at version {found['step'] - 1})",
    ]
    table = [("group", "by", "versions", "lag", "reward", "lengths")]
    for row in rows:
        span = [version for version, _ in row["versions"]]
        versions = "-" if not span else f"{span[0]}" if len(span) == 1 else f"{span[0]}..{span[-1]}"
        reward = "quarantined" if row["state"] == "dropped" else _number(row["mean_reward"], ".3f")
        table.append((row["id"], row["by"], versions, _number(row["lag"], "d"), reward, _lengths(row)))
    lines += _table(table)
    for earlier in found["earlier"]:
        ids = " ".join(earlier["groups"])
        lines.append(f"  batched before, {at(earlier['batched'], start)}, and lost by the ledger: {ids}")
    return lines


def _actor(found: Mapping[str, Any]) -> list[str]:
    start, counts = found["start"], found["counts"]
    lines = [f"actor {found['actor']}: " + (", ".join(f"{k} {n}" for k, n in counts.items()) or "no group claimed")]
    lines += [f"  lease {x['lease']}, first claim {at(x['first_claim'], start)}" for x in found["leases"]]
    for held in found["holds"]:
        lines.append(f"  holds {held['group']} since {at(held['since'], start)}, attempt {held['attempt']}")
    if found["latest"]:
        lines.append(f"  the last {len(found['latest'])} of its groups' transitions:")
    for m in found["latest"]:
        lost = f"{m['kind']}: {_why(m) or 'its lease ended'}" if m["kind"] == "lost" else m["kind"]
        what = lost if m["kind"] in ("lost", "handed back") else _told(m)
        lines.append(f"    {at(m['time'], start):<20} {m['group']:<10} {what}")
    shown = found["events"][-EVENTS_SHOWN:]
    if shown:
        lines.append(f"  events ({len(shown)} of {len(found['events'])}):")
    for event in shown:
        details = " ".join(f"{key}={value}" for key, value in event["data"].items())
        lines.append(f"    {at(event['time'], start):<20} {event['actor']}: {event['kind']} {details}".rstrip())
    return lines


def _drops(found: Mapping[str, Any]) -> list[str]:
    start = found["start"]
    reasons = ", ".join(f"{reason} {count}" for reason, count in found["reasons"].items())
    total = found["total"]
    lines = [f"dropped: {total}" + (f" ({reasons}), {found['without_lengths']} without known lengths" if total else "")]
    if found["latest"]:
        lines.append(f"  the last {len(found['latest'])}:")
    for m in found["latest"]:
        lines.append(f"    {at(m['time'], start):<20} {m['group']:<10} {_told(m)}")
        lines += [f"      cause: {cause}" for cause in m["causes"]]
    if found["dead_letters"]:
        lines.append("  dead letters:")
    for letter in found["dead_letters"]:
        prompt = str(letter.get("prompt", ""))[:80]
        lines.append(f"    {at(letter['time'], start):<20} {letter['group']:<10} {letter.get('reason')}: {prompt!r}")
        lines += [f"      cause: {cause}" for cause in letter.get("causes", ())]
    return lines


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join(f"{x:<{w}}" for x, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _why(m: Mapping[str, Any]) -> str:
    return ": ".join(part for part in (m.get("reason"), m.get("detail")) if part)


def _lengths(m: Mapping[str, Any]) -> str:
    return " ".join(str(length) for length in m.get("lengths", ()))


def _versions(m: Mapping[str, Any]) -> str:
    return ", ".join(f"v{version}: {tokens}" for version, tokens in m.get("versions", ())) or "no version"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
