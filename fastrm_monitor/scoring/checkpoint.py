"""A proxy on disk: `proxy.safetensors`, `config.json` and perhaps `confidence.json`; no pickle anywhere.

Reads it, writes it and matches it against a model. Beside the proxy's weights the file keeps those of the LVLM's final
norm: two models of the same width differ there, so a proxy of another model is refused instead of drawing maps that
mean nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

import fastrm_monitor
from fastrm_monitor.errors import ProxyError
from fastrm_monitor.scoring.confidence import LogisticConfidence, load_confidence
from fastrm_monitor.scoring.proxy import FORMS, Proxy, ProxyConfig, build_proxy

_NORM_KEY = "model_norm.weight"
_NORM_TOLERANCE = 0.02
"""Relative difference of norm weights that is still the same model: half precision rounds by 0.004 at most."""
_MOST = 1 << 17
"""No model is wider."""
_LONGEST_NAME = 4096
"""Most characters of a model's name, which may be a path."""


@dataclass(frozen=True, eq=False)
class ProxyFolder:
    """What a proxy folder holds.

    Attributes:
        proxy: the network, in evaluation mode, on the CPU, in float32.
        config: its configuration.
        version: first 12 digits of the SHA-256 of its weights file.
        norm_weight: (d,) weights of the final norm of the model that it was distilled from.
        confidence: the calibrated confidence; None when there is none.
        path: the folder.
    """

    proxy: Proxy
    config: ProxyConfig
    version: str
    norm_weight: Tensor
    confidence: LogisticConfidence | None
    path: Path


def norm_facts(norm: nn.Module) -> dict[str, Any]:
    """Type and epsilon of a norm layer, for the proxy's config."""
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    return {"type": type(norm).__name__, "eps": eps}


