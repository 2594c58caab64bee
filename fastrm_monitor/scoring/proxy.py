"""The proxy: from final hidden states to a relevance logit for each image patch (FastRM, arXiv 2412.01487).

The paper gives "normalisation, a single-head self-attention layer, a sigmoid for each patch" and not its exact form.
Two readings stand behind one interface. This module knows tensors; it does not know engines, grids or files.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Form = Literal["query-row", "self-attention"]

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class ProxyConfig:
    """What `config.json` of a proxy folder says.

    Attributes:
        form: "query-row" or "self-attention".
        hidden_size: d, width of the LVLM's final hidden states.
        key_size: d_k, width of keys and queries.
        projection_size: width of the hidden layer of the projections; 0 for one linear map, as in the paper.
        model_id: the LVLM that the proxy was distilled from.
        model_type: its family.
        norm: type and epsilon of its final norm, e.g. {"type": "LlamaRMSNorm", "eps": 1e-5}.
        image_token_id: its image token.
        label_threshold: teacher relevance from which a patch counts as relevant.
        training: data set, samples, seed and options of the distillation.
        metrics: fidelity on the validation pictures.
        library_version: version that wrote the folder.
    """

    hidden_size: int
    form: Form = "query-row"
    key_size: int = 256
    projection_size: int = 0
    model_id: str = ""
    model_type: str = ""
    norm: dict[str, Any] = field(default_factory=dict)
    image_token_id: int = -1
    label_threshold: float = 0.3
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    library_version: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class Proxy(nn.Module):
    """What both forms share: their input and output."""

    def __init__(self, config: ProxyConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, states: Tensor, image: Tensor, valid: Tensor) -> Tensor:
        """Relevance logits.

        Args:
            states: (B, T, d) final hidden states of the prompt, after the model's final norm; the last column is t,
                the position that predicts the answer's first token.
            image: (B, T) bool, the image tokens.
            valid: (B, T) bool, the prompt's tokens without padding.

        Returns:
            Float32 (B, T); only image positions mean anything.
        """
        raise TypeError("Proxy is the interface; build one with build_proxy(config)")


class QueryRowProxy(Proxy):
    """s_i = (W_k z_i) . (W_q z_t) / sqrt(d_k) + b with Z = Norm(H): one query row against the image's keys.

    O(N) an answer. `keys` do not depend on the question, so an engine may cache them with the image.
    """

    def __init__(self, config: ProxyConfig) -> None:
        super().__init__(config)
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.key = _projection(config)
        self.query = _projection(config)
        self.bias = nn.Parameter(torch.zeros(()))

    def keys(self, states: Tensor) -> Tensor:
        """(..., d) -> (..., d_k): any row alone, so that rows may come in chunks and from a cache."""
        keys: Tensor = self.key(self.norm(states.float()))
        return keys

    def logits(self, keys: Tensor, last: Tensor) -> Tensor:
        """Logits (B, N) from keys (B, N, d_k) and the states (B, d) at t."""
        query: Tensor = self.query(self.norm(last.float()))  # (B, d_k)
        return (keys @ query[..., None])[..., 0] / math.sqrt(self.config.key_size) + self.bias

    def forward(self, states: Tensor, image: Tensor, valid: Tensor) -> Tensor:
        """See `Proxy.forward`."""
        keys = self.keys(states) if torch.is_grad_enabled() else self._keys_in_parts(states)
        return self.logits(keys, states[:, -1])

    def _keys_in_parts(self, states: Tensor) -> Tensor:
        """`keys` of (B, T, d), whose float32 copies of the states never take more than a part's memory."""
        parts = states.reshape(-1, states.shape[-1]).split(_ROWS_AT_ONCE)
        return torch.cat([self.keys(part) for part in parts]).reshape(*states.shape[:-1], -1)


class SelfAttentionProxy(Proxy):
    """One unmasked single-head self-attention over all of Z, and a linear head for each patch. Needs every row."""

    def __init__(self, config: ProxyConfig) -> None:
        super().__init__(config)
        d, k = config.hidden_size, config.key_size
        self.norm = nn.RMSNorm(d, eps=1e-6)
        self.key = nn.Linear(d, k, bias=False)
        self.query = nn.Linear(d, k, bias=False)
        self.value = nn.Linear(d, k, bias=False)
        self.head = nn.Linear(k, 1)

    def forward(self, states: Tensor, image: Tensor, valid: Tensor) -> Tensor:
        """See `Proxy.forward`."""
        z = self.norm(states.float())
        mixed = nn.functional.scaled_dot_product_attention(
            self.query(z), self.key(z), self.value(z), attn_mask=valid[:, None, :]
        )
        logits: Tensor = self.head(mixed)[..., 0]
        return logits


def _projection(config: ProxyConfig) -> nn.Module:
    d, k, hidden = config.hidden_size, config.key_size, config.projection_size
    if not hidden:
        return nn.Linear(d, k, bias=False)
    return nn.Sequential(nn.Linear(d, hidden), nn.GELU(), nn.Linear(hidden, k, bias=False))


FORMS: dict[str, type[Proxy]] = {"query-row": QueryRowProxy, "self-attention": SelfAttentionProxy}


def build_proxy(config: ProxyConfig) -> Proxy:
    """An untrained proxy of the config's form.

    Raises:
        ValueError: the form is unknown.
    """
    if config.form not in FORMS:
        raise ValueError(f"unknown proxy form {config.form!r}, expected one of {', '.join(FORMS)}")
    return FORMS[config.form](config)
