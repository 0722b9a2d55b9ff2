"""A launch compares the learner's model with transformers' once for each checkpoint, and refuses one that differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from train_support import make_checkpoint, make_config

from miles_async.cli import parity
from miles_async.cli.doctor import Finding
from miles_async.cli.parity import check_parity
from miles_async.config.schema import ConfigError, RunConfig


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_checkpoint(tmp_path / "model")
    return tmp_path / "model"


def config(path: Any, **sections: dict[str, Any]) -> RunConfig:
    return make_config(path, **{"model": {"parity_check": True}, **sections})


def nobody(_: Path) -> Any:
    raise AssertionError("nothing was to be compared")


def test_a_checkpoint_is_compared_once_and_again_when_it_changes(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_parity(config(model))
    said = capsys.readouterr().err
    assert "once for this checkpoint" in said and "log-probs are transformers'" in said
    with monkeypatch.context() as compared:
        compared.setattr(parity, "_compared", nobody)
        check_parity(config(model))
        assert capsys.readouterr().err == ""
        make_checkpoint(model, rope_theta=77.0)
        with pytest.raises(AssertionError, match="nothing was to be compared"):
            check_parity(config(model))


def test_a_model_that_differs_is_refused_with_the_difference_each_time(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = "import miles_async.train.parity\nmiles_async.train.parity.BOUND = -1.0\n"
    monkeypatch.setattr(parity, "_COMPARE", strict + parity._COMPARE)
    with pytest.raises(
        ConfigError, match=r"model\.hf_checkpoint: Qwen3.* differ from transformers' by \d.*model_provider"
    ) as refused:
        check_parity(config(model))
    assert "\n" not in str(refused.value)
    assert not list(model.parent.glob("cache/**/*.json"))


@pytest.mark.parametrize("place", ["/proc/nowhere", "FILE/below", ""])
def test_a_comparison_that_cannot_be_kept_costs_the_next_launch_another_one(
    place: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", place.replace("FILE", str(model / "config.json")))
    if not place:
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    made: list[Path] = []
    monkeypatch.setattr(parity, "_compared", lambda path: made.append(path) or Finding("model", "ok", "the same"))
    check_parity(config(model))
    assert ("cannot be written" in capsys.readouterr().err) == bool(place)
    check_parity(config(model))
    assert made == [model, model]


def test_a_damaged_note_of_a_comparison_is_none(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    monkeypatch.setattr(parity, "_compared", lambda path: made.append(path) or Finding("model", "ok", "the same"))
    check_parity(config(model))
    (kept,) = model.parent.glob("cache/**/*.json")
    kept.write_bytes(b"")
    check_parity(config(model))
    check_parity(config(model))
    assert len(made) == 2


def test_what_cannot_be_compared_is_refused_with_the_key_that_leaves_it_out(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "_COMPARE", "raise SystemExit('no room for it')")
    with pytest.raises(
        ConfigError, match=r"cannot be compared with transformers: no room for it; model\.parity_check = false"
    ):
        check_parity(config(model))


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"parity_check": False}},
        {"model": {"model_provider": "of.mine"}},
        {"model": {"hf_checkpoint": "builtin:digits"}},
        {"learner": {"train_backend": "of.mine"}},
    ],
)
def test_nothing_is_compared_where_nothing_can_be_said(
    sections: dict[str, Any], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "_compared", nobody)
    check_parity(config(model, **sections))