def save_proxy(
    folder: Path, proxy: Proxy, norm_weight: Tensor, confidence: LogisticConfidence | None = None, **facts: Any
) -> ProxyConfig:
    """Write a proxy folder.

    Args:
        folder: made when it does not exist.
        proxy: the network.
        norm_weight: (d,) weights of the LVLM's final norm.
        confidence: the calibrated confidence, if there is one.
        **facts: fields of `ProxyConfig` to set, e.g. `model_id`, `training`, `metrics`.

    Returns:
        The config as written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = replace(proxy.config, library_version=fastrm_monitor.__version__, **facts)
    tensors = {name: value.detach().cpu().float().contiguous() for name, value in proxy.state_dict().items()}
    weights = save({**tensors, _NORM_KEY: norm_weight.detach().cpu().float().contiguous()})
    (folder / "proxy.safetensors").write_bytes(weights)  # `save_file` makes it the owner's alone; servers are others
    (folder / "config.json").write_text(json.dumps(config.as_dict(), indent=1) + "\n", encoding="utf-8")
    if confidence is not None:
        confidence.save(folder)
    return config


def load_proxy(folder: str | Path) -> ProxyFolder:
    """Read a proxy folder.

    Raises:
        ProxyError: it is missing, incomplete or corrupt; one sentence that says what to do.
    """
    try:
        path = Path(folder).expanduser()
        there = path.is_dir()
    except (OSError, RuntimeError, ValueError):  # a name that no file system takes
        raise ProxyError(f"There is no proxy folder at {str(folder)[:200]!r}: the name cannot be used.") from None
    if not there:
        raise ProxyError(f"There is no proxy folder at {path}: make one with `fastrm-monitor distill`.")
    config = _read_config(path)
    weights = path / "proxy.safetensors"
    if not weights.is_file():
        raise ProxyError(f"{path} has no proxy.safetensors: it is not a proxy folder, or its copy is incomplete.")
    try:
        data = weights.read_bytes()
        tensors = {name: _single(name, value) for name, value in load(data).items()}
        proxy = _filled(config, tensors)
    except (OSError, SafetensorError, ValueError) as error:
        raise ProxyError(f"{weights} is corrupt ({_reason(error)}): copy it again or distil a new proxy.") from None
    norm_weight = tensors[_NORM_KEY]
    confidence = load_confidence(path)
    if confidence is not None and len(confidence.probe) not in (0, config.hidden_size):
        raise ProxyError(f"{path}/confidence.json was fitted on another model's states: distil again, or delete it.")
    return ProxyFolder(proxy, config, hashlib.sha256(data).hexdigest()[:12], norm_weight, confidence, path)


def _single(name: str, value: Tensor) -> Tensor:
    """In float32; only floating-point numbers of another size are taken for it."""
    if not value.is_floating_point():
        raise ValueError(f"{name} has weights of type {value.dtype}")
    return value.float()


def _filled(config: ProxyConfig, tensors: dict[str, Tensor]) -> Proxy:
    """The config's network with the file's weights; refuses any other set of names and shapes.

    Built without memory of its own and before the weights are looked at: sizes that a config makes up cost nothing,
    and the caller's random state is not touched.
    """
    with torch.device("meta"):
        proxy = build_proxy(config)
    wanted = {name: tuple(value.shape) for name, value in proxy.state_dict().items()}
    wanted[_NORM_KEY] = (config.hidden_size,)
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if wanted != found:
        name = min(name for name in {**wanted, **found} if wanted.get(name) != found.get(name))
        raise ValueError(f"{name} has shape {found.get(name)}, config.json asks for {wanted.get(name)}")
    for name, value in tensors.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{name} has weights that are not finite")
    proxy.load_state_dict({name: value for name, value in tensors.items() if name != _NORM_KEY}, assign=True)
    return proxy.eval().requires_grad_(False)


def _read_config(path: Path) -> ProxyConfig:
    file = path / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it is not a JSON object")
        known = {one.name for one in fields(ProxyConfig)}
        config = ProxyConfig(**{name: value for name, value in raw.items() if name in known})
        _check_config(config)
    except FileNotFoundError:
        raise ProxyError(f"{path} has no config.json: it is not a proxy folder, or its copy is incomplete.") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ProxyError(
            f"{file} cannot be read ({_reason(error)}): copy the proxy folder again or distil a new one."
        ) from None
    return config


def _reason(error: Exception) -> str:
    """What an error says, on one line and not longer than is read."""
    return " ".join(str(error).split())[:160]


def _check_config(config: ProxyConfig) -> None:
    """Refuse values of another type than the field's; JSON's true is no number here, although Python takes it for 1."""
    for name, least in (("hidden_size", 1), ("key_size", 1), ("projection_size", 0), ("match_size", 0)):
        size = getattr(config, name)
        if type(size) is not int or not least <= size <= _MOST:
            raise ValueError(f"{name} is {size!r}")
    if type(config.image_token_id) is not int:
        raise ValueError(f"image_token_id is {config.image_token_id!r}")
    if not isinstance(config.form, str) or config.form not in FORMS:
        raise ValueError(f"form is {config.form!r}, known are {', '.join(FORMS)}")
    for name in ("grounding", "evidence"):
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name} is {getattr(config, name)!r}")
    for name in ("norm", "training", "metrics"):
        if not isinstance(getattr(config, name), dict):
            raise ValueError(f"{name} is not an object")
    for name in ("model_id", "model_type", "library_version"):
        text = getattr(config, name)
        if not isinstance(text, str) or len(text) > _LONGEST_NAME:
            raise ValueError(f"{name} is not a name")
    threshold = config.label_threshold
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise ValueError(f"label_threshold is {threshold!r}")


def check_model(
    folder: ProxyFolder, *, hidden_size: int, image_token_id: int, norm: nn.Module, same_classes: bool = True
) -> None:
    """Refuse a proxy that was distilled from another model than the one served.

    Args:
        folder: the proxy.
        hidden_size: d of the model.
        image_token_id: of the model.
        norm: the model's final norm.
        same_classes: whether the engine builds models from the same classes as transformers, so that the norm's type
            tells something.

    Raises:
        ProxyError: width, image token or final norm differ; the sentence says which.
    """
    config = folder.config
    remedy = f"it was distilled from {config.model_id!r}; distil one from this model with `fastrm-monitor distill`."
    if config.hidden_size != hidden_size:
        raise ProxyError(
            f"The proxy at {folder.path} is for hidden states of width {config.hidden_size}, "
            f"this model's have {hidden_size}: {remedy}"
        )
    if config.image_token_id != image_token_id:
        raise ProxyError(
            f"The proxy at {folder.path} is for image token {config.image_token_id}, "
            f"this model's is {image_token_id}: {remedy}"
        )
    facts = norm_facts(norm)
    if same_classes and config.norm.get("type") != facts["type"]:
        raise ProxyError(
            f"The proxy at {folder.path} is for a final norm of type {config.norm.get('type')}, "
            f"this model's is {facts['type']}: {remedy}"
        )
    weight = getattr(norm, "weight", None)
    if weight is not None:
        served = weight.detach().float().cpu()
        if served.shape != folder.norm_weight.shape or not torch.allclose(
            served, folder.norm_weight, rtol=_NORM_TOLERANCE, atol=1e-3
        ):
            raise ProxyError(
                f"The proxy at {folder.path} is for a model with other weights (the final norms differ): {remedy}"
            )
