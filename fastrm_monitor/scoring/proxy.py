"""The proxy: from final hidden states to a relevance logit for each image patch (FastRM, arXiv 2412.01487).

The paper gives "normalisation, a single-head self-attention layer, a sigmoid for each patch" and not its exact form.
Two readings stand behind one interface. This module knows tensors; it does not know engines, grids or files.

The query-row form may carry two heads beyond the paper, which read the same keys: *grounding*, which patches show what
the question asks about, and *evidence*, whether the answer fits what these patches hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        match_size: hidden width of what is added to the dot product of key and query; 0 for nothing, as in the paper.
        grounding: whether there is a grounding head.
        evidence: whether there is an evidence head.
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
    match_size: int = 0
    grounding: bool = False
    evidence: bool = False
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


SIGNALS = ("grounding", "evidence")
"""The scores that the heads beyond the paper give; see `Reading.signals`."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What a proxy reads out of the states of B prompts with M rows each; all logits, float32, on the states' device.

    Attributes:
        relevance: (B, M); only image rows mean anything.
        grounding: (B, M), the patch shows something that the question asks about; None without this head.
        evidence: (B,), the answer is right; None without this head.
    """

    relevance: Tensor
    grounding: Tensor | None = None
    evidence: Tensor | None = None

    def signals(self, image: Tensor) -> dict[str, Tensor]:
        """Scores in 0..1, float32 (B,) each, by name; higher means more likely right.

        `grounding` is the share of the relevance that lies on what the question asks about, sum p_i g_i / sum p_i, and
        0 where the mass is 0; `evidence` is a probability.

        Args:
            image: (B, M) bool, the image rows.
        """
        found = {}
        if self.grounding is not None:
            relevance = torch.sigmoid(self.relevance) * image
            shared = (relevance * torch.sigmoid(self.grounding)).sum(1)
            found["grounding"] = shared / relevance.sum(1).clamp(min=torch.finfo(torch.float32).tiny)
        if self.evidence is not None:
            found["evidence"] = torch.sigmoid(self.evidence)
        return found


class Proxy(nn.Module):
    """What both forms share: their input and output."""

    def __init__(self, config: ProxyConfig) -> None:
        super().__init__()
        self.config = config

    def read(self, states: Tensor, image: Tensor, valid: Tensor) -> Reading:
        """Relevance, and what else this proxy reads.

        Args:
            states: (B, T, d) final hidden states of the prompt, after the model's final norm; the last column is t,
                the position that predicts the answer's first token.
            image: (B, T) bool, the image tokens.
            valid: (B, T) bool, the prompt's tokens without padding.
        """
        raise TypeError("Proxy is the interface; build one with build_proxy(config)")

    def forward(self, states: Tensor, image: Tensor, valid: Tensor) -> Tensor:
        """The relevance logits alone, float32 (B, T); see `read`."""
        return self.read(states, image, valid).relevance


class QueryRowProxy(Proxy):
    """s_i = (W_k z_i) . (W_q z_t) / sqrt(d_k) + b with Z = Norm(H): one query row against the image's keys.

    O(N) an answer. `keys` do not depend on the question, so an engine may cache them with the image; every head reads
    these same keys.
    """

    def __init__(self, config: ProxyConfig) -> None:
        super().__init__(config)
        self.norm = nn.RMSNorm(config.hidden_size, eps=1e-6)
        self.key = _projection(config)
        self.relevance = _Match(config)
        self.grounding = _Match(config) if config.grounding else None
        self.evidence = _Evidence(config) if config.evidence else None

    def keys(self, states: Tensor) -> Tensor:
        """(..., d) -> (..., d_k): any row alone, so that rows may come in chunks and from a cache."""
        keys: Tensor = self.key(self.norm(states.float()))
        return keys

    def match(self, keys: Tensor, last: Tensor, image: Tensor) -> Reading:
        """What the heads make of cached keys.

        Args:
            keys: (B, M, d_k).
            last: (B, d), the states at t.
            image: (B, M) bool, which keys are those of image tokens.
        """
        state = self.norm(last.float())
        relevance: Tensor = self.relevance(keys, state)
        grounding: Tensor | None = self.grounding(keys, state) if self.grounding is not None else None
        evidence = None
        if self.evidence is not None:
            evidence = self.evidence(keys, state, image, [one for one in (relevance, grounding) if one is not None])
        return Reading(relevance, grounding, evidence)

    def read(self, states: Tensor, image: Tensor, valid: Tensor) -> Reading:
        """See `Proxy.read`."""
        keys = self.keys(states) if torch.is_grad_enabled() else self._keys_in_parts(states)
        return self.match(keys, states[:, -1], image)

    def _keys_in_parts(self, states: Tensor) -> Tensor:
        """`keys` of (B, T, d), whose float32 copies of the states never take more than a part's memory."""
        parts = states.reshape(-1, states.shape[-1]).split(_ROWS_AT_ONCE)
        return torch.cat([self.keys(part) for part in parts]).reshape(*states.shape[:-1], -1)


class _Match(nn.Module):
    """A logit for each key: (k_i . q) / sqrt(d_k) + b, and with `match_size` a small network of k_i * q and k_i."""

    def __init__(self, config: ProxyConfig) -> None:
        super().__init__()
        self.query = _projection(config)
        self.bias = nn.Parameter(torch.zeros(()))
        k, hidden = config.key_size, config.match_size
        self.mixed = nn.Sequential(nn.Linear(2 * k, hidden), nn.GELU(), nn.Linear(hidden, 1)) if hidden else None

    def forward(self, keys: Tensor, state: Tensor) -> Tensor:
        """Logits (B, M) from keys (B, M, d_k) and normalised states (B, d) at t."""
        query: Tensor = self.query(state)  # (B, d_k)
        logits = (keys @ query[..., None])[..., 0] / math.sqrt(keys.shape[-1]) + self.bias
        if self.mixed is not None:
            logits = logits + self.mixed(torch.cat([keys * query[:, None], keys], -1))[..., 0]
        return logits


class _Evidence(nn.Module):
    """Whether the answer fits what the looked-at patches hold.

    The keys are averaged by where the answer comes from and by what the question asks about, and held against a query
    made of the state at t, which knows the answer that is about to be given: P(I know) with eyes.
    """

    def __init__(self, config: ProxyConfig) -> None:
        super().__init__()
        self.query = _projection(config)
        k, inputs = config.key_size, (5 if config.grounding else 3) * config.key_size
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(inputs, 2 * k), nn.GELU(), nn.Linear(2 * k, 1))

    def forward(self, keys: Tensor, state: Tensor, image: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """Logits (B,) from keys (B, M, d_k), states (B, d), image rows (B, M) and logits of the maps, (B, M) each."""
        query: Tensor = self.query(state)
        parts = [query]
        for logits in maps:
            weights = torch.softmax(logits.masked_fill(~image, torch.finfo(logits.dtype).min), -1)
            seen = (weights[:, None] @ keys)[:, 0]  # (B, d_k)
            parts += [seen, query * seen]
        found: Tensor = self.head(torch.cat(parts, -1))[..., 0]
        return found


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

    def read(self, states: Tensor, image: Tensor, valid: Tensor) -> Reading:
        """See `Proxy.read`."""
        z = self.norm(states.float())
        mixed = nn.functional.scaled_dot_product_attention(
            self.query(z), self.key(z), self.value(z), attn_mask=valid[:, None, :]
        )
        logits: Tensor = self.head(mixed)[..., 0]
        return Reading(logits)


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
