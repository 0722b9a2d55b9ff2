"""A checkpoint that is not as it was written: named, passed over for an older one, and never run."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from train_support import Build, make_checkpoint, make_groups, trainers

from miles_async.train import checkpoint, checksums
from miles_async.train.checkpoint import CheckpointError, LearnerState
from miles_async.train.checkpoint_choice import CheckpointChoice, choose


def save(root: Path, version: int, keep: int = 2) -> Path:
    writing = checkpoint.begin(root, version)
    (writing / "shard").write_bytes(bytes(1000))
    (writing / ".metadata").write_bytes(b"\x80\x04N.")
    return checkpoint.commit(root, writing, LearnerState(version=version, extra={}), keep)


def flip(file: Path, at: int = 500) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def append(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def rewrite(text: str) -> Callable[[Path], None]:
    return lambda file: (file.write_text(text), None)[1]


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a flipped bit": ("shard", flip, "shard has another checksum than when it was written"),
    "a shorter file": ("shard", lambda file: file.write_bytes(b"") and None, "shard has 0 bytes instead of 1000"),
    "a longer file": ("shard", append, "shard has 1001 bytes instead of 1000"),
    "a missing file": ("shard", Path.unlink, "shard is missing"),
    "another pickle": (".metadata", rewrite("cos\nsystem\n."), ".metadata has 12 bytes instead of 4"),
    "no state": ("learner.msgpack", Path.unlink, "learner.msgpack is missing"),
    "no checksums": ("checksums.json", Path.unlink, "checksums.json is missing"),
    "torn checksums": ("checksums.json", rewrite('{"files": {"sh'), "checksums.json cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_by_its_files_and_the_older_one_is_taken(damage: str, tmp_path: Path) -> None:
    older, newest = save(tmp_path, 10), save(tmp_path, 20)
    name, do, said = DAMAGES[damage]
    do(newest / name)
    with pytest.raises(CheckpointError, match=r"iter_0000020 is damaged: .*" + said):
        checkpoint.verify(newest)
    chosen = choose(tmp_path, 10)
    assert chosen.path == str(older) and len(chosen.damaged) == 1 and said in chosen.damaged[0]
    assert checkpoint.latest(tmp_path) == older and (tmp_path / "damaged-iter_0000020").is_dir()
    assert choose(tmp_path, 10) == CheckpointChoice(str(older))  # and from then on it is the one


def test_every_byte_of_a_checkpoint_is_covered(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert checkpoint.verify(path)
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        for at in {0, len(content) // 2, len(content) - 1}:
            flip(file, at)
            if file.name != checksums.CHECKSUMS or content[at : at + 1].isalnum():  # a blank of the JSON means nothing
                with pytest.raises(CheckpointError):
                    checkpoint.verify(path)
            file.write_bytes(content)


def test_a_checkpoint_that_is_whole_is_taken_and_nothing_is_moved(tmp_path: Path) -> None:
    assert choose(tmp_path / "none", 0) == CheckpointChoice()
    save(tmp_path, 10)
    newest = save(tmp_path, 20)
    before = sorted(tmp_path.rglob("*"))
    assert choose(tmp_path, 10) == CheckpointChoice(str(newest)) and sorted(tmp_path.rglob("*")) == before


def test_where_no_checkpoint_is_sound_one_line_names_each_file_and_the_way_on(tmp_path: Path) -> None:
    for version in (10, 20):
        flip(save(tmp_path, version) / "shard")
    with pytest.raises(CheckpointError) as caught:
        choose(tmp_path, 10)
    said = str(caught.value)
    assert "iter_0000010 is damaged: shard" in said and "iter_0000020 is damaged: shard" in said and "\n" not in said
    assert "put back a copy of what is damaged, or start another run" in said
    assert len(list(tmp_path.glob("iter_*"))) == 2  # a copy can be put in its place


def test_an_older_checkpoint_is_of_no_use_once_the_ledger_has_forgotten_what_came_after_it(tmp_path: Path) -> None:
    save(tmp_path, 10)
    flip(save(tmp_path, 20) / "shard")
    with pytest.raises(
        CheckpointError, match="iter_0000010 is sound, but the ledger has forgotten the groups of step 20"
    ):
        choose(tmp_path, 20)


def test_a_single_checkpoint_that_is_damaged_says_that_no_older_one_is_kept(tmp_path: Path) -> None:
    flip(save(tmp_path, 20, keep=1) / "shard")
    with pytest.raises(CheckpointError, match=r"checkpoint\.keep has kept no older one"):
        choose(tmp_path, 20)


def test_a_run_whose_first_checkpoint_is_damaged_begins_again_while_the_ledger_has_everything(tmp_path: Path) -> None:
    flip(save(tmp_path, 20) / "shard")
    chosen = choose(tmp_path, 0)
    assert chosen.path is None and len(chosen.damaged) == 1
    assert checkpoint.latest(tmp_path) is None and choose(tmp_path, 0) == CheckpointChoice()


@pytest.mark.parametrize("pointer", ["iter_0000070", "\x00\x00", "../elsewhere"])
def test_a_pointer_to_nothing_is_named_and_the_newest_checkpoint_is_taken(pointer: str, tmp_path: Path) -> None:
    newest = save(tmp_path, 20)
    (tmp_path / "latest").write_text(pointer)
    chosen = choose(tmp_path, 20)
    assert chosen.path == str(newest) and "which is no checkpoint" in chosen.damaged[0]
    assert checkpoint.latest(tmp_path) == newest
    (tmp_path / "latest").unlink()
    assert choose(tmp_path, 20) == CheckpointChoice(str(newest))


def test_a_damaged_checkpoint_goes_when_enough_newer_ones_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 10)
    flip(save(tmp_path, 20) / "shard")
    choose(tmp_path, 10)
    save(tmp_path, 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_0000010", "iter_0000020", "latest"]


# what is in the files of a real one


class Marked:
    """Leaves a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    make_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def saved(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("saved")
    with trainers(tmp_path_factory.mktemp("meetings")) as build:
        trainer = build(model)
        trainer.step(make_groups())
        trainer.save_checkpoint(root, {"position": 3})
    return root


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """The checkpoint's directory."""
    shutil.copytree(saved, tmp_path / "checkpoints")
    return checkpoint.resolve(tmp_path / "checkpoints")


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    (tmp_path / "meetings").mkdir()
    with trainers(tmp_path / "meetings") as make:
        yield make


def test_64_flipped_bytes_of_a_shard_are_refused_before_a_weight_changes(build: Build, model: Path, copy: Path) -> None:
    trainer = build(model)
    before = trainer.export()
    shard = copy / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(255 - byte for byte in content[middle : middle + 64])
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"iter_0000001 is damaged: __0_0\.distcp"):
        trainer.load_checkpoint(copy.parent)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.export().items())


