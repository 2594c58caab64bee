"""Scenes: their truth is known, so it is checked here from the objects alone, without the generator's own logic."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.datasets.scene_set import (
    DEMO_SEED,
    TEST_SEED,
    TRAIN_SEED,
    VALIDATION_SEED,
    SceneSet,
)
from fastrm_monitor.lab.datasets.scenes import (
    COLORS,
    FAMILIES,
    HABIT_COLOR,
    KINDS,
    SHAPES,
    SHIFTED_KINDS,
    SIZE,
    TEACHING_FAMILIES,
    Scene,
    SceneQuestion,
    make_scene,
    scenes,
    vocabulary,
)
from tests.tiny import tiny_processor

PLURALS = {"circles": "circle", "squares": "square", "triangles": "triangle", "crosses": "cross", "rings": "ring"}
TAUGHT = {name: replace(kind, families=TEACHING_FAMILIES) for name, kind in KINDS.items()}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def right_answer(scene: Scene, question: SceneQuestion) -> tuple[str, set[int]]:
    """The answer and the objects it rests on, read from the question's words and the list of objects."""
    words = re.findall("[a-z]+", question.text)
    colors = [word for word in words if word in COLORS]
    shapes = [PLURALS.get(word, word) for word in words if word in SHAPES or word in PLURALS]
    things = scene.objects
    if question.family == "existence":
        found = {n for n, one in enumerate(things) if one.color == colors[0] and one.shape == shapes[0]}
        return ("yes" if found else "no"), found
    if question.family == "count":
        found = {n for n, one in enumerate(things) if one.shape == shapes[0]}
        return str(len(found)), found
    if question.family == "color":
        (only,) = [n for n, one in enumerate(things) if one.shape == shapes[0]]
        return things[only].color, {only}
    if question.family == "shape":
        (only,) = [n for n, one in enumerate(things) if one.color == colors[0]]
        return things[only].shape, {only}
    places = []
    for shape in shapes:
        (only,) = [n for n, one in enumerate(things) if one.shape == shape]
        places.append((only, (things[only].box[1] + things[only].box[3]) / 2))
    if question.family == "position":  # held against the middle of the picture
        return ("above" if places[0][1] < SIZE / 2 else "below"), {places[0][0]}
    (first, y), (second, other) = places
    return ("above" if y < other else "below"), {first, second}


@EVERY_KIND
def test_right_answers_follow_from_the_objects(kind: str) -> None:
    """Every answer, and the objects it rests on, are what the objects say; every family is asked."""
    families = Counter()
    for scene in scenes(TAUGHT[kind], 5, 60, questions=8):
        assert len({question.text for question in scene.questions}) == len(scene.questions)
        for question in scene.questions:
            answer, asked = right_answer(scene, question)
            assert (question.answer, set(question.asked)) == (answer, asked), (scene.id, question)
            families[question.family] += 1
    assert set(families) == set(TEACHING_FAMILIES)
    assert min(families.values()) >= 8


@EVERY_KIND
def test_a_picture_is_a_function_of_kind_seed_and_index(kind: str) -> None:
    """Drawn alone, in a row, or with fewer questions, it is the same picture; global random numbers play no part."""
    np.random.seed(0)
    state = np.random.get_state()[1].tolist()
    row = list(scenes(kind, 9, 4))
    assert np.random.get_state()[1].tolist() == state
    alone, few = make_scene(kind, 9, 3), make_scene(kind, 9, 3, questions=1)
    assert np.array_equal(row[3].pixels, alone.pixels)
    assert (row[3].objects, row[3].questions, row[3].id) == (alone.objects, alone.questions, alone.id)
    assert np.array_equal(few.pixels, alone.pixels)
    assert few.questions == alone.questions[:1]
    assert [one.id for one in scenes(kind, 9, 2, start=2)] == [row[2].id, row[3].id]
    for other in (make_scene(kind, 9, 2), make_scene(kind, 10, 3)):
        assert not np.array_equal(other.pixels, alone.pixels)


