"""What a map costs: the counts are of what was run, and the model is given back as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastrm_monitor.errors import ModelError
from fastrm_monitor.lab import cost as lab
from fastrm_monitor.lab.alive import most_alive
from fastrm_monitor.lab.cost import cost
from fastrm_monitor.lab.datasets.scene_set import SceneSet
from fastrm_monitor.scoring.proxy import Proxy, ProxyConfig, build_proxy
from tests.tiny import WIDTH, tiny_asker

MIB = 1 << 20


def proxies(width: int = WIDTH) -> dict[str, Proxy]:
    return {
        "ours": build_proxy(ProxyConfig(width, "query-row", key_size=16, projection_size=32)),
        "paper": build_proxy(ProxyConfig(width, "self-attention", key_size=16)),
    }


@pytest.fixture(scope="module")
def asker() -> Any:
    return tiny_asker(layers=4)


@pytest.fixture(scope="module")
def inputs(asker: Any) -> Any:
    (sample, *_) = SceneSet(["natural"], 1, seed=5)
    return asker.inputs([sample.picture()], [sample.question])


@pytest.fixture(scope="module")
def found(asker: Any, inputs: Any) -> dict[str, Any]:
    return cost(asker.model, inputs, proxies(), repeats=7)


def test_what_is_measured(found: dict[str, Any], asker: Any, inputs: Any) -> None:
    """All variants have a time and a memory; only the form whose keys can be kept has a variant with kept keys."""
    variants = ["forward", "teacher_published", "teacher_row", "ours", "ours, keys cached", "paper"]
    assert list(found["seconds"]) == list(found["memory"]["alive"]) == variants
    assert (found["prompt_tokens"], found["image_tokens"]) == (inputs["input_ids"].shape[1], 64)
    assert (found["layers"], found["batch"], found["repeats"], found["attention"]) == (4, 1, 7, "sdpa")
    assert found["parameters"] == sum(one.numel() for one in asker.model.parameters())
    for own in found["seconds"].values():
        low, high = own["ci95"]
        assert 0 < low <= own["median"] <= high


def test_ratios(found: dict[str, Any]) -> None:
    """A teacher takes longer than the pass that it explains, a proxy a small part of it; ratios are within rounds."""
    assert found["time_of_forward"]["teacher_published"]["value"] > 1
    for name in ("ours", "ours, keys cached", "paper"):
        assert found["time_of_forward"][name]["value"] < 0.7
        published, seconds = found["less_time_than_published"][name], found["seconds"]
        assert published["value"] == pytest.approx(
            1 - seconds[name]["median"] / seconds["teacher_published"]["median"], abs=0.1
        )
        assert published["ci95"][0] <= published["value"] <= published["ci95"][1] < 1


def test_memory(found: dict[str, Any]) -> None:
    """The teacher has most alive, kept keys leave next to nothing, and a proxy behind the pass adds its weights."""
    alive = found["memory"]["alive"]
    assert alive["teacher_published"] > 1.5 * alive["forward"]
    assert alive["ours, keys cached"] < 0.1 * alive["ours"] < 0.1 * alive["forward"]
    weights = 4 * (WIDTH + 2 * (WIDTH * 32 + 32 + 32 * 16) + 1)  # norm; layers and bias of both projections; bias
    own = found["extra_memory_of_forward"]["ours"]
    assert weights <= own["bytes"] <= weights + alive["ours"]
    assert own["value"] == pytest.approx(own["bytes"] / (found["memory"]["weights"] + alive["forward"]))
    assert own["of_working_memory"] > own["value"]


def test_goals(asker: Any, inputs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A goal is met or missed by each variant on its own; missed ones are said to be missed."""
    goals = {"less_time_than_published": 0.2, "less_time_than_row": 1.0, "extra_memory_of_forward": 1e-9}
    monkeypatch.setattr(lab, "GOALS", goals)
    own = cost(asker.model, inputs, proxies(), repeats=3)["goals"]
    assert {name: one["goal"] for name, one in own.items()} == goals
    assert set(own["less_time_than_published"]["met"].values()) == {True}
    assert set(own["less_time_than_row"]["met"].values()) == {False}
    assert own["extra_memory_of_forward"]["met"] == {"ours": False, "paper": False}


def test_a_batch(asker: Any) -> None:
    """A batch of three with prompts of several lengths has about three times the pass's memory of one."""
    samples = list(SceneSet(["natural"], 3, seed=5, questions=2))[:6:2]
    inputs = asker.inputs([one.picture() for one in samples], [one.question for one in samples])
    whole = cost(asker.model, inputs, proxies(), repeats=2)
    alone = cost(asker.model, asker.inputs([samples[0].picture()], [samples[0].question]), {}, repeats=2)
    assert whole["batch"] == 3
    assert whole["image_tokens"] == 64
    ratio = whole["memory"]["alive"]["forward"] / alone["memory"]["alive"]["forward"]
    assert ratio == pytest.approx(3, abs=0.7)


def test_the_model_is_given_back(asker: Any, inputs: Any) -> None:
    """Attention is what it was, eager or not, and the model answers as before."""
    for attention in ("eager", "sdpa"):
        asker.model.set_attn_implementation(attention)
        before = asker.answer(inputs)
        assert cost(asker.model, inputs, {}, repeats=1)["attention"] == "sdpa"
        assert asker.model.config._attn_implementation == attention
        assert asker.answer(inputs) == before


def test_proxy_of_another_width(asker: Any, inputs: Any) -> None:
    """A proxy for wider states is one sentence."""
    with pytest.raises(ModelError, match=f"The proxy ours is for states of width 96, this model's have {WIDTH}"):
        cost(asker.model, inputs, proxies(96))


def test_most_alive() -> None:
    """Tensors count from when they are made until they are freed; views, and what was there before, do not."""
    there = torch.ones(MIB // 4)

    def views() -> Any:
        return there.view(2, -1).t()[:5]

    def freed() -> Any:
        one = there + 1
        one = one * 2
        return float(one[0])

    def kept() -> Any:
        one = there + 1
        return one, one * 2, one.view(-1)

    def remembered() -> Any:
        value = (there.clone().requires_grad_(True) * 2).exp()
        return value.sum()

    assert most_alive(views) == 0
    assert most_alive(freed) == 2 * MIB
    assert most_alive(kept) == 2 * MIB
    assert most_alive(remembered) == pytest.approx(3 * MIB, abs=100)  # leaf, product's result freed, exp's kept
