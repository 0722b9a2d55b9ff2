"""Which engines a comparison of checksums finds wrong, and when they are asked."""

from __future__ import annotations

from miles_async.weights.check import Checks, differing

RIGHT = {"a": "1", "b": "2"}
WRONG = {"a": "1", "b": "9"}


def test_an_engine_that_differs_from_the_snapshot_is_named_with_the_tensor() -> None:
    snapshot = {**RIGHT, "lm_head.weight": "3"}  # of a tied model: the engine has none
    assert differing({"e0": RIGHT, "e1": WRONG}, snapshot) == {"e1": "b is not as in the snapshot"}
    assert differing({"e0": {**RIGHT, "c": "4"}}, snapshot) == {"e0": "c is not as in the snapshot"}
    assert differing({"e0": RIGHT}, snapshot) == {}


def test_without_a_snapshot_the_majority_is_right_and_of_a_tie_nobody() -> None:
    assert differing({"e0": RIGHT, "e1": WRONG, "e2": RIGHT}, None) == {"e1": "b is not as in most engines"}
    assert differing({"e0": RIGHT, "e1": WRONG}, None) == {
        "e0": "b is not as in another engine",
        "e1": "b is not as in another engine",
    }
    assert differing({"e0": RIGHT, "e1": dict(RIGHT)}, None) == {}
    assert differing({"e0": RIGHT, "e1": {"fused": "5"}}, None) == {}  # of another kind: nothing to compare with


def test_all_waves_of_every_nth_version_are_asked_and_who_was_wrong_after_every_update() -> None:
    checks = Checks(3)
    assert checks.due("e0", (1, 1)) and checks.due("e1", (1, 1))
    assert checks.judge((1, 1), {"e0": RIGHT}, None) == {}
    assert list(checks.judge((1, 1), {"e1": WRONG}, None)) == ["e0", "e1"]  # one wave's answer counts for the next
    assert checks.due("e0", (1, 2)) and not checks.due("e2", (1, 2))
    assert checks.judge((1, 2), {"e0": RIGHT, "e1": RIGHT}, None) == {}
    assert not checks.due("e0", (1, 3)) and checks.due("e0", (1, 4))
    assert checks.due("e0", (2, 0))  # of another incarnation of the learner
    assert not Checks(None).due("e0", (1, 1))