def test_shifts_are_paired_and_nothing_else_is() -> None:
    """A shift has the layouts of natural scenes; other kinds share layouts no more than chance does."""

    def layouts(kind: str) -> set[tuple[tuple[int, int], ...]]:
        middles = ([one.center for one in scene.objects] for scene in scenes(kind, 12, 40))
        return {tuple((int(x) // 16, int(y) // 16) for x, y in found[:3]) for found in middles if len(found) > 2}

    def origins(kind: str) -> set[str]:
        data = SceneSet([kind], 5, 12)
        return {data.origin(sample.picture_id) for sample in data}

    for kind in ("counter_prior", "counter_prior_clear", "noise", "color_balance", "occlusion", "question_style"):
        assert len(layouts(kind) & layouts("natural")) > 20
        assert origins(kind) == origins("natural")
    apart = [kind for kind in KINDS if kind not in SHIFTED_KINDS]
    for kind, other in combinations(apart, 2):
        assert len(layouts(kind) & layouts(other)) < 4, (kind, other)
        assert not origins(kind) & origins(other)


@EVERY_KIND
def test_every_kind_draws(kind: str) -> None:
    """Pictures are uint8 RGB of the promised size, with as many objects as the kind says, and no two are the same."""
    drawn = list(scenes(kind, 3, 20))
    fewest, most = KINDS[kind].objects
    for scene in drawn:
        assert (scene.pixels.shape, scene.pixels.dtype) == ((SIZE, SIZE, 3), np.uint8)
        assert scene.pixels.std() > 5
        assert fewest <= len(scene.objects) <= most
        assert scene.questions
    assert len({scene.pixels.tobytes() for scene in drawn}) == 20


@EVERY_KIND
def test_boxes_lie_on_what_was_drawn(kind: str) -> None:
    """An object's pixels lie in its box and fill a good part of it, unless a neighbour covers them."""
    for scene in scenes(kind, 4, 30):
        assert set(np.unique(scene.owner)) <= {-1, *range(len(scene.objects))}
        for number, thing in enumerate(scene.objects):
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= SIZE
            assert 0 <= top < bottom <= SIZE
            ys, xs = np.nonzero(scene.owner == number)
            assert len(xs) >= 0.2 * (right - left) * (bottom - top)
            assert left <= xs.min() <= xs.max() < right
            assert top <= ys.min() <= ys.max() < bottom


def test_boxes_are_tight_and_colours_true() -> None:
    """In clear pictures the drawn pixels reach all four edges of the box and have the colour's name."""
    for scene in scenes(replace(KINDS["easy"], noise=(0.0, 0.0)), 6, 40):
        pixels = scene.pixels / 255
        for number, thing in enumerate(scene.objects):
            mask = scene.owner == number
            ys, xs = np.nonzero(mask)
            edges = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            if not (scene.owner[thing.box[1] : thing.box[3], thing.box[0] : thing.box[2]] > number).any():
                assert np.abs(edges - np.array(thing.box)).max() <= 3
            mean = pixels[mask].mean(0)
            nearest = min(COLORS, key=lambda name: float(np.abs(mean - np.array(COLORS[name])).sum()))
            assert nearest == thing.color


def habitual(kind: str, count: int = 300) -> float:
    things = [thing for scene in scenes(kind, 8, count) for thing in scene.objects]
    return float(np.mean([HABIT_COLOR[thing.shape] == thing.color for thing in things]))


def test_prior() -> None:
    """Natural objects mostly have their habitual colour, random ones one in five times, counter-prior ones never."""
    assert habitual("natural") == pytest.approx(0.8, abs=0.04)
    assert habitual("prior_free") == pytest.approx(0.2, abs=0.04)
    assert habitual("counter_prior") == 0.0


def existence(kind: str, count: int = 700) -> list[SceneQuestion]:
    only = replace(KINDS[kind], families=("existence",))
    return [question for scene in scenes(only, 8, count, questions=2) for question in scene.questions]


def test_yes_rate() -> None:
    """In natural scenes a question that names a habitual pair is mostly a yes; without a prior half of them are."""
    natural = existence("natural")
    usual = [one.answer for one in natural if one.habit == "yes"]
    unusual = [one.answer for one in natural if one.habit == "no"]
    assert len(usual) > 2 * len(unusual)
    assert np.mean(np.array(usual) == "yes") == pytest.approx(0.62, abs=0.05)
    assert np.mean(np.array(unusual) == "yes") < 0.4
    assert np.mean([one.answer == "yes" for one in existence("prior_free")]) == pytest.approx(0.5, abs=0.05)


def test_counter_prior_never_rewards_habit() -> None:
    """There, whoever answers from habit is wrong about every colour, shape and habitual pair."""
    answered = Counter()
    for scene in scenes("counter_prior", 8, 300):
        for question in scene.questions:
            if question.family in ("color", "shape") or question.habit == "yes":
                answered[question.habit == question.answer] += 1
    assert answered[False] > 200
    assert answered[True] == 0


def test_spoilt_objects() -> None:
    """Natural scenes wash out and smear objects at the stated rates, never one object in both ways; easy ones none."""
    things = [thing for scene in scenes("natural", 2, 300) for thing in scene.objects]
    assert np.mean([thing.washed for thing in things]) == pytest.approx(0.66, abs=0.05)
    assert np.mean([thing.smeared for thing in things]) == pytest.approx(0.2, abs=0.05)
    assert not any(thing.washed and thing.smeared for thing in things)
    assert not any(thing.washed or thing.smeared for scene in scenes("easy", 2, 50) for thing in scene.objects)


def test_shifted_wording() -> None:
    """The shifted style never uses a plain wording, and only words that plain questions have."""
    plain = {one.text for scene in scenes("natural", 2, 300) for one in scene.questions}
    shifted = {one.text for scene in scenes("question_style", 2, 300) for one in scene.questions}
    assert not plain & shifted
    words = {word for text in plain for word in re.findall("[a-z]+", text)}
    assert {word for text in shifted for word in re.findall("[a-z]+", text)} <= words


def test_every_word_is_known_to_the_tokenizer() -> None:
    """No question, prompt or answer of any kind holds an unknown token, and every answer is one token."""
    processor = tiny_processor()
    tokenizer = processor.tokenizer
    texts, answers = set(), set()
    for kind in TAUGHT.values():
        for scene in scenes(kind, 5, 60, questions=8):
            texts |= {question.text for question in scene.questions}
            answers |= {question.answer for question in scene.questions}
    assert len(texts) > 150
    for text in [*texts, *answers, "USER: is there a ring? ASSISTANT: yes", *vocabulary()]:
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids, text
    assert {len(tokenizer(answer, add_special_tokens=False).input_ids) for answer in answers} == {1}


def test_scene_set() -> None:
    """A set has each kind's first pictures; ids are unique, boxes are fractions, and the pixels are the scene's."""
    data = SceneSet(["easy", "noise"], pictures=3, seed=11, questions=3)
    samples = list(data)
    assert len(data) == len(samples) == len({sample.id for sample in samples})
    assert list(dict.fromkeys(sample.picture_id for sample in samples)) == [
        f"{kind}-11-{index}" for kind in ("easy", "noise") for index in range(3)
    ]
    scene = make_scene("easy", 11, 0, questions=3)
    assert np.array_equal(np.asarray(samples[0].picture()), scene.pixels)
    for sample, question in zip(samples, scene.questions, strict=False):
        assert (sample.question, sample.answers, sample.group) == (question.text, (question.answer,), question.family)
        assert sample.boxes == tuple(tuple(edge / SIZE for edge in scene.objects[n].box) for n in question.asked)
    assert {sample.group for sample in samples} <= set(FAMILIES)


def test_name_says_what_changes_the_samples() -> None:
    """Sets that differ have names that differ; caches go by them."""
    sets = [
        SceneSet(["easy"], 2, 11),
        SceneSet(["noise"], 2, 11),
        SceneSet(["easy"], 3, 11),
        SceneSet(["easy"], 2, 12),
        SceneSet(["easy"], 2, 11, questions=3),
        SceneSet(["easy", "noise"], 2, 11),
    ]
    assert len({one.name for one in sets}) == len(sets)


def test_right() -> None:
    """An answer is right word for word, whatever its case and blanks."""
    data = SceneSet(["easy"], 1)
    sample = next(iter(data))
    assert data.right(sample, f" {sample.answers[0].upper()}\n")
    assert not data.right(sample, f"{sample.answers[0]} yes")
    assert not data.right(sample, "")


@pytest.mark.parametrize("kinds", [["natural", "marsian"], []])
def test_unknown_kind(kinds: list[str]) -> None:
    """An unknown kind, or none, is one sentence with the known ones."""
    with pytest.raises(DataError, match=r"known are natural, prior_free, .*question_style\.$"):
        SceneSet(kinds, 1)


def test_seeds_are_apart() -> None:
    """Training, validation, test and demonstration share no picture, nor does the embedded model's training."""
    seeds = [1, TRAIN_SEED, VALIDATION_SEED, TEST_SEED, DEMO_SEED]
    assert len(set(seeds)) == len(seeds)
    assert all(one != other for one, other in pairwise(sorted(seeds)))
    drawn = [scene.pixels.tobytes() for seed in seeds for scene in scenes("natural", seed, 20)]
    assert len(set(drawn)) == len(drawn)
