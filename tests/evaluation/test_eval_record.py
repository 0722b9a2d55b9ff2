"""The record of an evaluation is read back, and a line that a death tore off is cut away."""

from __future__ import annotations

import json
from pathlib import Path

from evaluations import graded

from miles_async.evaluation.point import Result
from miles_async.evaluation.record import EvalRecord
from miles_async.runs.points import POINTS_FILE, Point


def test_the_record_is_read_back_and_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    record = EvalRecord(tmp_path)
    record.add(Point(0, 1, "made", 1.0, {"d": 0.5}))
    record.add(Point(4, 1, "busy", 2.0, cause="why"))
    record.add_samples(0, {"d": Result({"d": 0.5}, [graded(0.5)])})
    assert json.loads((tmp_path / "d-0.jsonl").read_text())["reward"] == 0.5
    with (tmp_path / POINTS_FILE).open("ab") as file:
        file.write(b'{"version": 8, "incarn')
    again = EvalRecord(tmp_path)
    assert {version: point.outcome for version, point in again.points.items()} == {0: "made", 4: "busy"}
    again.add(Point(8, 1, "made", 3.0))
    assert [json.loads(line)["version"] for line in (tmp_path / POINTS_FILE).read_text().splitlines()] == [0, 4, 8]
