"""Probabilities and entropies of next tokens, on the processor's own way of computing them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import entropy as entropy_of

from fastrm_monitor.scoring.tokens import Scratch, distribution


@pytest.mark.parametrize("rows", [1, 3, 7, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_scipy(rows, dtype):
    """Rows are taken a few at a time (a vocabulary of 32,000): every one has scipy's numbers, in double precision."""
    logits = (torch.randn(rows, 32_000, generator=torch.Generator().manual_seed(rows)) * 4).to(dtype)
    before = logits.clone()
    known = distribution(logits, Scratch())
    exact = logits.double().numpy()
    tokens = torch.randint(0, 32_000, (rows,), generator=torch.Generator().manual_seed(1))
    wanted = log_softmax(exact, axis=1)
    assert np.allclose(known.entropy, entropy_of(np.exp(wanted), axis=1), atol=1e-4)
    assert np.allclose(known.log_probability(tokens), wanted[np.arange(rows), tokens], atol=1e-4)
    assert torch.equal(logits, before)


def test_masked_and_certain():
    """Forbidden tokens have no part in the entropy; a certain token has entropy 0; a row of NaN stays a row of NaN."""
    off = -float("inf")
    known = distribution(torch.tensor([[1.0, 1.0, off, off], [90.0, 0.0, -9.0, off], [float("nan")] * 4]), Scratch())
    assert known.entropy[0] == pytest.approx(np.log(2), abs=1e-6)
    assert known.entropy[1] == pytest.approx(0, abs=1e-6)
    assert known.entropy[2].isnan()
    numbers = known.log_probability(torch.tensor([0, 3, 0]))
    assert numbers[0] == pytest.approx(-np.log(2), abs=1e-6)
    assert numbers[1] < -80
    assert numbers[2].isnan()


def test_what_is_kept_is_not_the_logits():
    """A sampler that writes over the logits afterwards changes nothing here."""
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    known = distribution(logits, Scratch())
    logits.fill_(0)
    assert known.log_probability(torch.tensor([2])) == pytest.approx(3 - np.log(np.exp([1, 2, 3]).sum()), abs=1e-6)


def test_scratch_is_used_again():
    """Steps of any size share the memory, and none sees what another left there."""
    scratch = Scratch()
    for rows in (5, 2, 9, 1):
        logits = torch.randn(rows, 300, generator=torch.Generator().manual_seed(rows))
        known = distribution(logits, scratch)
        exact = log_softmax(logits.double().numpy(), axis=1)
        assert np.allclose(known.entropy, entropy_of(np.exp(exact), axis=1), atol=1e-5)
        assert np.allclose(known.log_probability(torch.zeros(rows)), exact[:, 0], atol=1e-5)
