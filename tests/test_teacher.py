"""Does the teacher say what its formulas say? Everything that is distilled, and every fidelity, hangs on it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from fastrm_monitor.errors import ModelError
from fastrm_monitor.lab.ask import Asker
from fastrm_monitor.lab.datasets.base import Sample
from fastrm_monitor.lab.datasets.scene_set import SceneSet
from fastrm_monitor.lab.teacher import Explained, Teacher
from tests.tiny import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(SceneSet(["natural", "question_style"], pictures=3, seed=7))


def inputs_of(model: Any, samples: list[Sample]) -> Any:
    return Asker(model, tiny_processor()).inputs([one.picture() for one in samples], [one.question for one in samples])


def by_hand(model: Any, sample: Sample) -> np.ndarray:
    """The teacher of one prompt, (T,), from the formulas alone: loops over layers, heads and rows, nothing shared."""
    fresh = copy.deepcopy(model).requires_grad_(True)
    fresh.set_attn_implementation("eager")
    inputs = inputs_of(fresh, [sample])
    output = fresh(**inputs, output_attentions=True)
    for attention in output.attentions:
        attention.retain_grad()
    logits = output.logits[0, -1]
    logits[int(logits.argmax())].backward()
    length = inputs["input_ids"].shape[1]
    rollout = np.eye(length)
    for attention in output.attentions:
        probability, gradient = attention[0].detach().double().numpy(), attention.grad[0].double().numpy()
        heads = probability.shape[0]
        mean = np.zeros((length, length))
        for head in range(heads):
            for row in range(length):
                for column in range(row + 1):
                    mean[row, column] += max(gradient[head, row, column] * probability[head, row, column], 0.0) / heads
        rollout = rollout + np.stack([sum(mean[row, k] * rollout[k] for k in range(length)) for row in range(length)])
    relevance = rollout - np.eye(length)
    last = relevance[-1] / relevance[-1].sum()
    places = np.flatnonzero(inputs["input_ids"][0].numpy() == model.config.image_token_id)
    result = np.zeros(length)
    result[places] = (last[places] - last[places].min()) / (last[places].max() - last[places].min())
    return result


def unpadded(explained: Explained, row: int) -> np.ndarray:
    return explained.relevance[row][explained.valid[row]].numpy()


def test_agrees_with_the_formulas(samples: list[Sample]) -> None:
    """Both methods give, in a padded batch, what the formulas give one prompt at a time."""
    model = tiny_model(layers=3)
    chosen = [samples[0], samples[5], samples[-1]]
    expected = [by_hand(model, sample) for sample in chosen]
    assert len({len(one) for one in expected}) > 1  # there is padding
    teacher = Teacher(model)
    for method in ("row", "rollout"):
        explained = teacher.explain(inputs_of(model, chosen), method)
        for row, own in enumerate(expected):
            assert unpadded(explained, row) == pytest.approx(own, abs=1e-5)
            assert own.max() == 1.0
            assert ((own > 0.01) & (own < 0.99)).sum() > 5


def test_attention_to_the_image(samples: list[Sample]) -> None:
    """The share of its attention that the last position pays to the image, mean of heads and layers, padded or not."""
    model = tiny_model(layers=2)
    chosen = [samples[0], samples[-1]]
    looked = Teacher(model).explain(inputs_of(model, chosen)).image_attention
    for row, sample in enumerate(chosen):
        inputs = inputs_of(model, [sample])
        attentions = model(**inputs, output_attentions=True).attentions
        places = (inputs["input_ids"][0] == model.config.image_token_id).tolist()
        shares = [
            sum(float(value) for value, here in zip(head[-1], places, strict=True) if here)
            for layer in attentions
            for head in layer[0]
        ]
        assert float(looked[row]) == pytest.approx(np.mean(shares), abs=1e-5)
        assert 0.1 < looked[row] < 1.0


def test_row_equals_rollout(samples: list[Sample]) -> None:
    """The cheap recursion is the published rollout, over several batches and four layers."""
    model = tiny_model(layers=4, seed=3)
    teacher = Teacher(model)
    for start in range(0, len(samples), 5):
        inputs = inputs_of(model, samples[start : start + 5])
        row, rollout = teacher.explain(inputs, "row"), teacher.explain(inputs, "rollout")
        assert (row.relevance - rollout.relevance).abs().max() < 1e-5
        assert torch.equal(row.predicted, rollout.predicted)


def test_batch_equals_singles(samples: list[Sample]) -> None:
    """Neighbours and padding change nothing: relevance, states and predicted token are those of the prompt alone."""
    model = tiny_model()
    teacher = Teacher(model)
    together = teacher.explain(inputs_of(model, samples[:6]))
    assert not together.valid.all()
    for row, sample in enumerate(samples[:6]):
        alone = teacher.explain(inputs_of(model, [sample]))
        own = together.valid[row]
        assert unpadded(together, row) == pytest.approx(alone.relevance[0].numpy(), abs=1e-5)
        assert together.states[row][own].numpy() == pytest.approx(alone.states[0].numpy(), abs=1e-4)
        assert torch.equal(together.image[row][own], alone.image[0])
        assert int(together.predicted[row]) == int(alone.predicted[0])


@pytest.mark.parametrize(("width", "layers", "tower"), [(32, 1, 1), (96, 3, 2)])
def test_other_sizes(samples: list[Sample], width: int, layers: int, tower: int) -> None:
    """A LLaVA of other sizes is explained too; its states are transformers' own last hidden states."""
    model = tiny_model(width=width, layers=layers, tower=tower)
    inputs = inputs_of(model, samples[:2])
    explained = Teacher(model).explain(inputs)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    own = explained.valid
    assert explained.states.shape[-1] == width
    assert torch.allclose(explained.states[own], output.hidden_states[-1][own], atol=1e-5)
    assert torch.equal(explained.predicted, output.logits[:, -1].argmax(-1))
    assert explained.image.sum(1).tolist() == [64, 64]
    assert (explained.relevance[~explained.image] == 0).all()


