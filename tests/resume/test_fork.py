"""A run that begins with another one's weights: which it takes, and that it keeps to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from miles_async.config.schema import ConfigError
from miles_async.resume import fork
from miles_async.train import checkpoint
from miles_async.train.checkpoint import CheckpointError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with checkpoints of steps 5 and 10."""
    run_dir = tmp_path / "first"
    for step in (5, 10):
        root = run_dir / "checkpoints"
        state = checkpoint.LearnerState(version=step, extra={})
        checkpoint.commit(root, checkpoint.begin(root, step), state, keep=2)
    (run_dir / "config.toml").write_text('[model]\nhf_checkpoint = "builtin:digits"\n[data]\n')
    return run_dir


def convert(checkpoint_dir: Path, directory: Path) -> None:
    directory.mkdir()
    (directory / "weights").write_text(checkpoint_dir.name)


def fail(checkpoint_dir: Path, directory: Path) -> None:
    convert(checkpoint_dir, directory)
    raise ConfigError("no room")


def test_the_newest_checkpoint_is_taken_or_that_of_the_step(run: Path, tmp_path: Path) -> None:
    newest = fork.origin(tmp_path / "new", str(run))
    assert newest is not None and (newest.step, newest.model) == (10, "builtin:digits")
    older = fork.origin(tmp_path / "new", f"{run}@5")
    assert older is not None and older.step == 5 and older.checkpoint == str(run / "checkpoints" / "iter_0000005")
    assert fork.origin(tmp_path / "new", None) is None
    named = run.rename(tmp_path / "first@7")
    assert (found := fork.origin(tmp_path / "new", str(named))) is not None and found.step == 10


def test_a_fork_keeps_what_it_began_with(run: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    found = fork.origin(new, f"{run}@5")
    assert found is not None
    fork.keep(new, found, convert)
    assert (fork.model_of(new) / "weights").read_text() == "iter_0000005"
    fork.keep(new, found, fail)  # they are there already
    run.rename(tmp_path / "elsewhere")
    assert fork.origin(new, None) == fork.origin(new, str(run)) == fork.origin(new, f"{run}@5") == found
    with pytest.raises(ConfigError, match=f"the run in {new} began with {run}@5"):
        fork.origin(new, f"{run}@10")
    with pytest.raises(ConfigError, match="began with"):
        fork.origin(new, str(tmp_path / "elsewhere"))


def test_weights_that_cannot_be_had_leave_nothing_and_what_was_left_half_done_is_done_again(
    run: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    found = fork.origin(new, str(run))
    assert found is not None
    with pytest.raises(ConfigError, match="no room"):
        fork.keep(new, found, fail)
    assert not new.exists()
    (fork.model_of(new)).mkdir(parents=True)  # of a launch that was killed
    (new / "mine").touch()
    with pytest.raises(ConfigError, match="no room"):
        fork.keep(new, found, fail)
    assert [path.name for path in new.iterdir()] == ["mine"]
    fork.keep(new, found, convert)
    assert fork.read(new) == found


def test_what_is_no_run_no_step_or_not_there_is_one_line(run: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    with pytest.raises(ConfigError, match=r"is no run.s directory: it has no config\.toml"):
        fork.origin(new, str(tmp_path))
    with pytest.raises(ConfigError, match='"last" is no step; expected RUN or RUN@STEP'):
        fork.origin(new, f"{run}@last")
    with pytest.raises(CheckpointError, match="no checkpoint of step 7; those of its steps: 5, 10"):
        fork.origin(new, f"{run}@7")
    new.mkdir()
    (new / "supervisor.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"there is a run in .* already, which began otherwise"):
        fork.origin(new, str(run))
    (tmp_path / "damaged" / "forked").mkdir(parents=True)
    (tmp_path / "damaged" / "forked" / "from.json").write_text("{")
    with pytest.raises(ConfigError, match=r"from\.json is damaged"):
        fork.origin(tmp_path / "damaged", None)
