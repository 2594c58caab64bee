"""How sure a model was of the tokens that it chose, from the logits that they were chosen from. Knows no engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SMALLEST = 1e-38
"""Least weight that has a logarithm in float32."""
_IN_CACHE = 1 << 17
"""Numbers of a few rows that stay in the cache of one of a CPU's cores."""


@dataclass(frozen=True, eq=False)
class Distribution:
    """Next tokens of M sequences over a vocabulary of V, whatever becomes of the logits.

    Attributes:
        weights: float32 (M, V), proportional to the probabilities.
        log_sum: float32 (M,), logarithm of each row's sum of weights.
        entropy: float32 (M,), in nats.
    """

    weights: Tensor
    log_sum: Tensor
    entropy: Tensor

    @torch.inference_mode()
    def log_probability(self, tokens: Tensor) -> Tensor:
        """Natural log probabilities (M,) of chosen tokens (M,)."""
        return self.weights.gather(1, tokens.long()[:, None])[:, 0].clamp_min(_SMALLEST).log() - self.log_sum


class Scratch:
    """Memory that the distributions of successive steps share on a CPU, where new memory costs more than the sums."""

    def __init__(self) -> None:
        self._numbers: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, columns: int) -> Tensor:
        """Float32 (rows, columns) with whatever is in it; what was taken under that name before is overwritten."""
        kept = self._numbers.get(name)
        if kept is None or kept.numel() < rows * columns:
            kept = self._numbers[name] = torch.empty(rows * columns, dtype=torch.float32)
        return kept[: rows * columns].view(rows, columns)


@torch.inference_mode()
def distribution(logits: Tensor, scratch: Scratch) -> Distribution:
    """The distributions that logits (M, V) of any float type stand for, -inf among them.

    On a GPU these are a few passes over memory that is fast. A CPU is as fast as its cache: there the rows are taken a
    few at a time, with one exponential an element and no logarithm: H = log sum w + max x - sum w x / sum w.

    Args:
        logits: not changed.
        scratch: of the caller; the distribution holds until the next one is made with it.
    """
    if logits.device.type != "cpu":
        p = torch.softmax(logits.float(), dim=-1)
        return Distribution(p, p.new_zeros(len(p)), torch.special.entr(p).sum(-1))
    count, width = logits.shape
    at_once = min(max(1, torch.get_num_threads() * _IN_CACHE // width), max(count, 1))
    weights, products = scratch.take("weights", count, width), scratch.take("products", at_once, width)
    sums, entropy = torch.empty(count), torch.empty(count)
    for start in range(0, count, at_once):
        rows = slice(start, start + at_once)
        x, w = logits[rows].float(), weights[rows]
        most = x.amax(-1, keepdim=True)
        torch.sub(x, most, out=w).exp_()
        total = sums[rows] = w.sum(-1)
        expected = torch.mul(w, x, out=products[: len(x)]).sum(-1) / total
        entropy[rows] = total.log() + most[:, 0] - expected
    masked = entropy.isnan().nonzero()[:, 0]  # a grammar forbids tokens: 0 times -inf
    if len(masked):
        entropy[masked] = torch.special.entr(weights[masked] / sums[masked, None]).sum(-1)
    return Distribution(weights, sums.log_(), entropy.clamp_min_(0))
