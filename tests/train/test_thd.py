"""Sequences one after the other: every token is there once, no token sees another sequence, nothing else is computed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miles_async.config.layout import WHOLE, Layout
from miles_async.train import cpu_shim
from miles_async.train.batch import MicroBatch, Sequences, micro_batches
from miles_async.train.outputs import Inputs
from miles_async.train.thd import row_inputs

CPU = torch.device("cpu")
cpu_shim.install(CPU)  # before Megatron is imported
LAYOUTS = [WHOLE, Layout(tensor=2, sequence=True), Layout(context=2), Layout(tensor=2, context=2, sequence=True)]
# prompt and response of each sequence, and which tokens of the response are to be computed
samples = st.lists(
    st.tuples(st.integers(1, 4), st.lists(st.booleans(), min_size=1, max_size=6)), min_size=1, max_size=8
)
Drawn = list[tuple[int, list[bool]]]


def micros(drawn: Drawn, max_tokens: int) -> list[MicroBatch]:
    lengths = np.array([prompt + len(wanted) for prompt, wanted in drawn])
    tokens = np.arange(1, 1 + lengths.sum())  # each its own
    sequences = Sequences(
        tokens=tokens,
        lengths=lengths,
        prompt_lengths=np.array([prompt for prompt, _ in drawn]),
        mask=np.concatenate([wanted for _, wanted in drawn]),
        routes=np.delete(tokens, np.cumsum(lengths) - 1)[:, None, None],  # the token, as if it were its expert
    )
    return micro_batches(sequences, max_tokens, padded=False)


def parts(micro: MicroBatch, layout: Layout) -> list[Inputs]:
    return [row_inputs(micro, layout, rank, CPU) for rank in range(layout.context)]


@pytest.mark.parametrize("layout", LAYOUTS)
@given(drawn=samples, max_tokens=st.integers(1, 40))
def test_the_ranks_have_each_token_once_and_each_output_is_behind_its_own(
    layout: Layout, drawn: Drawn, max_tokens: int
) -> None:
    for micro in micros(drawn, max_tokens):
        assert micro.widths.sum() <= max_tokens or len(micro.widths) == 1
        of_ranks = parts(micro, layout)
        real = np.concatenate([part.tokens[~part.padding].numpy() for part in of_ranks])
        for part in of_ranks:
            assert part.routes is not None and part.routes.shape[:2] == part.tokens.shape
            assert torch.equal(part.routes[..., 0, 0][~part.padding], part.tokens[~part.padding])
            assert part.routes.min() > 0
        expected = micro.tokens[np.arange(micro.tokens.shape[1]) < micro.widths[:, None]]
        assert sorted(real.tolist()) == sorted(expected.tolist())
        wanted = {}
        for part in of_ranks:
            index = np.arange(len(micro.targets)) if part.index is None else part.index.numpy()
            wanted |= dict(zip(index.tolist(), part.tokens[0, part.places].tolist(), strict=True))
        before = micro.tokens.T.ravel()[micro.positions].tolist()
        assert [wanted[number] for number in range(len(before))] == before


@pytest.mark.parametrize("layout", LAYOUTS)
@given(drawn=samples)
def test_what_is_padding_is_less_than_what_the_layout_cannot_split(layout: Layout, drawn: Drawn) -> None:
    unit = 2 * layout.context if layout.context > 1 else 1
    for micro in micros(drawn, 1000):
        for part in parts(micro, layout):
            assert part.lengths is not None and part.tokens.shape[1] * layout.context == sum(part.lengths)
            assert all(length % unit == 0 for length in part.lengths)
            assert part.tokens.shape[1] % layout.tensor == 0
        computed = sum(part.tokens.shape[1] for part in parts(micro, layout))
        assert computed - micro.widths.sum() < unit * (len(micro.widths) + layout.tensor)


def test_the_attention_of_a_row_is_that_of_each_sequence_alone(config: Any) -> None:
    from miles_async.train.attention import CausalAttention

    attention, lengths, generator = CausalAttention(config), [5, 3, 3, 1], torch.Generator().manual_seed(1)
    row = [torch.randn(sum(lengths), heads, 8, generator=generator, requires_grad=True) for heads in (4, 2, 2)]
    bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    weights = torch.randn(sum(lengths), 32, generator=generator)
    found = attention(*row, packed_seq_params=SimpleNamespace(cu_seqlens_q=bounds))
    (found * weights).sum().backward()
    gradients = [part.grad for part in row]
    alone = zip(
        *(part.detach().split(lengths) for part in row), weights.split(lengths), found.split(lengths), strict=True
    )
    for number, (*one, weight, ours) in enumerate(alone):
        one = [part[:, None].requires_grad_() for part in one]  # [s, 1, heads, d]
        theirs = attention(*one)[:, 0]
        torch.testing.assert_close(ours, theirs)
        (theirs * weight).sum().backward()
        for gradient, part in zip(gradients, one, strict=True):
            assert gradient is not None and part.grad is not None
            torch.testing.assert_close(gradient.split(lengths)[number], part.grad[:, 0])


@pytest.fixture
def config() -> Any:
    from megatron.core.transformer.transformer_config import TransformerConfig

    return TransformerConfig(num_layers=1, hidden_size=32, num_attention_heads=4, num_query_groups=2)
