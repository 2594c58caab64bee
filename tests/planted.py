"""Proxies whose worth is known, for the tests of the evaluation: they read `tiny.made_up_labels`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fastrm_monitor.scoring.checkpoint import ProxyFolder
from fastrm_monitor.scoring.confidence import LogisticConfidence
from fastrm_monitor.scoring.proxy import Proxy, ProxyConfig, Reading

Worth = Literal["good", "shuffled", "constant"]


class PlantedProxy(Proxy):
    """Good: a patch is relevant when it is of the question's sort. Shuffled: the same numbers on other patches."""

    def __init__(self, worth: Worth = "good", width: int = 16) -> None:
        super().__init__(ProxyConfig(width, "query-row", 4))
        self._worth = worth
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def read(self, states: Tensor, image: Tensor, valid: Tensor) -> Reading:
        logits = (states[..., 2:] @ states[:, -1, 2:, None])[..., 0] - 6  # the first two numbers are not the sort's
        if self._worth == "constant":
            logits = torch.zeros_like(logits)
        if self._worth == "shuffled":
            generator = torch.Generator().manual_seed(0)
            for row, where in zip(logits, image, strict=True):
                own = row[where]
                row[where] = own[torch.randperm(len(own), generator=generator)]
        return Reading(logits)


def planted_folder(worth: Worth = "good", confidence: LogisticConfidence | None = None) -> ProxyFolder:
    """A proxy folder that is on no disk."""
    proxy = PlantedProxy(worth).eval().requires_grad_(False)
    return ProxyFolder(proxy, proxy.config, f"version-{worth}", torch.ones(16), confidence, Path(f"proxies/{worth}"))
