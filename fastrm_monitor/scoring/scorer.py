"""States in, numbers out: the proxy, the map features and the confidence of a batch of prompts.

Usable apart from any engine, for those who bring their own hook. Works on the device that the states are on and waits
for it once a batch. It does not decide (`policy`) and keeps nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastrm_monitor.errors import ModelError
from fastrm_monitor.scoring.checkpoint import ProxyFolder, load_proxy
from fastrm_monitor.scoring.confidence import Confidence, Uncalibrated
from fastrm_monitor.scoring.entropy import map_features
from fastrm_monitor.scoring.patches import PatchGrid
from fastrm_monitor.types import RelevanceMap


@dataclass(frozen=True, eq=False)
class Measured:
    """What the states of a prompt say, still on their device.

    Attributes:
        relevance: float32 (B, T), probability of relevance at the image positions.
        image: bool (B, T), the image positions.
        signals: float32 (B,) each, the scores that the states give beside the map, by name: `p_ik` where the proxy
            folder has a probe, and those of the proxy's heads.
    """

    relevance: Tensor
    image: Tensor
    signals: dict[str, Tensor]

    def rows(self) -> list[tuple[np.ndarray, dict[str, float]]]:
        """For each prompt its relevance, float32 (N,) in token order, and its signals. Waits for the device, once."""
        columns = [self.relevance, self.image.float(), *(value[:, None] for value in self.signals.values())]
        packed = torch.cat(columns, dim=1).cpu().numpy()
        width = self.relevance.shape[1]
        return [
            (
                row[:width][row[width : 2 * width] > 0.5],
                dict(zip(self.signals, row[2 * width :].tolist(), strict=True)),
            )
            for row in packed
        ]


@dataclass(frozen=True, eq=False)
class Score:
    """The outcome for one answer: its maps, the features, the confidence and whether that is calibrated."""

    maps: tuple[RelevanceMap, ...]
    features: dict[str, float]
    confidence: float
    calibrated: bool


class Scorer:
    """Scores answers with one proxy folder.

    Args:
        folder: the proxy folder, loaded or by path.

    Raises:
        ProxyError: the folder cannot be read.
    """

    def __init__(self, folder: ProxyFolder | str | Path) -> None:
        self.folder = folder if isinstance(folder, ProxyFolder) else load_proxy(folder)
        self.confidence: Confidence = self.folder.confidence or Uncalibrated()
        self._proxy = self.folder.proxy
        fitted = self.folder.confidence
        self._probe = torch.tensor(fitted.probe) if fitted is not None and fitted.probe else None
        self._probe_bias = fitted.probe_bias if fitted is not None else 0.0

    def to(self, device: torch.device) -> Scorer:
        """Move the weights to the model's device."""
        self._proxy = self._proxy.to(device)
        if self._probe is not None:
            self._probe = self._probe.to(device)
        return self

    @torch.inference_mode()
    def measure(self, states: Tensor, image: Tensor, valid: Tensor) -> Measured:
        """Relevance and signals of a batch of prompts, without waiting for the device.

        Args:
            states: (B, T, d) final hidden states after the model's final norm; the last column predicts the answer's
                first token.
            image: (B, T) bool, the image tokens.
            valid: (B, T) bool, all tokens but padding.
        """
        reading = self._proxy.read(states, image, valid)
        signals = {**self.probe(states[:, -1]), **reading.signals(image)}
        return Measured(torch.sigmoid(reading.relevance), image, signals)

    @torch.inference_mode()
    def probe(self, last: Tensor) -> dict[str, Tensor]:
        """`p_ik`, P(I know), float32 (B,), from the states (B, d) at t; nothing when the proxy folder has no probe."""
        if self._probe is None:
            return {}
        return {"p_ik": torch.sigmoid(last.float() @ self._probe + self._probe_bias)}

    def conclude(
        self,
        relevance: np.ndarray,
        grids: Sequence[PatchGrid],
        signals: Mapping[str, float] | None = None,
        answer: Mapping[str, float] | None = None,
    ) -> Score:
        """Maps, features and confidence of one answer.

        Args:
            relevance: float (N,), of all image tokens of the prompt in order.
            grids: where the tokens lie, one grid a picture; their lengths add up to N.
            signals: what the states gave beside the map; see `Measured`.
            answer: `token_probability` and `token_entropy` of the answer, as far as the engine gives them.

        Raises:
            ModelError: the grids do not take N tokens, or a relevance is not finite.
        """
        ends = np.cumsum([grid.length for grid in grids])
        if not len(ends) or ends[-1] != len(relevance):
            raise ModelError(
                f"The pictures' grids have {ends[-1] if len(ends) else 0} image tokens and the prompt has "
                f"{len(relevance)}: the patch layout is not this model's."
            )
        if not np.isfinite(relevance).all():
            raise ModelError("The relevance is not finite: the model's hidden states have NaN or infinite values.")
        maps = tuple(grid.arrange(relevance[end - grid.length : end]) for grid, end in zip(grids, ends, strict=True))
        features = {**map_features(maps), **(answer or {}), **(signals or {})}
        confidence, calibrated = self.confidence(features)
        return Score(maps, features, confidence, calibrated)

    def score(
        self,
        states: Tensor,
        image: Tensor,
        grids: Sequence[PatchGrid],
        token_log_probabilities: Sequence[float] = (),
        token_entropies: Sequence[float] = (),
    ) -> Score:
        """One answer at a time, for those who bring their own hook.

        Args:
            states: (T, d) final hidden states of the prompt, after the model's final norm.
            image: (T,) bool, the image tokens.
            grids: where they lie (`patches.layout_for(...).grids(...)`).
            token_log_probabilities: natural log probability of each token of the answer, without the end token.
            token_entropies: entropy in nats of each of these tokens' distributions.
        """
        valid = torch.ones_like(image, dtype=torch.bool)
        measured = self.measure(states[None], image[None], valid[None])
        relevance, signals = measured.rows()[0]
        return self.conclude(relevance, grids, signals, answer_features(token_log_probabilities, token_entropies))


def answer_features(log_probabilities: Sequence[float], entropies: Sequence[float]) -> dict[str, float]:
    """`token_probability` = exp of the mean log probability, `token_entropy` = mean entropy; nothing of nothing."""
    features = {}
    if len(log_probabilities):
        features["token_probability"] = float(np.exp(np.mean(log_probabilities)))
    if len(entropies):
        features["token_entropy"] = float(np.mean(entropies))
    return features
