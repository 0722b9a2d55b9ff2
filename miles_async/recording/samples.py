"""What a model wrote: a recorded group, or one sample of it token by token, for a reader.

Promises: nothing is changed; of a live run it is read as far as it is written; of several attempts at a group the last one that
is kept is shown, with its outcome; a name that is not there is one line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bus.codec import LOGPROBS, MASK, TOKENS, VERSIONS, CodecError, decode, unpack
from bus.messages import UNSAMPLED, Group, Sample
from bus.ready import by_version
from miles_async.groups.ages import ages, shown
from miles_async.monitor.group_lives import live
from miles_async.monitor.inspect_record import InspectError
from miles_async.monitor.record_lines import RecordError, read_transitions
from miles_async.recording.learner_log_probs import OUTCOME, OfGroup, newest, of_sample, read
from miles_async.recording.reader import RecordedRun
from miles_async.recording.recorder import DIRECTORY
from miles_async.recording.segments import SUFFIX, Entry, Payloads, Place, SegmentError, scan
from miles_async.runs import launches
from miles_async.text.tokenizer import Tokenizer


def inspect_sample(run_dir: Path, name: str) -> dict[str, Any]:
    """The group of that id, or its sample ``ID/INDEX``. Raises InspectError, RecordError, TokenizerError."""
    group_id, _, index = name.partition("/")
    entry, group, learner = _find(run_dir, group_id)
    chosen = [sample for sample in group.samples if not index or str(sample.index) == index]
    if not chosen:
        there = ", ".join(str(sample.index) for sample in group.samples)
        raise InspectError(f'group {group_id} has no sample "{index}" (one of: {there})')
    tokenizer = tokenizer_of(run_dir)
    return {
        "inspect": "sample",
        "run_dir": str(run_dir),
        "group": group_id,
        "lease": entry.lease,
        "outcome": entry.outcome,
        "prompt": _prompt(group, tokenizer),
        "label": group.label,
        "seconds": group.finished - group.started,
        "ages": _ages(run_dir, group),
        "samples": [_sample(sample, tokenizer, learner, with_tokens=bool(index)) for sample in chosen],
    }


def samples_of_step(run_dir: Path, step: int) -> list[dict[str, Any]]:
    """Every sample that the step was trained on: as :func:`inspect_sample` has it, with its ``group``, ``prompt``, ``label``.

    Raises RecordError: the step is not on record, or a group of it is not kept; InspectError, TokenizerError.
    """
    record = RecordedRun(run_dir)
    record.check(step, step)
    tokenizer, found = tokenizer_of(run_dir), list[dict[str, Any]]()
    for group_id in record.steps[step].trained:
        try:
            group = decode(record.payload(group_id), Group)
        except CodecError as error:
            raise RecordError(f"group {group_id}: {error}") from None
        prompt = _prompt(group, tokenizer)
        for sample in group.samples:
            about = {"group": group_id, "prompt": prompt, "label": group.label}
            found.append(about | _sample(sample, tokenizer, None, with_tokens=False))
    return found


def _prompt(group: Group, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(unpack(group.prompt_tokens, TOKENS).tolist(), skip_special_tokens=False)


def _find(run_dir: Path, group_id: str) -> tuple[Entry, Group, OfGroup | None]:
    """Its last attempt, and what the learner's log-probs of it were, where they are kept."""
    found: list[tuple[Entry, Place]] = []
    try:
        files = sorted((run_dir / DIRECTORY).glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime_ns)
        for file in files:
            found += [(entry, place) for entry, place in scan(file) if entry.group_id == group_id]
        learnt = [place for entry, place in found if entry.outcome == OUTCOME]
        found = [one for one in found if one[0].outcome != OUTCOME]
        if not found:
            kept = "it was not generated, or it has left the record" if files else 'nothing is: record.level = "off"?'
            raise InspectError(f'group "{group_id}" is not kept in {run_dir / DIRECTORY}: {kept}')
        entry, place = found[-1]
        return entry, decode(Payloads().read(place), Group), read(newest(learnt), Payloads())
    except (SegmentError, CodecError, OSError) as error:
        raise RecordError(str(error)) from None


