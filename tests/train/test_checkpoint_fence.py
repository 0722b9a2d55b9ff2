"""Two learners of one name and one directory: wherever the older one stands still while it saves, its successor has the last
word.

The older one is interrupted before each of its calls that touch the disk, in turn; there and then it is replaced, and its
successor does all that it does: it chooses, saves twice. Then the older one goes on.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from miles_async.disk.fence import before_it_counts, clear_fence, is_earlier, mark, set_fence
from miles_async.train import checkpoint
from miles_async.train.checkpoint import LearnerState
from miles_async.train.checkpoint_choice import choose
from miles_async.train.hf_export import save_hf
from miles_async.weights.snapshot import prune, snapshot_name

KEEP = 2


class Replaced(Exception):
    """The process would have ended."""


class Fences:
    """Of two learners that take turns in this process."""

    def __init__(self) -> None:
        self.replaced = False

    def become(self, incarnation: int) -> None:
        set_fence(lambda: self.ask(incarnation), incarnation)

    def ask(self, incarnation: int) -> None:
        if self.replaced and incarnation == 1:
            raise Replaced


@pytest.fixture
def fences() -> Iterator[Fences]:
    yield Fences()
    clear_fence()


def save(root: Path, version: int, by: int) -> Path:
    writing = checkpoint.begin(root, version)
    (writing / "shard").write_text(f"{version} by {by}")
    return checkpoint.commit(root, writing, LearnerState(version, {"by": by}), KEEP)


def by(path: Path) -> int:
    return checkpoint.read_state(path).extra["by"]


class Interrupted:
    """Does ``then`` before the n-th call that touches the disk, once."""

    CALLS = (
        (Path, "rename"),
        (Path, "replace"),
        (Path, "mkdir"),
        (Path, "write_bytes"),
        (Path, "write_text"),
        (Path, "glob"),
        (Path, "iterdir"),
        (os, "fsync"),
        (shutil, "rmtree"),
    )

    def __init__(self, patch: pytest.MonkeyPatch, n: int, then: Callable[[], None]) -> None:
        self.left, self.then = n, then
        for owner, name in self.CALLS:
            patch.setattr(owner, name, self.wrapped(getattr(owner, name)))

    def wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def late(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                self.then()
            return call(*args, **options)

        return late

    @property
    def was_in_time(self) -> bool:
        return self.left <= 0


class Successor:
    """Of the learner that is interrupted: it has done so much when the older one goes on, and the rest behind that."""

    def __init__(self, root: Path, fences: Fences, upto: str) -> None:
        self.root, self.fences, self.upto = root, fences, upto
        self.chosen: Path | None = None
        self.saved: list[Path] = []

    def take_over(self) -> None:
        self.fences.replaced = True
        self.fences.become(2)
        chosen = choose(self.root, 0)
        assert chosen.path is not None and not chosen.damaged
        self.chosen = Path(chosen.path)
        self.there = set(checkpoint.kept(self.root))
        self.version = checkpoint.read_state(self.chosen).version
        assert self.version in (2, 3)
        if self.upto != "choose":
            self.writing = checkpoint.begin(self.root, self.version + 1)
            (self.writing / "shard").write_text("whole")
        if self.upto == "save":
            self.commit()
        self.fences.become(1)

    def commit(self) -> None:
        self.version += 1
        self.saved.append(checkpoint.commit(self.root, self.writing, LearnerState(self.version, {"by": 2}), KEEP))

    def go_on(self) -> None:
        """When the older one has come to its end."""
        self.fences.become(2)
        assert checkpoint.latest(self.root) == (self.saved or [self.chosen])[-1]
        assert set(checkpoint.kept(self.root)) <= self.there | set(self.saved)  # no other one has come to be
        if self.upto == "begin":
            self.commit()
        self.saved += [save(self.root, self.version + more, 2) for more in (1, 2)]


@pytest.mark.parametrize("upto", ["choose", "begin", "save"])
def test_wherever_it_stands_still_its_successor_has_the_last_word(
    tmp_path: Path, fences: Fences, upto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)  # is slow, and no power is cut here
    for n in itertools.count(1):
        root = tmp_path / str(n)
        fences.replaced = False
        fences.become(1)
        for version in (1, 2):
            save(root, version, 1)
        successor = Successor(root, fences, upto)
        with pytest.MonkeyPatch.context() as patch:
            interrupted = Interrupted(patch, n, successor.take_over)
            try:
                save(root, 3, 1)
            except (Replaced, OSError):
                assert fences.replaced
        if not interrupted.was_in_time:
            assert n > 20
            return
        successor.go_on()
        assert checkpoint.kept(root) == successor.saved[-1 : -KEEP - 1 : -1]
        assert all(checkpoint.verify(path) and by(path) == 2 for path in checkpoint.kept(root))
        fences.become(3)
        assert choose(root, 0).path == str(successor.saved[-1])


def test_a_learner_that_has_been_replaced_begins_no_checkpoint(tmp_path: Path, fences: Fences) -> None:
    fences.become(2)
    theirs = checkpoint.begin(tmp_path, 4)
    fences.become(1)
    fences.replaced = True
    with pytest.raises(Replaced):
        checkpoint.begin(tmp_path, 4)
    assert list(tmp_path.iterdir()) == [theirs]


def test_a_sweep_takes_the_drafts_of_earlier_lives_and_of_none_and_no_others(tmp_path: Path, fences: Fences) -> None:
    names = {
        ".writing-i0001-0000004": True,
        ".writing-i0002-latest": True,
        ".writing-0000004": True,
        ".writing-i0003-0000004": False,
        "iter_0000003": False,
    }
    for name in names:
        (tmp_path / name).mkdir()
    fences.become(2)
    checkpoint.sweep(tmp_path)
    assert {name: not (tmp_path / name).exists() for name in names} == names
    assert mark() == "i0002-" and is_earlier("i10000-x") is False


def test_a_process_that_is_no_actors_asks_nobody_and_marks_nothing(tmp_path: Path) -> None:
    before_it_counts()
    assert mark() == "" and checkpoint.begin(tmp_path, 3).name == ".writing-0000003"


def test_an_export_of_one_that_has_been_replaced_takes_no_name(
    tmp_path: Path, fences: Fences, digits_model: Path
) -> None:
    import torch

    fences.become(1)
    fences.replaced = True
    (tmp_path / "hf").mkdir()
    with pytest.raises(Replaced):
        save_hf([("w", torch.float32, (2,))], [("w", torch.ones(2))], digits_model, tmp_path / "hf")
    assert list((tmp_path / "hf").iterdir()) == []


def test_old_snapshots_are_removed_by_no_earlier_learner(tmp_path: Path) -> None:
    for incarnation, version in ((1, 7), (2, 5), (1, 8), (2, 6), (1, 9)):
        (tmp_path / snapshot_name(incarnation, version)).mkdir()
    prune(tmp_path, 1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [snapshot_name(*one) for one in ((1, 9), (2, 5), (2, 6))]
