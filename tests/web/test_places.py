"""A name that a browser sends stands for a run in the directory that was given, or for none."""

from __future__ import annotations

from pathlib import Path

import pytest
from web_runs import made_run

from miles_async.web.places import PlaceError, Places


def test_the_runs_below_a_directory_are_found_by_name_and_nothing_else_is(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    made_run(root / "one")
    made_run(root / "two")
    made_run(tmp_path / "outside")
    (root / "no-run").mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "two" / "deeper").symlink_to(root / "one")
    places = Places(root)
    assert sorted(path.name for path in places.all()) == ["one", "two"]
    assert places.find("one") == (root / "one").resolve()
    for name in ("..", ".", "", "../outside", "link", "no-run", "one/../one", "two/deeper", str(root / "one"), "a\0b"):
        with pytest.raises(PlaceError, match="no run"):
            places.find(name)


def test_a_run_is_the_only_one_of_its_directory(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    made_run(run / "below")
    places = Places(run)
    assert places.all() == [run] and places.alone and places.find("run") == run
    with pytest.raises(PlaceError):
        places.find("below")


def test_a_directory_that_is_not_there_is_one_line_and_an_empty_one_has_no_runs(tmp_path: Path) -> None:
    with pytest.raises(PlaceError, match="no such directory"):
        Places(tmp_path / "nowhere")
    assert Places(tmp_path).all() == []