def test_two_questions_two_maps() -> None:
    """The map depends on the question, not on the picture alone."""
    model = tiny_model()
    one, other, *_ = list(SceneSet(["natural"], pictures=1, seed=7))
    assert one.picture_id == other.picture_id
    explained = Teacher(model).explain(inputs_of(model, [one, other]))
    maps = [explained.relevance[row][explained.image[row]] for row in range(2)]
    assert (maps[0] - maps[1]).abs().max() > 0.05


def test_weights_stay_frozen(samples: list[Sample]) -> None:
    """Explaining leaves no gradient, no hook and no changed weight behind."""
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    teacher = Teacher(model)
    teacher.explain(inputs_of(model, samples[:2]))
    model.set_attn_implementation("sdpa")
    with pytest.raises(ModelError):
        teacher.explain(inputs_of(model, samples[:2]))
    assert not any(value.requires_grad or value.grad is not None for value in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.get_input_embeddings()._forward_hooks
    assert not model.model.language_model.norm._forward_hooks


def test_attention_without_probabilities(samples: list[Sample]) -> None:
    """A kernel that keeps no probabilities is an error that says what to load, not an empty map."""
    model = tiny_model()
    teacher = Teacher(model)
    model.set_attn_implementation("sdpa")
    with pytest.raises(ModelError, match=r"of any layer: load the model with attn_implementation='eager'"):
        teacher.explain(inputs_of(model, samples[:1]))


def test_detached_layer(samples: list[Sample]) -> None:
    """A layer that the gradient does not reach is named; the others' relevance would look like a map."""
    model = tiny_model(layers=3)
    teacher = Teacher(model)
    attention = model.model.language_model.layers[1].self_attn
    attention.register_forward_hook(lambda _module, _args, out: (out[0].detach(), *out[1:]))
    with pytest.raises(ModelError, match=r"probabilities of layer 1: "):
        teacher.explain(inputs_of(model, samples[:1]))


def test_right_padding(samples: list[Sample]) -> None:
    """With right padding the last column is no prompt's last token, so it is refused."""
    model = tiny_model()
    inputs = inputs_of(model, samples[:6])
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    with pytest.raises(ModelError, match="padding_side = 'left'"):
        Teacher(model).explain(inputs)


def test_eager_refused() -> None:
    """A model that cannot run eager attention is refused when the teacher is made."""
    model = tiny_model()

    def refuse(_name: str) -> None:
        raise ValueError("only flash attention")

    model.set_attn_implementation = refuse
    with pytest.raises(ModelError, match="only flash attention"):
        Teacher(model)


def test_nothing_relevant(samples: list[Sample]) -> None:
    """Where every patch is equal the map is 0, not NaN: a head without weights has no gradient to give."""
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    explained = Teacher(model).explain(inputs_of(model, samples[:2]))
    assert explained.image.any()
    assert (explained.relevance == 0).all()


def test_prompt_without_picture() -> None:
    """A prompt without image tokens has relevance 0 everywhere."""
    model = tiny_model()
    inputs = tiny_processor()(text=["USER: is there a red circle? ASSISTANT:"], return_tensors="pt")
    for method in ("row", "rollout"):
        explained = Teacher(model).explain(inputs, method)
        assert not explained.image.any()
        assert (explained.relevance == 0).all()


def test_half_precision(samples: list[Sample]) -> None:
    """A model in bfloat16 is explained in float32, near what the same model says in float32."""
    model = tiny_model()
    exact = Teacher(model).explain(inputs_of(model, samples[:4]))
    half = tiny_model().bfloat16()
    inputs = inputs_of(half, samples[:4])
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    rough = Teacher(half).explain(inputs)
    assert rough.relevance.dtype == torch.float32
    same = (exact.predicted == rough.predicted).nonzero().ravel().tolist()
    assert same
    for row in same:
        own = exact.image[row]
        assert np.corrcoef(exact.relevance[row][own], rough.relevance[row][own])[0, 1] > 0.9
