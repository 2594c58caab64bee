"""Both forms of the proxy behind one interface: what a patch's logit may depend on, and what it may not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastrm_monitor.lab.datasets.scene_set import SceneSet
from fastrm_monitor.scoring.proxy import (
    FORMS,
    Proxy,
    ProxyConfig,
    QueryRowProxy,
    Reading,
    SelfAttentionProxy,
    build_proxy,
)
from tests.tiny import WIDTH, tiny_asker

BOTH = pytest.mark.parametrize("form", ["query-row", "self-attention"])


def proxy_of(form: str, width: int = 12, projection: int = 0) -> Proxy:
    torch.manual_seed(0)
    return build_proxy(ProxyConfig(width, form, key_size=6, projection_size=projection)).eval()


def prompt(length: int = 9, width: int = 12, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """States, image and valid of one prompt: two words, four patches, the rest words."""
    states = torch.randn(1, length, width, generator=torch.Generator().manual_seed(seed))
    image = torch.zeros(1, length, dtype=torch.bool)
    image[:, 2:6] = True
    return states, image, torch.ones_like(image)


@BOTH
@torch.no_grad()
def test_left_padding(form: str) -> None:
    """Padding before a prompt changes no logit, whatever states the padding has."""
    proxy, (states, image, valid) = proxy_of(form), prompt()
    alone = proxy(states, image, valid)[image]
    junk = torch.full((1, 5, 12), 30.0)
    no = torch.zeros(1, 5, dtype=torch.bool)
    padded_image = torch.cat([no, image], 1)
    padded = proxy(torch.cat([junk, states], 1), padded_image, torch.cat([no, valid], 1))[padded_image]
    assert torch.allclose(alone, padded, atol=1e-6)


@BOTH
@torch.no_grad()
def test_batch_equals_single(form: str) -> None:
    """Prompts of a batch do not touch each other."""
    proxy = proxy_of(form)
    parts = [prompt(seed=seed) for seed in (1, 2, 3)]
    together = proxy(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    for row, part in enumerate(parts):
        assert torch.allclose(together[row], proxy(*part)[0], atol=1e-6)


@BOTH
@torch.no_grad()
def test_depends_on_the_question(form: str) -> None:
    """Same patches, another last state: another map. A map of the image positions alone could not be right."""
    proxy, (states, image, valid) = proxy_of(form), prompt()
    other = states.clone()
    other[:, -1] = -other[:, -1]
    assert (proxy(states, image, valid) - proxy(other, image, valid))[image].abs().max() > 0.001


@BOTH
@torch.no_grad()
def test_two_questions_of_a_model(form: str) -> None:
    """With a LLaVA's states: the patches' states are the same for two questions on a picture, the maps are not."""
    asker = tiny_asker()
    one, other, *_ = list(SceneSet(["natural"], pictures=1, seed=7))
    assert one.picture_id == other.picture_id
    assert one.question != other.question
    proxy = proxy_of(form, WIDTH)
    states, maps = [], []
    for sample in (one, other):
        inputs = asker.inputs([sample.picture()], [sample.question])
        hidden = asker.model(**inputs, output_hidden_states=True).hidden_states[-1]
        image = inputs["input_ids"] == asker.model.config.image_token_id
        states.append(hidden[image])
        maps.append(proxy(hidden, image, inputs["attention_mask"].bool())[image])
    assert torch.allclose(*states, atol=1e-5)
    assert (maps[0] - maps[1]).abs().max() > 0.001


@pytest.mark.parametrize("projection", [0, 5])
@torch.no_grad()
def test_keys_in_chunks(projection: int) -> None:
    """Keys of chunks are the keys of all, so they may come from several passes and from a cache."""
    proxy, (states, image, valid) = proxy_of("query-row", projection=projection), prompt(length=11)
    assert isinstance(proxy, QueryRowProxy)
    whole = proxy.keys(states)
    chunks = torch.cat([proxy.keys(states[:, :4]), proxy.keys(states[0, 4:9])[None], proxy.keys(states[:, 9:])], 1)
    assert torch.allclose(whole, chunks, atol=1e-6)
    patches = whole[image].view(1, 4, -1)
    cached = proxy.match(patches, states[:, -1], torch.ones(1, 4, dtype=torch.bool)).relevance
    assert torch.allclose(cached, proxy(states, image, valid)[image][None], atol=1e-6)


@torch.no_grad()
def test_query_row_by_hand() -> None:
    """S = (W_k z_i) . (W_q z_t) / sqrt(d_k) + b, worked out on paper for two patches of width 2."""
    proxy = build_proxy(ProxyConfig(2, "query-row", key_size=4))
    assert isinstance(proxy, QueryRowProxy)
    proxy.key.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [0, 0], [0, 0]]))
    proxy.relevance.query.weight.copy_(torch.tensor([[2.0, 0], [0, 1], [5, 5], [0, 0]]))
    proxy.relevance.bias.fill_(0.5)
    # A row over its root mean square: (3, 4) has 5 / sqrt 2, so z = sqrt 2 (0.6, 0.8); (0, 2) gives sqrt 2 (0, 1).
    states = torch.tensor([[[3.0, 4.0], [0.0, 2.0], [4.0, 3.0]]])
    image = torch.tensor([[True, True, False]])
    logits = proxy(states, image, torch.ones_like(image))
    # z_t = sqrt 2 (0.8, 0.6), query = sqrt 2 (1.6, 0.6, ...); keys sqrt 2 (0.6, 0.8, 0, 0) and sqrt 2 (0, 1, 0, 0).
    assert logits[image].tolist() == pytest.approx([2 * (0.96 + 0.48) / 2 + 0.5, 2 * 0.6 / 2 + 0.5], abs=1e-4)


@torch.no_grad()
def test_self_attention_by_hand() -> None:
    """Without keys attention is even: every patch gets the head of the mean value of all rows, padding left out."""
    proxy = build_proxy(ProxyConfig(2, "self-attention", key_size=2))
    assert isinstance(proxy, SelfAttentionProxy)
    proxy.key.weight.zero_()
    proxy.value.weight.copy_(torch.eye(2))
    proxy.head.weight.copy_(torch.tensor([[1.0, 2.0]]))
    proxy.head.bias.fill_(0.25)
    states = torch.tensor([[[9.0, 9.0], [3.0, 4.0], [0.0, 2.0]]])
    valid = torch.tensor([[False, True, True]])
    logits = proxy(states, torch.tensor([[False, True, False]]), valid)
    root = math.sqrt(2)
    mean = (root * 0.6 / 2, root * (0.8 + 1.0) / 2)
    assert float(logits[0, 1]) == pytest.approx(mean[0] + 2 * mean[1] + 0.25, abs=1e-4)


def test_grounding_by_hand() -> None:
    """Grounding is sum p g / sum p over the image rows alone, 0 where the map has no mass; evidence a probability."""

    def logit(values: list[float]) -> torch.Tensor:
        return torch.logit(torch.tensor([values, values]))

    reading = Reading(logit([0.9, 0.5, 0.1]), logit([0.99, 0.2, 0.8]), torch.tensor([0.0, math.log(3)]))
    image = torch.tensor([[False, True, True], [False, False, False]])
    signals = reading.signals(image)
    assert signals["grounding"].tolist() == pytest.approx([(0.5 * 0.2 + 0.1 * 0.8) / 0.6, 0.0])
    assert signals["evidence"].tolist() == pytest.approx([0.5, 0.75])
    assert Reading(reading.relevance).signals(image) == {}


@torch.no_grad()
def test_evidence_reads_the_looked_at_patches() -> None:
    """Evidence changes with the state of a patch that is looked at, not with that of one that is not, nor of a word."""
    proxy = build_proxy(ProxyConfig(12, "query-row", 4, grounding=True, evidence=True)).eval()
    assert isinstance(proxy, QueryRowProxy)
    states, image, _ = prompt()
    keys, last = proxy.keys(states), states[:, -1]
    places = image[0].nonzero()[:, 0]
    logits = torch.full(image.shape, -50.0)
    logits[0, places[1]] = 50.0
    assert proxy.grounding is not None
    for head in (proxy.relevance, proxy.grounding):
        head.forward = lambda keys, state: logits  # type: ignore[method-assign]

    def evidence(place: int) -> float:
        moved = keys.clone()
        moved[0, place] += 1.0
        found = proxy.match(moved, last, image).evidence
        assert found is not None
        return float(found)

    still = proxy.match(keys, last, image).evidence
    assert evidence(int(places[1])) != pytest.approx(float(still), abs=1e-4)
    for place in (int(places[0]), int((~image[0]).nonzero()[0, 0])):
        assert evidence(place) == pytest.approx(float(still), abs=1e-6)


@torch.no_grad()
def test_match_size_adds_to_the_dot_product() -> None:
    """With a match size the logits are those of the paper's form plus the small network's, which may differ by key."""
    states, image, valid = prompt()
    proxy = build_proxy(ProxyConfig(12, "query-row", 4, match_size=6)).eval()
    assert isinstance(proxy, QueryRowProxy)
    whole = proxy(states, image, valid)
    assert proxy.relevance.mixed is not None
    proxy.relevance.mixed[-1].weight.zero_()
    proxy.relevance.mixed[-1].bias.zero_()
    plain = proxy(states, image, valid)
    assert (whole - plain)[image].std() > 1e-3


@BOTH
def test_half_precision_states(form: str) -> None:
    """States in half precision give float32 logits, near those of float32 states."""
    proxy, (states, image, valid) = proxy_of(form), prompt()
    half = proxy(states.bfloat16(), image, valid)
    assert half.dtype == torch.float32
    assert half.shape == image.shape
    assert torch.allclose(half, proxy(states, image, valid), atol=0.05)


def test_unknown_form() -> None:
    """A form that does not exist is refused with the ones that do."""
    with pytest.raises(ValueError, match="unknown proxy form 'transformer', expected one of query-row, self-attention"):
        build_proxy(ProxyConfig(8, "transformer"))  # type: ignore[arg-type]
    assert sorted(FORMS) == ["query-row", "self-attention"]


def test_the_interface_is_no_proxy() -> None:
    """The interface itself scores nothing."""
    with pytest.raises(TypeError, match="build_proxy"):
        Proxy(ProxyConfig(12))(*prompt())