def _ages(run_dir: Path, group: Group) -> dict[str, int]:
    """As far as they are known: that at its training only of a group that has been put into a step."""
    life = live([group.group_id], read_transitions(run_dir)).get(group.group_id)
    versions = by_version(b"".join([sample.versions for sample in group.samples]))
    oldest = versions[0][0] if versions and versions[0][0] != UNSAMPLED else None
    return ages(group.begun, oldest, life.step - 1 if life is not None and life.step else None)


def tokenizer_of(run_dir: Path) -> Tokenizer:
    """The run's tokenizer. Raises InspectError: it is not known which one that was, TokenizerError."""
    return Tokenizer(_model(run_dir))


def _model(run_dir: Path) -> Path:
    made = run_dir / "inputs" / "model"
    if made.is_dir():
        return made
    table = launches.last_config(run_dir)
    if table is None:
        raise InspectError(f"{run_dir}: no launch is on record here, so the tokenizer is not known")
    return Path(table["model"]["hf_checkpoint"])


def _sample(sample: Sample, tokenizer: Tokenizer, learner: OfGroup | None, *, with_tokens: bool) -> dict[str, Any]:
    tokens = unpack(sample.tokens, TOKENS).tolist()
    found: dict[str, Any] = {
        "index": sample.index,
        "text": tokenizer.decode(tokens, skip_special_tokens=False),
        "reward": sample.reward,
        "reward_parts": dict(sample.reward_parts),
        "finish_reason": sample.finish_reason,
        "length": len(tokens),
        "trained_tokens": int(unpack(sample.loss_mask, MASK).sum()),
        "versions": [[_version(version), count] for version, count in by_version(sample.versions)],
    }
    if with_tokens:
        columns = zip(
            tokens,
            unpack(sample.versions, VERSIONS).tolist(),
            unpack(sample.logprobs, LOGPROBS).tolist(),
            unpack(sample.loss_mask, MASK).tolist(),
            strict=True,
        )
        found["tokens"] = [
            {
                "id": token,
                "text": tokenizer.decode([token], skip_special_tokens=False),
                "version": _version(version),
                "logprob": logprob if math.isfinite(logprob) else None,
                "trained": bool(mask),
            }
            for token, version, logprob, mask in columns
        ]
        for token, own in zip(found["tokens"], of_sample(learner, sample), strict=False):
            token["learner_logprob"] = own if math.isfinite(own) else None
    return found


def _version(version: int) -> int | None:
    """None: no policy sampled it."""
    return None if version == UNSAMPLED else version


def show(found: Mapping[str, Any]) -> str:
    """``found``, as :func:`inspect_sample` returned it."""
    lines = [
        f"group {found['group']}: {found['outcome']}, made by {found['lease']} in {found['seconds']:.2f} s",
        *([line] if (line := shown(found["ages"])) else []),
        f"prompt   {found['prompt']!r}" + (f"   label {found['label']!r}" if found["label"] is not None else ""),
    ]
    for sample in found["samples"]:
        parts = "".join(f", {name} {value:.3g}" for name, value in sample["reward_parts"].items())
        versions = " ".join(f"v{version}:{count}" for version, count in sample["versions"])
        lines.append(
            f"sample {sample['index']}: reward {sample['reward']:.3g}{parts}; {sample['length']} tokens "
            f"({sample['trained_tokens']} trained) by {versions}; {sample['finish_reason']}"
        )
        lines.append(f"         {sample['text']!r}")
        for place, token in enumerate(sample.get("tokens", ())):
            version = "-" if token["version"] is None else f"v{token['version']}"
            logprob = "-" if token["logprob"] is None else f"{token['logprob']:.4f}"
            if "learner_logprob" in token:
                own = token["learner_logprob"]
                logprob += f"  learner {'-' if own is None else f'{own:.4f}':>9}"
            mark = "" if token["trained"] else "  masked"
            lines.append(f"  {place:>5}  {version:>6}  {logprob:>9}  {token['id']:>7}  {token['text']!r}{mark}")
    return "\n".join(lines)