def test_no_pickle_of_a_checkpoint_runs_what_it_names(build: Build, model: Path, copy: Path, tmp_path: Path) -> None:
    """Whoever can write there can write checksums, too, or leave them out as earlier versions did."""
    trainer, marker = build(model), tmp_path / "ran"
    (copy / "checksums.json").unlink()
    (copy / "learner.msgpack").write_bytes(msgspec.msgpack.encode(LearnerState(version=1, extra={})))
    whole = {name: (copy / name).read_bytes() for name in (".metadata", "common.pt", "__0_0.distcp")}
    table = pickle.loads(whole[".metadata"])

    def refused(said: str) -> None:
        with pytest.raises(CheckpointError, match=said):
            trainer.load_checkpoint(copy)
        assert not marker.exists()
        for name, content in whole.items():
            (copy / name).write_bytes(content)

    (copy / ".metadata").write_bytes(pickle.dumps(Marked(marker)))
    refused(r"\.metadata asks for \S+, which no checkpoint has: refused")
    torch.save({"optimizer": Marked(marker)}, copy / "common.pt")
    refused(r"common\.pt holds more than tensors and plain data")
    objects = {i: place for i, place in table.storage_data.items() if "_extra_state" in i.fqn}
    for place in objects.values():
        place.offset = len(whole["__0_0.distcp"])
    with (copy / "__0_0.distcp").open("ab") as file:
        torch.save(Marked(marker), file)
    for place in objects.values():
        place.length = (copy / "__0_0.distcp").stat().st_size - place.offset
    (copy / ".metadata").write_bytes(pickle.dumps(table))
    refused("the object .*_extra_state.* holds more than tensors and plain data")
    trainer.load_checkpoint(copy)  # as it was
    assert trainer.version == 1


def test_a_checkpoint_without_checksums_is_loaded_and_said_to_be_unverified(
    build: Build, model: Path, copy: Path
) -> None:
    (copy / "checksums.json").unlink()
    (copy / "learner.msgpack").write_bytes(
        msgspec.msgpack.encode(LearnerState(version=1, extra={"of": "an earlier one"}))
    )
    assert choose(copy.parent, 0) == CheckpointChoice(str(copy), verified=False)
    assert build(model).load_checkpoint(copy.parent) == {"of": "an earlier one"}


@pytest.mark.parametrize("name", [".metadata", "common.pt", "__0_0.distcp"])
def test_a_torn_file_of_a_checkpoint_without_checksums_is_one_line(
    name: str, build: Build, model: Path, copy: Path
) -> None:
    (copy / "checksums.json").unlink()
    (copy / "learner.msgpack").write_bytes(msgspec.msgpack.encode(LearnerState(version=1, extra={})))
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 3])
    with pytest.raises(CheckpointError, match="iter_0000001") as caught:
        build(model).load_checkpoint(copy)
    assert "\n" not in str(caught.value)
