"""Distillation: what is held out stays out, the best weights are kept, and the confidence is honest about itself."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.progress import Progress
from sklearn.metrics import average_precision_score

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.ask import Asker
from fastrm_monitor.lab.datasets.scene_set import SceneSet
from fastrm_monitor.lab.distill import (
    Recipe,
    arrange,
    asked_patches,
    last_states,
    predict,
    split,
    split_by_picture,
    teacher_maps,
    train_proxy,
)
from fastrm_monitor.lab.labels import Labels, make_labels
from fastrm_monitor.lab.proxies import make_proxy
from fastrm_monitor.scoring.anatomy import anatomy_of
from fastrm_monitor.scoring.checkpoint import load_proxy
from fastrm_monitor.scoring.patches import FixedGridLayout
from fastrm_monitor.scoring.proxy import Proxy, ProxyConfig, QueryRowProxy, Reading, build_proxy
from tests.tiny import WIDTH, made_up_labels, tiny_asker, with_right

QUICK = Recipe(key_size=8, projection_size=16, epochs=12, batch=32, rate=5e-3)
GRID, LAYOUT = FixedGridLayout(4, 3, 3), FixedGridLayout(4, 8, 8)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Labels:
    return made_up_labels(tmp_path_factory.mktemp("labels") / "labels.safetensors", pictures=80, questions=5)


@pytest.fixture(scope="module")
def asker() -> Asker:
    return tiny_asker(max_new_tokens=1)


@pytest.fixture(scope="module")
def real(asker: Asker, tmp_path_factory: pytest.TempPathFactory) -> Labels:
    return make_labels(asker, SceneSet(["natural"], pictures=60, seed=5), tmp_path_factory.mktemp("real"), batch=32)


def auprc(proxy: Proxy, labels: Labels, rows: list[int], threshold: float = 0.3) -> float:
    """AUPRC over all patches of some questions, one question at a time, without the code under test."""
    scores, truth = [], []
    for row in rows:
        one = labels.batch([row])
        with torch.no_grad():
            scores.append(torch.sigmoid(proxy(one.states, one.image, one.valid))[one.image].numpy())
        truth.append(one.targets[one.image].numpy() >= threshold)
    return float(average_precision_score(np.concatenate(truth), np.concatenate(scores)))


def test_split_is_by_picture(made_up: Labels) -> None:
    """No picture has questions on both sides, every question is on one, and the share is about the asked one."""
    training, validation = split_by_picture(made_up, 0.25, seed=0)
    names = [{made_up.facts[row].picture_id for row in side} for side in (training, validation)]
    assert not names[0] & names[1]
    assert sorted(training + validation) == list(range(len(made_up)))
    assert len(names[1]) / 80 == pytest.approx(0.25, abs=0.12)
    assert split_by_picture(made_up, 0.25, seed=0) == (training, validation)
    assert split_by_picture(made_up, 0.25, seed=1) != (training, validation)


def test_split_does_not_depend_on_the_rest(made_up: Labels, tmp_path: Path) -> None:
    """A picture stays on its side when the data set grows, so that a larger run learns no held-out picture."""
    few = made_up_labels(tmp_path / "few.safetensors", pictures=30, questions=5)
    sides = []
    for labels in (few, made_up):
        _, validation = split_by_picture(labels, 0.25, seed=0)
        sides.append({labels.facts[row].picture_id for row in validation})
    assert sides[0] == {name for name in sides[1] if int(name.removeprefix("picture-")) < 30}


def test_many_pictures_are_not_held_out_for_nothing(made_up: Labels) -> None:
    """Beyond `validation_pictures` the pictures teach: the share held out falls as the set grows."""
    pictures = len({one.picture_id for one in made_up.facts})
    held = {}
    for most in (pictures // 20, 1000):
        training, validation = split(made_up, replace(QUICK, validation=0.2, validation_pictures=most))
        assert sorted(training + validation) == list(range(len(made_up)))
        held[most] = len({made_up.facts[row].picture_id for row in validation}) / pictures
    assert 0 < held[pictures // 20] < 0.1 < held[1000] < 0.3


def test_one_picture_cannot_be_split(tmp_path: Path) -> None:
    """One picture has no other to be held out: one sentence."""
    with pytest.raises(DataError, match="1 pictures are too few to hold any out: use more"):
        split_by_picture(made_up_labels(tmp_path / "one.safetensors", pictures=1), 0.2, seed=0)


@pytest.mark.parametrize(
    ("recipe", "least"),
    [
        (QUICK, 0.9),
        (replace(QUICK, targets="hard"), 0.9),
        (replace(QUICK, form="self-attention", epochs=20), 0.2),  # it mixes the rows that it should tell apart
    ],
    ids=["query-row", "hard targets", "self-attention"],
)
def test_a_simple_truth_is_learnt(made_up: Labels, recipe: Recipe, least: float) -> None:
    """Where relevant patches are of the question's sort, a trained proxy finds them on unseen pictures."""
    training, validation = split_by_picture(made_up, 0.25, seed=0)
    torch.manual_seed(0)
    untrained = build_proxy(ProxyConfig(16, recipe.form, recipe.key_size, recipe.projection_size))
    assert auprc(untrained, made_up, validation) < 0.15
    assert auprc(train_proxy(made_up, training, validation, recipe, GRID), made_up, validation) > least


