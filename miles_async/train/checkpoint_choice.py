"""Which checkpoint a learner goes on from: the newest that is as it was written, if what came after it can be trained again.

Promises: what an earlier learner was writing becomes no checkpoint any more; nothing of one is read before its checksums are
verified; one that is damaged is named, file by file, and set aside once another one takes its place; where none is of use,
nothing is moved, and one line says what is wrong with each and how to go on.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from miles_async.train import checkpoint
from miles_async.train.checkpoint import CheckpointError


class CheckpointChoice(msgspec.Struct, frozen=True):
    """What a learner loads. ``path``: None where it begins with the model's own weights."""

    path: str | None = None
    damaged: tuple[str, ...] = ()  # what is wrong with each newer one
    verified: bool = True  # False: an earlier version wrote it, without checksums

    def __str__(self) -> str:
        return Path(self.path).name if self.path else "the weights of model.hf_checkpoint"


def choose(root: Path, forgotten: int) -> CheckpointChoice:
    """The checkpoint under ``root`` to go on from. ``forgotten``: the last step that the ledger cannot give again.

    Raises CheckpointError: all are damaged, or too old.
    """
    if not root.is_dir():
        return CheckpointChoice()
    checkpoint.sweep(root)
    refused: list[tuple[Path | None, str]] = []
    if (name := checkpoint.pointed(root)) and not (root / name).is_dir():
        refused.append((None, f"{root / checkpoint.LATEST} names {name!r}, which is no checkpoint"))
    for path in checkpoint.kept(root):
        try:
            verified = checkpoint.verify(path)
            state = checkpoint.read_state(path)
        except CheckpointError as error:
            refused.append((path, str(error)))
            continue
        if state.version < forgotten and refused:  # without a damaged one it is the learner who says so
            refused.append((path, f"{path} is sound, but the ledger has forgotten the groups of step {forgotten}"))
            break
        return _taken(root, CheckpointChoice(str(path), _causes(refused), verified), refused)
    if refused and forgotten:
        alone = " (and checkpoint.keep has kept no older one)" if len(refused) == 1 else ""
        raise CheckpointError(
            f"{'; '.join(_causes(refused))}{alone}: put back a copy of what is damaged, or start another run from an export"
        )
    return _taken(root, CheckpointChoice(None, _causes(refused)), refused)


def _taken(root: Path, choice: CheckpointChoice, refused: list[tuple[Path | None, str]]) -> CheckpointChoice:
    if refused:
        for path, _ in refused:
            if path is not None:
                checkpoint.set_aside(path)
        checkpoint.point(root, Path(choice.path).name if choice.path else None)
    return choice


def _causes(refused: list[tuple[Path | None, str]]) -> tuple[str, ...]:
    return tuple(cause for _, cause in refused)
