"""Asking a model: what it is sent, what it says, and how sure it was, token by token."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from fastrm_monitor.errors import ModelError
from fastrm_monitor.lab.ask import Asker, load_lvlm
from fastrm_monitor.lab.datasets.scene_set import SceneSet
from fastrm_monitor.lab.embed import save
from tests.tiny import tiny_asker, tiny_model, tiny_processor


def test_prompt() -> None:
    """The model's chat template frames the question; the instruction goes behind it, the pictures before it."""
    asker = tiny_asker()
    assert asker.prompt("is there a ring?") == "USER: <image>\nis there a ring? ASSISTANT:"
    assert asker.prompt("which?", pictures=2) == "USER: <image>\n<image>\nwhich? ASSISTANT:"
    told = Asker(asker.model, asker.processor, " One word. ")
    assert told.prompt("which?") == "USER: <image>\nwhich?\nOne word. ASSISTANT:"


def test_prompt_without_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a chat template the form of LLaVA-1.5 is used, which is the same."""
    asker = tiny_asker()
    expected = asker.prompt("which?", pictures=2)
    monkeypatch.setattr(asker.processor, "chat_template", None)
    assert asker.prompt("which?", pictures=2) == expected


def test_numbers_of_an_answer() -> None:
    """Probability and entropy are those of the greedy answer's tokens, recomputed here one pass a token."""
    asker = tiny_asker(max_new_tokens=3)
    sample = next(iter(SceneSet(["natural"], 1, seed=5)))
    inputs = asker.inputs([sample.picture()], [sample.question])
    (said,) = asker.answer(inputs)
    ids, logs, entropies = inputs["input_ids"], [], []
    with torch.no_grad():
        for _ in range(3):
            out = asker.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits[0, -1]
            p = torch.softmax(out.double(), -1)
            token = int(p.argmax())
            if token == asker.processor.tokenizer.eos_token_id and logs:
                break
            logs.append(math.log(float(p[token])))
            entropies.append(float(-(p * p.log()).sum()))
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
    assert said.text == asker.processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])
    assert said.numbers["token_probability"] == pytest.approx(math.exp(sum(logs) / len(logs)), abs=1e-5)
    assert said.numbers["token_entropy"] == pytest.approx(sum(entropies) / len(entropies), abs=1e-4)


def test_end_token_does_not_count() -> None:
    """The end token is part neither of the text nor of the numbers, and an answer of nothing still has numbers."""
    asker = tiny_asker(max_new_tokens=3)
    samples = list(SceneSet(["natural"], 2, seed=5))
    inputs = asker.inputs([sample.picture() for sample in samples], [sample.question for sample in samples])
    with torch.no_grad():
        first = asker.model(**inputs).logits[:, -1]
    usual = int(first[0].argmax())
    assert (first.argmax(-1) != usual).any()  # others go on, so that this one is padded, here with end tokens
    asker.model.generation_config.eos_token_id = [usual, 2]
    asker.model.generation_config.pad_token_id = usual
    said = asker.answer(inputs)
    assert said[0].text == ""
    assert said[0].numbers["token_probability"] == pytest.approx(float(torch.softmax(first[0], -1)[usual]), abs=1e-5)


def test_model_without_end_token() -> None:
    """A model that names no end token answers up to the longest answer."""
    asker = tiny_asker(max_new_tokens=3)
    sample = next(iter(SceneSet(["natural"], 1, seed=5)))
    asker.model.generation_config.eos_token_id = None
    (said,) = asker.answer(asker.inputs([sample.picture()], [sample.question]))
    asker.model.generation_config.eos_token_id = 2
    (usual,) = asker.answer(asker.inputs([sample.picture()], [sample.question]))
    assert said.text
    assert said == usual  # which does not end by itself either


def test_batch_equals_single() -> None:
    """Padding and neighbours change neither an answer nor its numbers; `ask` says the same."""
    asker = tiny_asker(max_new_tokens=3)
    samples = list(SceneSet(["natural", "question_style"], 2, seed=5))
    inputs = asker.inputs([sample.picture() for sample in samples], [sample.question for sample in samples])
    assert not inputs["attention_mask"].all()
    for sample, said in zip(samples, asker.answer(inputs), strict=True):
        (alone,) = asker.answer(asker.inputs([sample.picture()], [sample.question]))
        assert said.text == alone.text == asker.ask([sample.picture()], sample.question)
        assert said.numbers == pytest.approx(alone.numbers, abs=1e-4)


def test_load_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved model loads by its folder, left-padding, in evaluation mode, and answers as before."""
    model = tiny_model()
    save(model, tiny_processor(), tmp_path / "llava")
    monkeypatch.setenv("HOME", str(tmp_path))
    loaded, processor = load_lvlm("~/llava", "cpu")
    assert processor.tokenizer.padding_side == "left"
    assert not loaded.training
    sample = next(iter(SceneSet(["natural"], 1, seed=5)))
    before = Asker(model, tiny_processor(), max_new_tokens=3).ask([sample.picture()], sample.question)
    assert Asker(loaded, processor, max_new_tokens=3).ask([sample.picture()], sample.question) == before


def test_nothing_to_load(tmp_path: Path) -> None:
    """A folder that is not there, or holds no model, is one sentence with its name."""
    for name, said in (("nothing", "no model folder at .*nothing"), ("", "could be loaded from '.*'")):
        with pytest.raises(ModelError, match=said) as caught:
            load_lvlm(str(tmp_path / name))
        assert "\n" not in str(caught.value)
