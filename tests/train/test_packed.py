"""Packed micro-batches: every token is there, those of equal prompts once, and each output is that of its token."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from miles_async.train.batch import MicroBatch, Sequences, micro_batches
from miles_async.train.local_functions import Picked, Spread
from miles_async.train.packed import Packed, packed, whole_rows

CPU = torch.device("cpu")
# prompts of which many are equal or begin alike, their responses, and which response tokens are to be computed
prompts = st.lists(st.integers(1, 2), min_size=1, max_size=3)
responses = st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=5)
samples = st.lists(st.tuples(prompts, responses), min_size=1, max_size=8)


def sequences(drawn: list[tuple[list[int], list[tuple[int, bool]]]]) -> Sequences:
    return Sequences(
        tokens=np.concatenate([[*prompt, *(token for token, _ in response)] for prompt, response in drawn]),
        lengths=np.array([len(prompt) + len(response) for prompt, response in drawn]),
        prompt_lengths=np.array([len(prompt) for prompt, _ in drawn]),
        mask=np.array([wanted for _, response in drawn for _, wanted in response]),
    )


def micros(drawn: list[tuple[list[int], list[tuple[int, bool]]]], max_tokens: int) -> list[tuple[MicroBatch, Packed]]:
    return [(micro, packed(micro, CPU)) for micro in micro_batches(sequences(drawn), max_tokens, 4)]


@given(samples, st.integers(1, 40))
def test_rows_have_their_tokens_and_each_output_is_behind_its_own(drawn, max_tokens) -> None:
    for micro, part in micros(drawn, max_tokens):
        rows, columns = micro.tokens.shape
        real = np.arange(columns) < micro.widths[:, None]
        found = part.tokens[part.in_rows.source].reshape(rows, columns).numpy()
        np.testing.assert_array_equal(found[real], micro.tokens[real])
        column = part.column[part.in_rows.source].reshape(rows, columns).numpy()
        np.testing.assert_array_equal(column[real], np.nonzero(real)[1])
        at_output = part.wanted[part.outputs.source[: part.output_count]]
        expected = micro.tokens.T.ravel()[micro.positions]
        np.testing.assert_array_equal(part.tokens[at_output].numpy(), expected)
        np.testing.assert_array_equal(part.column[at_output].numpy(), micro.positions // rows)


@given(samples)
def test_a_prompt_is_there_once_and_no_response_twice(drawn) -> None:
    for micro, part in micros(drawn, 1000):
        of_prompts = {tuple(row[:width]) for row, width in zip(micro.tokens, micro.prompt_widths, strict=True)}
        of_responses = int((micro.widths - micro.prompt_widths).sum())
        assert part.count == sum(map(len, of_prompts)) + of_responses
        assert len(set(part.place[: part.count].tolist())) == part.count
        assert len(set(part.wanted[: part.wanted_count].tolist())) == part.wanted_count
        assert len(part.tokens) == whole_rows(part.count) and len(part.wanted) == whole_rows(part.wanted_count)


@given(samples)
def test_the_gradient_of_what_lies_in_several_places_is_the_sum_of_theirs(drawn) -> None:
    for _, part in micros(drawn, 1000):
        for spread, size in ((part.in_rows, len(part.tokens)), (part.outputs, len(part.wanted))):
            x = torch.randn(size, 2, 3, requires_grad=True)
            meant = torch.zeros(len(spread.source), 1, 1)
            meant[spread.order] = 1.0
            weights = torch.randn(len(spread.source), 2, 3) * meant
            (Spread.apply(x, spread) * weights).sum().backward()
            expected = torch.zeros_like(x).index_add_(0, spread.source, weights)
            torch.testing.assert_close(x.grad, expected)
        y = torch.randn(part.rows * part.columns, 2, requires_grad=True)
        weights = torch.randn(len(part.place), 2)
        weights[part.count :] = 0.0
        (Picked.apply(y, part.place, part.count) * weights).sum().backward()
        torch.testing.assert_close(y.grad, torch.zeros_like(y).index_add_(0, part.place, weights))


@given(st.integers(0, 1 << 20))
def test_numbers_of_rows_are_few_and_hardly_larger(count: int) -> None:
    assert count <= whole_rows(count) < max(count * 9 / 8 + 1, count + 16)
    assert whole_rows(whole_rows(count)) == whole_rows(count)


def test_there_are_few_numbers_of_rows() -> None:
    assert len({whole_rows(count) for count in range(1025, 2049)}) == 8
