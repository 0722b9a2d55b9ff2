"""The KL loss with ``use_unbiased_kl``: its expectation over what the engine samples is the KL, whatever the denominator is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from miles_async.config.schema import Algorithm, Data, Model, RunConfig, Staleness
from miles_async.rl.terms import LossTerms
from miles_async.train.objective import Objective

VERSION = 3


def objective(**algorithm: Any) -> Objective:
    return Objective(
        RunConfig(
            model=Model(hf_checkpoint="x"),
            data=Data(prompt_data="x"),
            staleness=Staleness(max_lag=2),
            algorithm=Algorithm(use_kl_loss=True, kl_loss_coef=1.0, use_unbiased_kl=True, **algorithm),
        )
    )


def policies() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (with gradient) of the policy, log-probs of the reference and of the engine's policy, over 6 tokens."""
    generator = torch.Generator().manual_seed(4)
    logits, reference, behaviour = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(3))
    return logits.requires_grad_(True), reference.log_softmax(0), behaviour.log_softmax(0)


@pytest.mark.parametrize("kind", ["k1", "k3"])
@pytest.mark.parametrize(
    "denominator",
    [
        {"correction": "behaviour"},
        {"correction": "tis"},
        {"correction": "uncorrected"},
        {"correction": "tis", "old_log_probs": "loglinear"},
    ],
)
def test_the_unbiased_kl_is_unbiased_under_every_denominator(denominator: dict[str, Any], kind: str) -> None:
    made = objective(kl_loss_type=kind, **denominator)
    logits, reference, behaviour = policies()
    logprobs = logits.log_softmax(0)
    exact = (logprobs.exp() * (logprobs - reference)).sum()
    versions = torch.full((6,), VERSION - 1)
    terms = LossTerms(
        logprobs=logprobs,
        old=made.old(logprobs.detach(), behaviour, versions, VERSION),
        behaviour=behaviour,
        advantages=torch.zeros(6, dtype=torch.float64),
        sample_index=torch.arange(6),
        versions=versions,
        version=VERSION,
        mask=torch.ones(6),
    )
    # each token as often as the engine samples it
    loss, sums = made.loss(terms, behaviour.exp(), entropy=torch.zeros(6), reference=reference)
    assert sums["kl_loss"].item() == pytest.approx(exact.item(), abs=1e-12)
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(exact, logits)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
