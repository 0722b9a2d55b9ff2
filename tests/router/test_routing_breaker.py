"""The circuit breaker against a plain model of it: pure, the time is a number."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from miles_async.router.policies.breaker import Breaker

FAILURES, OPEN_S = 3, 10.0


class BreakerMachine(RuleBasedStateMachine):
    """Requests end in any order and at any time. The model: how many failed since one that did not, and when it opened."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(FAILURES, OPEN_S)
        self.now = 0.0
        self.failed_in_a_row = 0
        self.opened_at: float | None = None
        self.probing = False

    @rule(seconds=st.sampled_from([0.0, 1.0, OPEN_S - 0.5, OPEN_S]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def a_request_succeeds(self) -> None:
        self.breaker.succeeded()
        self.failed_in_a_row = 0

    @rule()
    def a_request_fails(self) -> None:
        self.failed_in_a_row += 1
        opens = self.opened_at is None and self.failed_in_a_row >= FAILURES
        assert self.breaker.failed(self.now) == opens
        if opens:
            self.opened_at = self.now

    @rule()
    def somebody_wants_to_probe(self) -> None:
        may = self.opened_at is not None and not self.probing and self.now >= self.opened_at + OPEN_S
        assert self.breaker.probe(self.now) == may
        self.probing = self.probing or may

    @precondition(lambda self: self.probing)
    @rule(success=st.booleans())
    def the_probe_ends(self, success: bool) -> None:
        self.breaker.probed(success, self.now)
        self.probing = False
        self.opened_at = None if success else self.now
        self.failed_in_a_row = 0 if success else self.failed_in_a_row

    @precondition(lambda self: self.probing)
    @rule()
    def the_client_of_the_probe_leaves(self) -> None:
        self.breaker.unprobed()
        self.probing = False

    @rule()
    def the_engine_begins_anew(self) -> None:
        self.breaker.reset()
        self.failed_in_a_row, self.opened_at, self.probing = 0, None, False

    @invariant()
    def it_is_what_the_model_says(self) -> None:
        expected = "closed" if self.opened_at is None else "half_open" if self.probing else "open"
        assert self.breaker.state == expected
        assert self.breaker.in_a_row == self.failed_in_a_row


TestBreaker = BreakerMachine.TestCase
TestBreaker.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_what_comes_back_late_from_a_probe_that_was_overtaken_moves_nothing() -> None:
    breaker = Breaker(1, OPEN_S)
    breaker.failed(0.0)
    assert breaker.probe(OPEN_S)
    breaker.reset()
    breaker.probed(False, OPEN_S)
    breaker.unprobed()
    assert breaker.state == "closed"


@pytest.mark.parametrize(("failures", "open_s"), [(0, 1.0), (1, -1.0)])
def test_a_breaker_that_could_never_serve_is_refused(failures: int, open_s: float) -> None:
    with pytest.raises(ValueError, match="expected at least"):
        Breaker(failures, open_s)
