"""Ages of a group: in versions, each against the learner of that moment; what is not known is left out."""

from __future__ import annotations

from bus.messages import Begun
from miles_async.groups.ages import AGES, ages, shown


def test_each_age_is_of_its_own_moment() -> None:
    begun = Begun(learner=5, engines=4, first_token=7, sampled_by=5)
    found = ages(begun, oldest=5, version=9)
    assert found == {"submission": 1, "first_token": 2, "training": 4, "since_submission": 5}
    assert tuple(found) == tuple(AGES)
    assert shown(found) == "ages in versions: submission 1, first token 2, training 4, since submission 5"


def test_what_is_not_known_is_left_out() -> None:
    assert ages(Begun(), oldest=None, version=3) == {} and shown({}) == ""
    assert ages(Begun(learner=2, engines=2), oldest=2, version=None) == {"submission": 0}
    assert ages(Begun(learner=2, engines=-1), oldest=1, version=3) == {"training": 2}