def test_targets(made_up: Labels) -> None:
    """Soft targets are the teacher's relevance, 0.14 on average here; hard ones are 1 from the threshold on."""
    training, validation = split_by_picture(made_up, 0.25, seed=0)
    once = replace(QUICK, epochs=1, batch=8, label_threshold=0.04)  # which every patch reaches
    means = []
    for targets in ("soft", "hard"):
        proxy = train_proxy(made_up, training, validation, replace(once, targets=targets), GRID)
        means.append(float(np.concatenate(predict(proxy, made_up, validation)).mean()))
    assert means[0] < 0.35
    assert means[1] > 0.65


def test_a_model_is_distilled(real: Labels) -> None:
    """On a LLaVA's own maps a few epochs beat the untrained proxy and the base rate on unseen pictures."""
    training, validation = split_by_picture(real, 0.25, seed=0)
    torch.manual_seed(0)
    untrained = build_proxy(ProxyConfig(WIDTH, "query-row", 8, 16))
    learnt = auprc(train_proxy(real, training, validation, QUICK, LAYOUT), real, validation)
    base = float(np.mean(np.concatenate(teacher_maps(real, validation)) >= 0.3))
    assert learnt > max(auprc(untrained, real, validation), base) + 0.1


def test_early_stopping_keeps_the_best(made_up: Labels) -> None:
    """Training ends `patience` epochs after its best one, and that one's weights are returned, frozen."""
    training, validation = split_by_picture(made_up, 0.25, seed=0)
    told: list[tuple[int, float]] = []
    hasty = replace(QUICK, targets="soft", heads=False, rate=0.1, epochs=40, patience=3)
    proxy = train_proxy(made_up, training[:40], validation, hasty, GRID, lambda *what: told.append(what))
    values = [value for _, value in told]
    best = int(np.argmax(values))
    assert [epoch for epoch, _ in told] == list(range(1, len(told) + 1))
    assert len(told) == best + 1 + 3 < 40
    assert auprc(proxy, made_up, validation) == pytest.approx(values[best], abs=1e-6)
    assert values[-1] < values[best]
    assert not proxy.training
    assert not any(value.requires_grad for value in proxy.parameters())


def test_training_is_seeded(made_up: Labels) -> None:
    """The same recipe gives the same proxy, another seed another one."""
    training, validation = split_by_picture(made_up, 0.25, seed=0)
    short = replace(QUICK, epochs=2)
    one, same, other = (
        train_proxy(made_up, training, validation, replace(short, seed=seed), GRID).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["key.0.weight"], other["key.0.weight"])


def test_predictions_are_in_token_order(made_up: Labels) -> None:
    """Maps of a batch are each prompt's own, laid on its picture; states are those at its last token."""
    proxy = build_proxy(ProxyConfig(16, "query-row", 4)).eval()
    rows = [5, 0, 17]
    maps = predict(proxy, made_up, rows)
    for row, own, target, laid in zip(
        rows, maps, teacher_maps(made_up, rows), arrange(maps, made_up, rows, GRID), strict=True
    ):
        one = made_up.batch([row])
        with torch.no_grad():
            alone = torch.sigmoid(proxy(one.states, one.image, one.valid))[one.image].numpy()
        assert own == pytest.approx(alone, abs=1e-6)
        assert target == pytest.approx(one.targets[one.image].numpy())
        assert laid.values.ravel() == pytest.approx(own)
    assert np.array_equal(last_states(made_up, rows)[2], made_up.batch([17]).states[0, -1])


@pytest.fixture(scope="module")
def headed(made_up: Labels) -> tuple[QueryRowProxy, list[int]]:
    """A proxy with both heads, trained on made-up labels, and the rows of other pictures."""
    training, validation = split_by_picture(made_up, 0.25, seed=0)
    proxy = train_proxy(made_up, training, validation, replace(QUICK, epochs=25, patience=25), GRID)
    assert isinstance(proxy, QueryRowProxy)
    return proxy, validation


