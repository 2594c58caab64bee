"""Proxy folders: what is written is read, what is broken or of another model is refused in one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fastrm_monitor
from fastrm_monitor.errors import ProxyError
from fastrm_monitor.scoring.anatomy import anatomy_of
from fastrm_monitor.scoring.checkpoint import check_model, load_proxy, norm_facts, save_proxy
from fastrm_monitor.scoring.confidence import LogisticConfidence
from fastrm_monitor.scoring.proxy import ProxyConfig, build_proxy
from tests.tiny import tiny_model

WIDTH = 16
NORM = {"type": "RMSNorm", "eps": 1e-5}
CONFIDENCE = LogisticConfidence(
    features=("token_probability", "map_entropy"),
    mean=(0.1, 0.2),
    scale=(1.0, 2.0),
    weights=(0.5, -0.5),
    intercept=0.25,
    threshold=0.6,
    probe=tuple(0.01 * n for n in range(WIDTH)),
    probe_bias=-0.5,
    fitted_on={"data": "made up"},
)


def written(folder: Path, form: str = "query-row", confidence: LogisticConfidence | None = CONFIDENCE) -> Path:
    torch.manual_seed(0)
    proxy = build_proxy(ProxyConfig(WIDTH, form, key_size=4, projection_size=8))
    weight = torch.linspace(0.5, 1.5, WIDTH)
    save_proxy(
        folder, proxy, weight, confidence, model_id="org/model", norm=NORM, image_token_id=4, metrics={"f1": 0.5}
    )
    return folder


def norm_of(weight: torch.Tensor) -> nn.RMSNorm:
    norm = nn.RMSNorm(len(weight), eps=1e-5)
    norm.weight.data.copy_(weight)
    return norm


@pytest.mark.parametrize("form", ["query-row", "self-attention"])
def test_round_trip(tmp_path: Path, form: str) -> None:
    """Weights, config, norm weights and confidence come back as they were; the network is frozen."""
    torch.manual_seed(0)
    proxy = build_proxy(ProxyConfig(WIDTH, form, key_size=4, projection_size=8))
    read = load_proxy(str(written(tmp_path / "deep" / "proxy", form)))
    states = torch.randn(2, 7, WIDTH)
    yes = torch.ones(2, 7, dtype=torch.bool)
    assert torch.equal(read.proxy(states, yes, yes), proxy(states, yes, yes))
    assert not read.proxy.training
    assert not any(value.requires_grad for value in read.proxy.parameters())
    assert read.norm_weight.tolist() == torch.linspace(0.5, 1.5, WIDTH).tolist()
    assert (read.config.form, read.config.model_id, read.config.norm) == (form, "org/model", NORM)
    assert read.config.library_version == fastrm_monitor.__version__
    assert read.proxy.config == read.config
    assert read.confidence == CONFIDENCE
    modes = {one.name: one.stat().st_mode for one in read.path.iterdir()}
    assert set(modes) == {"proxy.safetensors", "config.json", "confidence.json"}
    assert len(set(modes.values())) == 1  # weights that are the owner's alone could not be served by another user


def test_version_follows_the_weights(tmp_path: Path) -> None:
    """The version is the same for the same weights, another for one changed number, and 12 hex digits."""
    one, same, other = (load_proxy(written(tmp_path / name)).version for name in ("a", "b", "c"))
    assert one == same == other
    assert re.fullmatch("[0-9a-f]{12}", one)
    _change_weights(tmp_path / "c", lambda tensors: tensors["relevance.bias"].add_(1e-3))
    assert load_proxy(tmp_path / "c").version != one


def test_loading_leaves_the_random_state(tmp_path: Path) -> None:
    """Loading a proxy in a serving process does not move the random numbers that answers are sampled with."""
    written(tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_proxy(tmp_path)
    assert torch.equal(expected, torch.rand(3))


def test_unknown_fields_and_half_precision(tmp_path: Path) -> None:
    """A folder of a later version with further fields is read, and weights in half precision become float32."""
    written(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "later": [1]}))
    tensors = load_file(tmp_path / "proxy.safetensors")
    save_file({name: value.half() for name, value in tensors.items()}, tmp_path / "proxy.safetensors")
    assert {value.dtype for value in load_proxy(tmp_path).proxy.parameters()} == {torch.float32}


def test_no_confidence(tmp_path: Path) -> None:
    """A folder that was never calibrated is read without a confidence."""
    assert load_proxy(written(tmp_path, confidence=None)).confidence is None


def _change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _change_confidence(folder: Path, **changes: Any) -> None:
    file = folder / "confidence.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "proxy.safetensors")
    change(tensors)
    save_file(tensors, folder / "proxy.safetensors")


def _truncate(folder: Path) -> None:
    file = folder / "proxy.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json: it is not a proxy folder"),
    "no weights": (lambda f: (f / "proxy.safetensors").unlink(), "has no proxy.safetensors: it is not a proxy folder"),
    "truncated weights": (_truncate, "proxy.safetensors is corrupt"),
    "empty weights": (lambda f: (f / "proxy.safetensors").write_bytes(b""), "proxy.safetensors is corrupt"),
    "a pickle": (lambda f: torch.save({"bias": torch.zeros(1)}, f / "proxy.safetensors"), "is corrupt"),
    "NaN weights": (
        lambda f: _change_weights(f, lambda t: t["relevance.bias"].fill_(torch.nan)),
        "relevance.bias has weights that are not finite",
    ),
    "NaN norm": (
        lambda f: _change_weights(f, lambda t: t["model_norm.weight"].fill_(torch.nan)),
        "model_norm.weight has weights that are not finite",
    ),
    "no norm weights": (
        lambda f: _change_weights(f, lambda t: t.pop("model_norm.weight")),
        "model_norm.weight has shape None",
    ),
    "wrong norm shape": (
        lambda f: _change_weights(f, lambda t: t.update({"model_norm.weight": torch.ones(3)})),
        r"model_norm.weight has shape \(3,\), config.json asks for \(16,\)",
    ),
    "a weight missing": (lambda f: _change_weights(f, lambda t: t.pop("relevance.bias")), "bias has shape None"),
    "a weight too many": (
        lambda f: _change_weights(f, lambda t: t.update(extra=torch.ones(3))),
        r"extra has shape \(3,\), config.json asks for None",
    ),
    "wrong shapes": (lambda f: _change_config(f, hidden_size=32), "is corrupt"),
    "another form": (lambda f: _change_config(f, form="self-attention"), "is corrupt"),
    "config is a list": (lambda f: (f / "config.json").write_text("[1, 2]"), "it is not a JSON object"),
    "config is truncated": (
        lambda f: (f / "config.json").write_text('{"hidden_size": 1'),
        "config.json cannot be read",
    ),
    "config is no text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json cannot be read"),
    "config is nested": (lambda f: (f / "config.json").write_text("[" * 200_000), "config.json cannot be read"),
    "config is empty": (lambda f: (f / "config.json").write_text("{}"), "config.json cannot be read"),
    "huge width": (lambda f: _change_config(f, hidden_size=10**12), "hidden_size is 1000000000000"),
    "huge keys": (lambda f: _change_config(f, key_size=10**12), "key_size is"),
    "huge projections": (lambda f: _change_config(f, projection_size=10**12), "projection_size is"),
    "large but possible sizes": (
        lambda f: _change_config(f, hidden_size=131072, key_size=131072, projection_size=131072),
        "is corrupt",
    ),
    "negative projections": (lambda f: _change_config(f, projection_size=-1), "projection_size is -1"),
    "width is text": (lambda f: _change_config(f, hidden_size="16"), "hidden_size is '16'"),
    "unknown form": (lambda f: _change_config(f, form=None), "form is None, known are query-row, self-attention"),
    "norm is text": (lambda f: _change_config(f, norm="RMSNorm"), "norm is not an object"),
    "label threshold is text": (lambda f: _change_config(f, label_threshold="0.3"), "label_threshold is '0.3'"),
    "confidence is a list": (lambda f: (f / "confidence.json").write_text("[]"), "it is not a JSON object"),
    "confidence is truncated": (
        lambda f: (f / "confidence.json").write_text('{"fea'),
        "confidence.json cannot be read",
    ),
    "confidence is empty": (lambda f: (f / "confidence.json").write_text("{}"), "confidence.json cannot be read"),
    "confidence of two lengths": (lambda f: _change_confidence(f, mean=[0.1]), "lists of unequal length"),
    "confidence without scale": (lambda f: _change_confidence(f, scale=[0.0, 1.0]), "lists of unequal length or"),
    "confidence not finite": (lambda f: _change_confidence(f, weights=[float("nan"), 1.0]), "not finite"),
    "confidence bias not finite": (lambda f: _change_confidence(f, probe_bias=float("inf")), "not finite"),
    "confidence beyond floats": (lambda f: _change_confidence(f, intercept=10**400), "confidence.json cannot be read"),
    "threshold out of range": (lambda f: _change_confidence(f, threshold=-1.0), "not between 0 and 1"),
    "confidence of text": (lambda f: _change_confidence(f, threshold="0.5"), "confidence.json cannot be read"),
    "confidence of no names": (lambda f: _change_confidence(f, features=[1, 2]), "features are not names"),
    "confidence of later fields": (lambda f: _change_confidence(f, later=1), "confidence.json cannot be read"),
    "probe of another width": (
        lambda f: _change_confidence(f, probe=[0.1, 0.2]),
        "was fitted on another model's states: distil again, or delete it",
    ),
}


@pytest.mark.parametrize(("spoil", "said"), BROKEN.values(), ids=BROKEN)
def test_broken_folder(tmp_path: Path, spoil: Callable[[Path], object], said: str) -> None:
    """Every kind of corruption is one sentence that names the file and what to do, and costs no memory."""
    spoil(written(tmp_path))
    with pytest.raises(ProxyError, match=said) as caught:
        load_proxy(tmp_path)
    _one_sentence(str(caught.value))
    assert str(tmp_path) in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    """A folder that is not there says how to make one; so does a file in its place."""
    (tmp_path / "file").write_text("")
    for name in ("nowhere", "file"):
        with pytest.raises(ProxyError, match=r"no proxy folder at .*: make one with `fastrm-monitor distill`\.$"):
            load_proxy(tmp_path / name)


def _one_sentence(text: str) -> None:
    assert "\n" not in text
    assert text.endswith(".")
    assert re.search("distil|copy it again|incomplete", text)


SERVED = {"hidden_size": WIDTH, "image_token_id": 4, "norm": norm_of(torch.linspace(0.5, 1.5, WIDTH))}
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "width": ({"hidden_size": 32}, "width 16, this model's have 32"),
    "image token": ({"image_token_id": 5}, "image token 4, this model's is 5"),
    "norm type": ({"norm": nn.LayerNorm(WIDTH)}, "final norm of type RMSNorm, this model's is LayerNorm"),
    "norm weights": ({"norm": norm_of(torch.linspace(0.5, 1.6, WIDTH))}, "other weights"),
    "norm shape": ({"norm": norm_of(torch.ones(3))}, "other weights"),
}


@pytest.mark.parametrize(("change", "said"), OTHERS.values(), ids=OTHERS)
def test_proxy_of_another_model(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """A proxy of another model is refused; the sentence says what differs, of which model it is, and what to do."""
    folder = load_proxy(written(tmp_path))
    with pytest.raises(ProxyError, match=said) as caught:
        check_model(folder, **{**SERVED, **change})
    assert "'org/model'; distil one from this model" in str(caught.value)
    _one_sentence(str(caught.value))


def test_proxy_of_this_model(tmp_path: Path) -> None:
    """The model's own proxy passes, also when the model is served in half precision."""
    folder = load_proxy(written(tmp_path))
    check_model(folder, **SERVED)
    check_model(folder, **{**SERVED, "norm": norm_of(torch.linspace(0.5, 1.5, WIDTH)).bfloat16()})


def test_check_of_a_real_model(tmp_path: Path) -> None:
    """The parts found in a LLaVA are those that its proxy is checked against: its own passes, a sibling's does not."""
    mine, sibling = tiny_model(), tiny_model(seed=1)
    anatomy = anatomy_of(mine)
    assert (anatomy.hidden_size, anatomy.image_token_id, anatomy.model_type) == (64, 4, "llava")
    facts = {"norm": norm_facts(anatomy.norm), "image_token_id": anatomy.image_token_id}
    assert facts["norm"] == {"type": "LlamaRMSNorm", "eps": 1e-5}
    save_proxy(tmp_path, build_proxy(ProxyConfig(64)), torch.as_tensor(anatomy.norm.weight), **facts)
    anatomy.check(load_proxy(tmp_path))
    with pytest.raises(ProxyError, match="other weights"):
        anatomy_of(sibling).check(load_proxy(tmp_path))
