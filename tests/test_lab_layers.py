"""Which layer to read: every choice sees its own layer's states, and a planted best layer comes out best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab import layers as lab
from fastrm_monitor.lab.ask import Asker
from fastrm_monitor.lab.datasets.base import Dataset, Sample
from fastrm_monitor.lab.datasets.scene_set import SceneSet
from fastrm_monitor.lab.distill import Recipe
from fastrm_monitor.lab.labels import Labels
from fastrm_monitor.lab.layers import layers
from fastrm_monitor.lab.teacher import Explained, Teacher
from tests.tiny import WIDTH, Listed, tiny_asker


class Unanswered(Listed):
    """A data set whose answers nobody may ask for."""

    def right(self, sample: Sample, answer: str) -> bool:
        raise AssertionError("no answer is needed")


@pytest.fixture(scope="module")
def asker() -> Asker:
    return tiny_asker(layers=3)


def scenes(pictures: int, questions: int = 2) -> Dataset:
    return SceneSet(["natural"], pictures, seed=5, questions=questions)


def test_states_of_each_layer(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice learns from what its layers put out at image positions and t; the last from states after the norm."""
    data = scenes(12)
    seen: list[Tensor] = []

    def train(labels: Labels, training: list[int], *_rest: object, **_more: object) -> Any:
        batch = labels.batch([0])
        seen.append(batch.states[0])
        assert batch.image[0].tolist() == [True] * 64 + [False]
        raise _EnoughError

    class _EnoughError(Exception):
        pass

    monkeypatch.setattr(lab, "train_proxy", train)
    with pytest.raises(_EnoughError):
        layers(asker, data, choices=[])
    sample = next(iter(data))
    inputs = asker.inputs([sample.picture()], [sample.question])
    outputs: list[Tensor] = []
    decoder = asker.model.model.language_model
    hooks = [
        module.register_forward_hook(lambda _m, _a, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        for module in (*decoder.layers, decoder.norm)
    ]
    with torch.no_grad():
        asker.model(**inputs)
    for hook in hooks:
        hook.remove()
    rows = inputs["input_ids"][0] == asker.model.config.image_token_id
    rows[-1] = True
    (final,) = seen
    expected = outputs[3].reshape(-1, WIDTH)[rows]
    expected = expected / expected.square().mean(-1, keepdim=True).sqrt()
    assert torch.allclose(final, expected, atol=5e-3)


def test_concatenations_and_middle_layers(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side stand the named layers' states, in the named order; t is the last row."""
    kept: list[Tensor] = []
    real = lab.train_proxy

    def train(labels: Labels, *rest: Any, **more: Any) -> Any:
        kept.append(labels.batch([1]).states)
        return real(labels, *rest, **more)

    monkeypatch.setattr(lab, "train_proxy", train)
    found = layers(asker, scenes(20), choices=[(1,), (2,), (2, 1)], epochs=1)
    final, first, second, both = kept
    assert torch.equal(both, torch.cat([second, first], -1))
    assert not torch.equal(first, second)
    assert not torch.equal(second, final)
    for states in (final, first, second):
        assert torch.allclose(states.square().mean(-1), torch.ones(1, 65), atol=0.01)
    assert {name: own["layers"] for name, own in found["choices"].items()} == {
        "final": [3],
        "layer 1": [1],
        "layer 2": [2],
        "layers 2+1": [2, 1],
    }
    assert [own["width"] for own in found["choices"].values()] == [WIDTH, WIDTH, WIDTH, 2 * WIDTH]
    assert "difference" not in found["choices"]["final"]


def test_a_planted_layer_is_found(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where relevance is a matter of what the first layer says, that layer's proxy is better, its interval above 0."""
    real = Teacher.explain

    def explain(self: Teacher, inputs: Mapping[str, Tensor], *rest: Any) -> Explained:
        told = real(self, inputs, *rest)
        with torch.no_grad():
            first = asker.model(**inputs, output_hidden_states=True, use_cache=False).hidden_states[1][..., :4].sum(-1)
        own = first.masked_fill(~told.image, torch.nan)
        middle = own.nanmedian(1, keepdim=True).values
        return replace(told, relevance=((own > middle) & told.image).float())

    monkeypatch.setattr(Teacher, "explain", explain)
    drowning = asker.model.model.language_model.layers[1].mlp
    with monkeypatch.context() as patch:
        patch.setattr(drowning, "forward", lambda states: 50 * torch.sin(40 * states.flip(-1)))
        found = layers(asker, scenes(170, 1), choices=[(1,)], epochs=30, seed=1)
    own = found["choices"]
    assert own["layer 1"]["auprc"]["value"] > own["final"]["auprc"]["value"] + 0.2
    assert own["layer 1"]["difference"]["auprc"]["ci95"][0] > 0
    assert own["layer 1"]["difference"]["auprc"]["difference"] == pytest.approx(
        own["layer 1"]["auprc"]["value"] - own["final"]["auprc"]["value"]
    )
    assert own["layer 1"]["difference"]["auprc_within"]["ci95"][0] > 0.1
    assert own["final"]["auprc_within"]["value"] > found["chance_within"] > 0.4  # half of the patches are relevant
    assert own["layer 1"]["difference"]["f1"]["p"] < 0.05
    low, high = own["layer 1"]["f1"]["ci95"]
    assert low <= own["layer 1"]["f1"]["value"] <= high


def test_every_choice_gets_the_same(asker: Asker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pictures, recipe and number of epochs for all; what is judged chose no epoch."""
    given: list[tuple[Any, ...]] = []
    real = lab.train_proxy

    def train(labels: Labels, training: list[int], choosing: list[int], recipe: Recipe, *rest: Any) -> Any:
        given.append((tuple(training), tuple(choosing), recipe))
        return real(labels, training, choosing, recipe, *rest)

    monkeypatch.setattr(lab, "train_proxy", train)
    found = layers(asker, scenes(20), choices=[(1,)], epochs=2, seed=3)
    assert given[0] == given[1]
    training, choosing, recipe = given[0]
    assert (recipe.epochs, recipe.patience, recipe.heads, recipe.form, recipe.seed) == (2, 2, False, "query-row", 3)
    assert len(training) == found["training_questions"]
    assert len(training) + len(choosing) + found["questions"] == len(scenes(20))
    assert found["epochs"] == 2


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (4, ["final", "layer 1", "layer 2", "layer 3", "layers 2+4"]),
        (32, ["final", "layer 8", "layer 16", "layer 24", "layers 16+32"]),
        (2, ["final", "layer 1", "layers 1+2"]),
        (1, ["final"]),
    ],
)
def test_choices_unless_named(count: int, names: list[str]) -> None:
    """The quarters of any model and the middle beside the end."""
    assert list(lab._choices(None, count)) == names


@pytest.mark.parametrize("choice", [(), (0,), (4,), (1, 9)])
def test_layers_that_are_not_there(asker: Asker, choice: tuple[int, ...]) -> None:
    """A layer that the model lacks is one sentence."""
    with pytest.raises(DataError, match="are not among the model's 1 to 3"):
        layers(asker, scenes(3), choices=[choice])


def test_too_little_data(asker: Asker) -> None:
    """Pictures that cannot be read are left out; when too few are left, one sentence says so; few conclude nothing."""

    def unreadable() -> Image.Image:
        raise DataError("1.png cannot be read.")

    samples = [replace(one, picture=unreadable) for one in scenes(2)]
    with pytest.raises(DataError, match="listed has no question whose picture can be read"):
        layers(asker, Unanswered(samples))
    with pytest.raises(DataError, match="pictures are too few"):
        layers(asker, Unanswered(samples + list(SceneSet(["easy"], 2, seed=5))), choices=[])
    found = layers(asker, scenes(16), choices=[(1,)], epochs=1, limit=30)
    own = found["choices"]["layer 1"]["difference"]["auprc"]
    assert np.isfinite(own["difference"])
    assert (own["ci95"], own["p"]) == (None, None)