def test_grounding_is_learnt(made_up: Labels, headed: tuple[QueryRowProxy, list[int]]) -> None:
    """On unseen pictures the grounding head finds the patch in the box; a map that lies there scores higher."""
    proxy, rows = headed
    inside, outside, here, elsewhere = [], [], [], []
    for row in rows:
        one = made_up.batch([row])
        with torch.no_grad():
            reading = proxy.read(one.states, one.image, one.valid)
        assert reading.grounding is not None
        ((left, top, _, _),) = made_up.facts[row].boxes
        place = round(top * 3) * 3 + round(left * 3)
        logits = reading.grounding[one.image]
        inside.append(float(logits[place]))
        outside += logits[np.arange(9) != place].tolist()
        for number, into in ((place, here), ((place + 4) % 9, elsewhere)):
            pointed = torch.full((1, 9), -9.0)
            pointed[0, number] = 9.0
            signals = Reading(pointed, logits[None]).signals(torch.ones(1, 9, dtype=torch.bool))
            into.append(float(signals["grounding"]))
    truth = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    assert average_precision_score(truth, inside + outside) > 0.6
    assert np.mean(here) > np.mean(elsewhere) + 0.3


def test_evidence_is_learnt(made_up: Labels, headed: tuple[QueryRowProxy, list[int]]) -> None:
    """On unseen pictures the evidence of right answers is higher than that of wrong ones."""
    proxy, rows = headed
    found = {True: [], False: []}
    for row in rows:
        one = made_up.batch([row])
        with torch.no_grad():
            signals = proxy.read(one.states, one.image, one.valid).signals(one.image)
        found[made_up.facts[row].right].append(float(signals["evidence"]))
    assert np.mean(np.array(found[True])[:, None] > np.array(found[False])[None]) > 0.8


def test_heads_that_cannot_be_taught_are_left_out(made_up: Labels) -> None:
    """Without boxes there is no grounding head, without wrong answers no evidence head, on request neither."""
    training, validation = split_by_picture(made_up, 0.25, seed=0)
    blind = copy.copy(made_up)
    blind.facts = [replace(one, boxes=(), right=True) for one in made_up.facts]
    for labels, recipe in ((blind, QUICK), (made_up, replace(QUICK, heads=False))):
        proxy = train_proxy(labels, training, validation, replace(recipe, epochs=1), GRID)
        one = labels.batch([0])
        reading = proxy.read(one.states, one.image, one.valid)
        assert (reading.grounding, reading.evidence) == (None, None)
        assert reading.signals(one.image) == {}


def test_asked_patches(made_up: Labels) -> None:
    """The patch whose centre is in the box, in token order, the class token in front not counted for a patch."""
    leading = FixedGridLayout(4, 3, 3, leading=1)
    for row in (0, 7):
        ((left, top, _, _),) = made_up.facts[row].boxes
        place = round(top * 3) * 3 + round(left * 3)
        assert np.flatnonzero(asked_patches(made_up, row, 9, GRID)).tolist() == [place]
        assert np.flatnonzero(asked_patches(made_up, row, 10, leading)).tolist() == [place + 1]


def test_proxy_folder(asker: Asker, real: Labels, tmp_path: Path) -> None:
    """`make_proxy` writes a folder that loads, belongs to the model, and says what it was made of."""
    held = made_up_labels(tmp_path / "held.safetensors", pictures=40, questions=5, width=WIDTH, side=8)
    answered = with_right(real, lambda row: row % 3 > 0)  # the untrained model's own answers are never right
    with Progress(disable=True) as bar:
        recipe = replace(QUICK, epochs=3)
        written = make_proxy(asker, answered, [held], recipe, tmp_path / "proxy", "toys", "org/tiny", bar)
    folder = load_proxy(tmp_path / "proxy")
    anatomy_of(asker.model).check(folder)
    assert folder.config == written
    assert (written.model_id, written.model_type, written.form) == ("org/tiny", "llava", "query-row")
    training, validation = split_by_picture(real, QUICK.validation, QUICK.seed)
    assert (written.training["questions"], written.training["data"]) == (len(training), "toys")
    assert written.training["pictures"] == len({real.facts[row].picture_id for row in training})
    assert written.metrics["validation_questions"] == len(validation)
    assert written.metrics["auprc"] == pytest.approx(auprc(folder.proxy, real, validation), abs=1e-4)
    assert written.metrics["all_negative_accuracy"] == pytest.approx(1 - written.metrics["base_rate"])
    assert folder.confidence is not None
    assert folder.confidence.fitted_on == written.metrics["confidence"]
    assert len(folder.confidence.probe) == WIDTH


def test_uncalibrated_folder(asker: Asker, real: Labels, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that is never right gives a proxy without a confidence, and the console says so."""
    never = with_right(real, lambda row: False)
    with Progress(disable=True) as bar:
        written = make_proxy(asker, never, [], replace(QUICK, epochs=1), tmp_path / "proxy", "toys", "org/tiny", bar)
    assert load_proxy(tmp_path / "proxy").confidence is None
    assert written.metrics["confidence"] is None
    assert "the proxy will serve uncalibrated" in " ".join(capsys.readouterr().out.split())
