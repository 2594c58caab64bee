"""Sampling consistency: the share is the probability of the greedy answer, and nothing else is touched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.ask import Asker
from fastrm_monitor.lab.datasets.scene_set import SceneSet
from fastrm_monitor.lab.sampling import sampling_consistency, spread
from tests.tiny import Listed, tiny_asker


@pytest.fixture(scope="module")
def asker() -> Asker:
    return tiny_asker(max_new_tokens=1)


@pytest.fixture(scope="module")
def data() -> Listed:
    return Listed(list(SceneSet(["natural"], 3, seed=5, questions=3)))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_share_is_the_probability(asker: Asker, data: Listed, temperature: float) -> None:
    """With many samples of one token the consistency is the probability of the greedy answer at this temperature."""
    few = Listed(data.samples[:3])
    found = sampling_consistency(asker, few, samples=200, temperature=temperature)
    decode = asker.processor.tokenizer.decode
    for sample in few:
        with torch.no_grad():
            logits = asker.model(**asker.inputs([sample.picture()], [sample.question])).logits[0, -1]
        chances = torch.softmax(logits.double() / temperature, -1)
        texts = [decode([token], skip_special_tokens=True).strip() for token in range(len(chances))]
        greedy = texts[int(chances.argmax())]
        expected = sum(float(chance) for chance, text in zip(chances, texts, strict=True) if text == greedy)
        assert found["consistency"][sample.id] == pytest.approx(expected, abs=0.15)  # 4 standard errors
    assert (found["questions"], found["samples"], found["temperature"]) == (3, 200, temperature)


def test_a_sure_model_agrees_with_itself(asker: Asker, data: Listed) -> None:
    """At hardly any temperature every sample is the greedy answer, whatever the batch."""
    found = sampling_consistency(asker, data, samples=5, temperature=1e-3, batch=4)
    assert set(found["consistency"].values()) == {1.0}
    assert list(found["consistency"]) == [one.id for one in data]


def test_it_is_seeded_and_leaves_the_random_state(asker: Asker, data: Listed) -> None:
    """The same seed gives the same shares, another one others, and the caller's random numbers go on as they would."""
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, same, other = (sampling_consistency(asker, data, samples=6, seed=seed)["consistency"] for seed in (0, 0, 1))
    assert first == same != other
    assert torch.equal(torch.get_rng_state(), before)


def test_answers_are_compared_as_the_benchmark_does(
    asker: Asker, data: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case, articles and number words make no difference: "Two" is "2"."""
    said = iter(["Two", "the 2", "two.", "3"] * len(data))
    tokenizer = asker.processor.tokenizer
    monkeypatch.setattr(tokenizer, "decode", lambda *_args, **_more: "2")
    monkeypatch.setattr(tokenizer, "batch_decode", lambda rows, **_more: [next(said) for _ in rows])
    found = sampling_consistency(asker, data, samples=4)
    assert set(found["consistency"].values()) == {0.75}


def test_samples_cost_more_than_an_answer(asker: Asker, data: Listed) -> None:
    """Both costs are there, in seconds a question; twenty samples take longer than the one answer."""
    found = sampling_consistency(asker, data, samples=20, batch=8)
    assert 0 < found["seconds_per_answer"] < found["seconds_per_question"] < 10


def test_some_questions(asker: Asker, data: Listed) -> None:
    """A limit takes that many, spread over the set; a picture that cannot be read costs its own question."""
    few = sampling_consistency(asker, data, samples=2, limit=3)
    assert list(few["consistency"]) == [data.samples[place].id for place in (0, len(data) // 2, len(data) - 1)]

    def unreadable() -> Image.Image:
        raise DataError("1.png cannot be read.")

    broken = Listed([replace(data.samples[0], picture=unreadable), *data.samples[1:]])
    assert list(sampling_consistency(asker, broken, samples=2)["consistency"]) == [one.id for one in data.samples[1:]]
    with pytest.raises(DataError, match=r"no question of listed to ask; first: 1\.png cannot be read"):
        sampling_consistency(asker, Listed(broken.samples[:1]), samples=2)
    with pytest.raises(DataError, match="no question of listed to ask"):
        sampling_consistency(asker, Listed([]))


@pytest.mark.parametrize("bad", [{"samples": 0}, {"temperature": 0.0}, {"batch": 0}])
def test_numbers_that_make_no_sense(asker: Asker, data: Listed, bad: dict[str, int]) -> None:
    """No samples, no temperature or no batch are one sentence."""
    with pytest.raises(DataError, match="at least 1 sample, a temperature above 0 and a batch of at least 1"):
        sampling_consistency(asker, data, **bad)  # type: ignore[arg-type]


def test_spread() -> None:
    """Places are distinct, in order, over the whole range, and never more than there are."""
    assert spread(10, None) == spread(10, 12) == list(range(10))
    assert spread(10, 4) == [0, 3, 6, 9]
    assert spread(1000, 1) == [0]
    assert spread(0, 5) == spread(5, 0) == []
