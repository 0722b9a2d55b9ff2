"""Drawing tokens: right distribution, right truncation, noise of one's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from miles_async.engines.embedded.sampling import NO_TOP_K, Filters, sample, truncate, uniforms


def draw(
    logits: torch.Tensor, seed: int, n: int, temperature: float = 1.0, filters: Filters | None = None
) -> torch.Tensor:
    noise = torch.from_numpy(uniforms(np.full(n, seed, np.uint64), np.arange(n)))
    return sample(logits.expand(n, -1), torch.full((n,), temperature), noise, None, filters)[0]


def filters(n: int, *, top_k: int = NO_TOP_K, top_p: float = 1.0, min_p: float = 0.0) -> Filters:
    return Filters(torch.arange(n), torch.full((n,), top_k), torch.full((n,), top_p), torch.full((n,), min_p))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_have_the_frequencies_of_the_tempered_distribution(temperature: float) -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, -3.0])
    n = 40_000
    counts = torch.bincount(draw(logits, 7, n, temperature), minlength=5) / n
    expected = torch.softmax(logits / temperature, -1)
    assert (counts - expected).abs().max() < 4 * (0.25 / n) ** 0.5


def test_neighbouring_seeds_and_positions_are_unrelated() -> None:
    grid = uniforms(np.repeat(np.arange(200, dtype=np.uint64), 200), np.tile(np.arange(200), 200)).reshape(200, 200)
    assert len(np.unique(grid)) > 39_990
    assert abs(grid.mean() - 0.5) < 0.01
    for other in (grid[1:], grid[:, 1:]):
        mine = grid[: other.shape[0], : other.shape[1]]
        assert abs(np.corrcoef(mine.ravel(), other.ravel())[0, 1]) < 0.02
    assert abs(grid[:, 0].mean() - 0.5) < 0.08  # also the first tokens of seeds 0, 1, 2...
    assert grid.min() > 0.0 and grid.max() < 1.0


def test_top_k_top_p_and_min_p_leave_out_what_they_should() -> None:
    probs = torch.tensor([[0.1, 0.4, 0.3, 0.15, 0.05]])

    def kept(**options: float) -> list[int]:
        return torch.nonzero(truncate(probs, filters(1, **options))[0])[:, 0].tolist()  # type: ignore[arg-type]

    assert kept(top_k=2) == [1, 2]
    assert kept(top_p=0.5) == [1, 2]
    assert kept(top_p=0.3) == [1]
    assert kept(min_p=0.3) == [1, 2, 3]
    assert kept(top_k=3, top_p=0.75) == [1, 2, 3]
    assert kept() == [0, 1, 2, 3, 4]


def test_a_truncated_row_never_draws_what_is_left_out_and_reports_the_full_distribution() -> None:
    logits = torch.tensor([1.0, 3.0, 2.5, 0.0])
    n = 5000
    tokens = draw(logits, 3, n, filters=filters(n, top_k=2))
    assert set(tokens.tolist()) == {1, 2}
    noise = torch.from_numpy(uniforms(np.zeros(1, np.uint64), np.zeros(1, np.int64)))
    token, logprob = sample(logits[None], torch.ones(1), noise, None, filters(1, top_k=1))
    assert token.item() == 1
    assert logprob.item() == pytest.approx(torch.log_softmax(logits, -1)[1].item())


def test_rows_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 50)
    seeds, positions = np.arange(6, dtype=np.uint64), np.arange(6)
    noise = torch.from_numpy(uniforms(seeds, positions))
    mixed = Filters(torch.tensor([1, 4]), torch.tensor([3, NO_TOP_K]), torch.tensor([1.0, 0.4]), torch.zeros(2))
    greedy = torch.tensor([False, False, True, False, False, False])
    temperature = torch.tensor([1.0, 0.7, 1.0, 2.0, 1.0, 0.1])
    tokens, logprobs = sample(logits, temperature, noise, greedy, mixed)
    assert tokens[2] == logits[2].argmax()
    for row in range(6):
        alone = mixed if row in (1, 4) else None
        if alone is not None:
            at = [1, 4].index(row)
            alone = Filters(torch.tensor([0]), *(column[at : at + 1] for column in mixed[1:]))
        one = slice(row, row + 1)
        token, logprob = sample(logits[one], temperature[one], noise[one], greedy[one], alone)
        assert token[0] == tokens[row]
        assert logprob[0] == pytest.approx(logprobs[row].item(), abs=1e-6)
