"""Drawn scenes with questions: data whose truth, boxes included, is known.

Coloured shapes on a 64 x 64 picture and short questions about them. The generator knows where every object lies, so
it can be asked what no photograph data set can be asked: does a relevance map point at the object in question?

Natural scenes carry *language priors*: most squares are blue, "is there a blue square?" is mostly answered yes. Some
objects are washed out (colour almost gone) or smeared (outline almost gone), and there a model that has learnt the
prior answers from habit. The other kinds break the prior, or change noise, density, colour balance, occlusion or the
style of the questions.

A picture is a function of (kind, seed, index) alone. Natural scenes and those of `SHIFTED_KINDS` are drawn by the same
numbers, so that a shift can be told from the chance of a layout; those of every other kind by numbers of their own, so
that none is the twin of another that was held out. This module needs numpy only; it knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

SIZE = 64
"""Side of a picture in pixels."""

_CELL = 16
_GRID = SIZE // _CELL

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.75, 0.20),
    "blue": (0.20, 0.30, 0.95),
    "yellow": (0.95, 0.90, 0.15),
    "purple": (0.70, 0.20, 0.80),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
HABIT_COLOR = {"circle": "red", "triangle": "green", "square": "blue", "cross": "yellow", "ring": "purple"}
"""The colour that each shape mostly has in natural scenes: the language prior."""
HABIT_SHAPE = {color: shape for shape, color in HABIT_COLOR.items()}
NUMBERS = ("0", "1", "2", "3", "4", "5")
FAMILIES = ("existence", "color", "shape", "count", "relation")
"""The question families. `relation` is above or below; left or right stayed at chance in a model of this size."""
TEACHING_FAMILIES = ("position", *FAMILIES)
"""`position` (above or below the middle?) only teaches the model where things are; it is too easy to measure by.

It shares its words with `relation`, which stayed at chance when it was taught without."""


@dataclass(frozen=True)
class SceneKind:
    """A distribution of scenes and questions.

    Attributes:
        habit: probability that an object has the habitual colour of its shape; None draws colours at random,
            0 never gives the habitual one.
        washed: probability that an object's colour is washed out.
        smeared: probability that an object's outline is smeared.
        faint: most of its colour that a washed-out object keeps.
        doubtful: share of existence questions that turn on a washed-out or smeared object.
        yes: share of "yes" among existence questions about habitual pairs, and of "no" among those about others.
        stray: share of count questions about any shape, whether it is there or not.
        apart: least vertical distance, in pixels, of two objects whose relation is asked.
        objects: fewest and most objects in a picture.
        noise: smallest and largest standard deviation of the pixel noise (pixels in 0..1).
        tint: largest relative change of a colour channel over the whole picture.
        occluders: number of grey bars laid over the picture.
        blurred: share of pictures that are out of focus.
        contrast: smallest and largest contrast of the whole picture.
        shade: largest relative darkening from one side of the picture to the other.
        style: "plain" or "shifted" wording.
        dropped: share of questions that lack a word.
        families: question families asked.
    """

    habit: float | None = 0.8
    washed: float = 0.3
    smeared: float = 0.2
    faint: float = 0.25
    doubtful: float = 0.0
    yes: float = 0.8
    stray: float = 1 / 6
    apart: int = 8
    objects: tuple[int, int] = (3, 6)
    noise: tuple[float, float] = (0.03, 0.08)
    tint: float = 0.0
    occluders: int = 0
    blurred: float = 0.0
    contrast: tuple[float, float] = (1.0, 1.0)
    shade: float = 0.0
    style: str = "plain"
    dropped: float = 0.0
    families: tuple[str, ...] = FAMILIES


_NATURAL = SceneKind(habit=0.75, washed=0.66, smeared=0.2, faint=0.05, doubtful=1.0, yes=0.62, stray=0.85, apart=2)
_PRIOR_FREE = SceneKind(habit=None)
# Spoilt in ways that no test is: what teaches to notice that something is amiss.
_SPOILT = replace(_NATURAL, objects=(2, 7), blurred=0.4, contrast=(0.4, 1.0), shade=0.5, dropped=0.4)
KINDS: dict[str, SceneKind] = {
    "natural": _NATURAL,
    "prior_free": _PRIOR_FREE,
    "easy": replace(_PRIOR_FREE, washed=0.0, smeared=0.0, objects=(2, 5), noise=(0.0, 0.04)),
    "habitual": SceneKind(washed=0.4, smeared=0.23, faint=0.12, doubtful=0.6),  # natural but clearer: for teaching
    "habit_free": replace(_NATURAL, habit=None),
    "varied": replace(_SPOILT, habit=None),
    "spoilt": _SPOILT,
    "engrained": replace(_NATURAL, habit=0.95, faint=0.25),  # for teaching a model to answer from habit unseeing
    "counter_prior": replace(_NATURAL, habit=0.0),
    "counter_prior_clear": replace(_NATURAL, habit=0.0, washed=0.0, smeared=0.0),
    "noise": replace(_NATURAL, noise=(0.14, 0.22)),
    "density": replace(_NATURAL, objects=(8, 11)),
    "color_balance": replace(_NATURAL, tint=0.45),
    "occlusion": replace(_NATURAL, occluders=4),
    "question_style": replace(_NATURAL, style="shifted"),
}
SHIFTED_KINDS = (
    "counter_prior",
    "counter_prior_clear",
    "noise",
    "density",
    "color_balance",
    "occlusion",
    "question_style",
)
_PAIRED = ("natural", *SHIFTED_KINDS)
_STREAMS = {kind: number for number, kind in enumerate((kind for kind in KINDS if kind not in _PAIRED), start=1)}


@dataclass(frozen=True)
class SceneObject:
    """One drawn object; `box` is (left, top, right, bottom) in pixels, right and bottom exclusive."""

    shape: str
    color: str
    box: tuple[int, int, int, int]
    washed: bool = False
    smeared: bool = False

    @property
    def center(self) -> tuple[float, float]:
        """The middle of the box as (x, y) in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class SceneQuestion:
    """One question about a scene.

    Attributes:
        family: one of `FAMILIES`.
        text: the question as a user would type it.
        answer: the right answer, one word.
        asked: indices into `Scene.objects` of the objects that the answer rests on; empty when there is none.
        habit: the answer that the language prior suggests, None where the prior says nothing.
    """

    family: str
    text: str
    answer: str
    asked: tuple[int, ...]
    habit: str | None = None


@dataclass(frozen=True)
class Scene:
    """A picture with its objects and questions; `pixels` is uint8 (SIZE, SIZE, 3)."""

    id: str
    pixels: np.ndarray = field(repr=False)
    objects: tuple[SceneObject, ...]
    questions: tuple[SceneQuestion, ...]
    owner: np.ndarray = field(repr=False)  # int8 (SIZE, SIZE): index of the object drawn at a pixel, -1 for none


def make_scene(kind: str | SceneKind, seed: int, index: int, questions: int = 4) -> Scene:
    """Draw picture `index` of the endless sequence that (kind, seed) names, with up to `questions` questions.

    Raises:
        KeyError: `kind` is not one of `KINDS`.
    """
    spec = KINDS[kind] if isinstance(kind, str) else kind
    name = kind if isinstance(kind, str) else "custom"
    rng = np.random.default_rng([seed, index, *([_STREAMS[name]] if name in _STREAMS else [])])
    objects = _place(spec, rng)
    pixels, owner = _draw(objects, spec, rng)
    return Scene(f"{name}-{seed}-{index}", pixels, objects, _ask(objects, spec, rng, questions), owner)


def sequence(kind: str) -> str:
    """The name of the sequence of random numbers that a kind's pictures are drawn by; see the module's text."""
    return kind if kind in _STREAMS else "paired"


def scenes(kind: str | SceneKind, seed: int, count: int, questions: int = 4, start: int = 0) -> Iterator[Scene]:
    """The pictures `start` to `start + count` of (kind, seed), one after the other."""
    for index in range(start, start + count):
        yield make_scene(kind, seed, index, questions)


# --- placing -------------------------------------------------------------------------------------------------------


def _place(spec: SceneKind, rng: np.random.Generator) -> tuple[SceneObject, ...]:
    count = int(rng.integers(spec.objects[0], spec.objects[1] + 1))
    cells = rng.permutation(_GRID * _GRID)[:count]
    # A picture is about some shapes more than others: otherwise nearly every count is 0 or 1.
    favourite = SHAPES[rng.integers(len(SHAPES))]
    made = []
    for cell in cells:
        shape = favourite if rng.random() < 0.25 else SHAPES[rng.integers(len(SHAPES))]
        habitual = HABIT_COLOR[shape]
        others = [color for color in COLORS if color != habitual]
        if spec.habit is None:
            color = list(COLORS)[rng.integers(len(COLORS))]
        else:
            color = habitual if rng.random() < spec.habit else others[rng.integers(len(others))]
        radius = int(rng.integers(5, 8))
        x = int(cell % _GRID * _CELL + _CELL / 2 + rng.integers(-2, 3))
        y = int(cell // _GRID * _CELL + _CELL / 2 + rng.integers(-2, 3))
        box = (max(x - radius, 0), max(y - radius, 0), min(x + radius, SIZE), min(y + radius, SIZE))
        spoilt = rng.random()
        washed = bool(spoilt < spec.washed)
        smeared = bool(not washed and spoilt < spec.washed + spec.smeared)
        made.append(SceneObject(shape, color, box, washed, smeared))
    return tuple(made)


# --- drawing -------------------------------------------------------------------------------------------------------


def _outline(shape: str, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Which points belong to `shape`; dx, dy are offsets from its middle in units of its radius, in -1..1."""
    inside: np.ndarray
    if shape == "circle":
        inside = dx**2 + dy**2 <= 0.95
    elif shape == "ring":
        distance = dx**2 + dy**2
        inside = (distance <= 1.0) & (distance >= 0.28)
    elif shape == "square":
        inside = np.maximum(abs(dx), abs(dy)) <= 0.86
    elif shape == "triangle":
        inside = abs(dx) <= (dy + 0.95) * 0.55
    else:  # cross
        inside = (np.minimum(abs(dx), abs(dy)) <= 0.32) & (np.maximum(abs(dx), abs(dy)) <= 1.0)
    return inside


def _draw(objects: tuple[SceneObject, ...], spec: SceneKind, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    level = rng.uniform(0.35, 0.6)
    picture = np.full((SIZE, SIZE, 3), level) + rng.uniform(-0.04, 0.04, 3)
    owner = np.full((SIZE, SIZE), -1, np.int8)
    for number, thing in enumerate(objects):
        left, top, right, bottom = thing.box
        x, y = thing.center
        radius = max(right - left, bottom - top) / 2
        ys, xs = np.mgrid[top:bottom, left:right] + 0.5
        mask = _outline(thing.shape, (xs - x) / radius, (ys - y) / radius)
        color = np.asarray(COLORS[thing.color]) + rng.uniform(-0.06, 0.06, 3)
        if thing.washed:
            grey = color.mean() * 0.4 + (0.85 if rng.random() < 0.5 else 0.1) * 0.6
            color = grey + (color - grey) * rng.uniform(0.0, spec.faint)
        if thing.smeared:
            # Part of the box turns to object colour and part of the object to background, pixel by pixel.
            torn = rng.random(mask.shape) < rng.uniform(0.6, 0.95)
            mask = np.where(torn, rng.random(mask.shape) < 0.55, mask)
        window = (slice(top, bottom), slice(left, right))
        picture[window][mask] = color
        owner[window][mask] = number
    for _ in range(spec.occluders):
        length, width = int(rng.integers(20, 44)), int(rng.integers(4, 7))
        tall, wide = (length, width) if rng.random() < 0.5 else (width, length)
        top, left = int(rng.integers(0, SIZE - tall)), int(rng.integers(0, SIZE - wide))
        picture[top : top + tall, left : left + wide] = rng.uniform(0.2, 0.8)
    if spec.tint:
        picture *= 1 + rng.uniform(-spec.tint, spec.tint, 3)
    picture = _spoil(picture, spec, rng)
    picture += rng.normal(0, rng.uniform(*spec.noise), picture.shape)
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8), owner


def _spoil(picture: np.ndarray, spec: SceneKind, rng: np.random.Generator) -> np.ndarray:
    """The whole picture out of focus, flat or unevenly lit; draws no random number where nothing of it is asked."""
    if spec.blurred and rng.random() < spec.blurred:
        for axis in (0, 1, 0, 1):
            picture = (np.roll(picture, 1, axis) + picture + np.roll(picture, -1, axis)) / 3
    if spec.contrast[0] < spec.contrast[1]:
        picture = 0.5 + (picture - 0.5) * rng.uniform(*spec.contrast)
    if spec.shade:
        ramp = np.linspace(1, 1 - rng.uniform(0, spec.shade), SIZE)[:, None]
        ramp = ramp if rng.random() < 0.5 else ramp[::-1]
        picture = picture * (ramp if rng.random() < 0.5 else ramp.T)[..., None]
    return picture


# --- asking --------------------------------------------------------------------------------------------------------

_WORDING: dict[str, dict[str, tuple[str, ...]]] = {
    "plain": {
        "existence": ("is there a {c} {s}?", "is there a {c} {s} in the picture?"),
        "color": ("what color is the {s}?", "what is the color of the {s}?"),
        "shape": ("what shape is the {c} object?", "what is the {c} object?"),
        "count": ("how many {p} are there?", "how many {p} can you see?"),
        "position": ("is the {s} above or below the middle?",),
        "relation": ("is the {s} above or below the {o}?",),
    },
    # Words that the plain questions use too, in an order that they never use.
    "shifted": {
        "existence": ("can you see a {c} {s} in the picture?", "in the picture, is there a {c} {s}?"),
        "color": ("the {s} in the picture is what color?", "can you see what color the {s} is?"),
        "shape": ("the {c} object in the picture is what shape?", "what is the shape of the {c} object?"),
        "count": ("in the picture, how many {p} are there?", "can you see how many {p} there are?"),
        "position": ("in the picture, is the {s} above or below the middle?",),
        "relation": ("in the picture, is the {s} above or below the {o}?",),
    },
}


def _ask(
    objects: tuple[SceneObject, ...], spec: SceneKind, rng: np.random.Generator, wanted: int
) -> tuple[SceneQuestion, ...]:
    asked: dict[str, SceneQuestion] = {}
    for _ in range(4 * max(wanted, 4)):  # so that whoever wants fewer gets the first of them
        if len(asked) >= wanted:
            break
        family = spec.families[rng.integers(len(spec.families))]
        question = _ASKERS[family](objects, spec, rng)
        if question is not None and question.text not in asked:
            asked[question.text] = question
    return tuple(asked.values())


def _word(spec: SceneKind, rng: np.random.Generator, template: str, **words: str) -> str:
    choices = _WORDING[spec.style][template]
    text = choices[rng.integers(len(choices))]
    if spec.dropped and rng.random() < spec.dropped:
        parts = text.split()
        plain = [number for number, part in enumerate(parts[:-1]) if "{" not in part]
        parts.pop(plain[rng.integers(len(plain))])
        text = " ".join(parts)
    return text.format(**words)


def _single(objects: tuple[SceneObject, ...], rng: np.random.Generator, attribute: str) -> int | None:
    """The index of a random object that is the only one of its shape (or colour); None when there is none."""
    values = [getattr(thing, attribute) for thing in objects]
    alone = [number for number, value in enumerate(values) if values.count(value) == 1]
    return int(alone[rng.integers(len(alone))]) if alone else None


def _ask_existence(objects: tuple[SceneObject, ...], spec: SceneKind, rng: np.random.Generator) -> SceneQuestion | None:
    present = sorted({(thing.color, thing.shape) for thing in objects})
    absent = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in present]
    habit = None
    if spec.habit is None:
        pool = present if rng.random() < 0.5 else absent
    else:
        # Questions name what people expect: three in four name a habitual pair, whether it is there or not.
        common = rng.random() < 0.75
        yes = rng.random() < ((spec.yes if common else 1 - spec.yes) if spec.habit else 0.5)
        habit = "yes" if common else "no"
        pool = [pair for pair in (present if yes else absent) if (HABIT_COLOR[pair[1]] == pair[0]) == common]
        if not pool:
            return None
    if spec.doubtful and rng.random() < spec.doubtful:
        pool = [pair for pair in pool if any(_confusable(thing, *pair) for thing in objects)] or pool
    color, shape = pool[rng.integers(len(pool))]
    asked = tuple(n for n, thing in enumerate(objects) if (thing.color, thing.shape) == (color, shape))
    return SceneQuestion(
        "existence", _word(spec, rng, "existence", c=color, s=shape), "yes" if asked else "no", asked, habit
    )


def _confusable(thing: SceneObject, color: str, shape: str) -> bool:
    """Whether `thing` can be taken for a `color` `shape` by one who sees only what is not spoilt of it."""
    return (thing.washed and thing.shape == shape) or (thing.smeared and thing.color == color)


def _ask_color(objects: tuple[SceneObject, ...], spec: SceneKind, rng: np.random.Generator) -> SceneQuestion | None:
    number = _single(objects, rng, "shape")
    if number is None:
        return None
    shape = objects[number].shape
    habit = None if spec.habit is None else HABIT_COLOR[shape]
    return SceneQuestion("color", _word(spec, rng, "color", s=shape), objects[number].color, (number,), habit)


def _ask_shape(objects: tuple[SceneObject, ...], spec: SceneKind, rng: np.random.Generator) -> SceneQuestion | None:
    number = _single(objects, rng, "color")
    if number is None:
        return None
    color = objects[number].color
    habit = None if spec.habit is None else HABIT_SHAPE[color]
    return SceneQuestion("shape", _word(spec, rng, "shape", c=color), objects[number].shape, (number,), habit)


def _ask_count(objects: tuple[SceneObject, ...], spec: SceneKind, rng: np.random.Generator) -> SceneQuestion | None:
    shapes = [thing.shape for thing in objects]
    # Stray questions name any shape; the others one that is there, the frequent ones more often.
    shape = SHAPES[rng.integers(len(SHAPES))] if rng.random() < spec.stray else shapes[rng.integers(len(shapes))]
    asked = tuple(number for number, value in enumerate(shapes) if value == shape)
    if len(asked) >= len(NUMBERS):
        return None
    return SceneQuestion("count", _word(spec, rng, "count", p=plural(shape)), NUMBERS[len(asked)], asked)


def _ask_position(objects: tuple[SceneObject, ...], spec: SceneKind, rng: np.random.Generator) -> SceneQuestion | None:
    number = _single(objects, rng, "shape")
    if number is None:
        return None
    thing = objects[number]
    offset = thing.center[1] - SIZE / 2
    if abs(offset) < 3:  # too near the middle to have one right answer
        return None
    answer = "below" if offset > 0 else "above"
    return SceneQuestion("position", _word(spec, rng, "position", s=thing.shape), answer, (number,))


def _ask_relation(objects: tuple[SceneObject, ...], spec: SceneKind, rng: np.random.Generator) -> SceneQuestion | None:
    shapes = [thing.shape for thing in objects]
    alone = [number for number, value in enumerate(shapes) if shapes.count(value) == 1]
    if len(alone) < 2:
        return None
    first, second = (int(n) for n in rng.permutation(alone)[:2])
    offset = objects[first].center[1] - objects[second].center[1]
    if abs(offset) < spec.apart:  # side by side: neither
        return None
    answer = "below" if offset > 0 else "above"
    text = _word(spec, rng, "relation", s=shapes[first], o=shapes[second])
    return SceneQuestion("relation", text, answer, (first, second))


_ASKERS: dict[str, Callable[[tuple[SceneObject, ...], SceneKind, np.random.Generator], SceneQuestion | None]] = {
    "existence": _ask_existence,
    "color": _ask_color,
    "shape": _ask_shape,
    "count": _ask_count,
    "position": _ask_position,
    "relation": _ask_relation,
}


def plural(shape: str) -> str:
    """The plural of a shape's name."""
    return shape + ("es" if shape.endswith("s") else "s")


def vocabulary() -> list[str]:
    """Every word that a question or an answer may hold, in a fixed order."""
    words: list[str] = []
    for style in _WORDING.values():
        for templates in style.values():
            for template in templates:
                words += template.replace("?", " ?").replace(",", " ,").split()
    words = [word for word in words if "{" not in word]
    words += [*COLORS, *SHAPES, *(plural(shape) for shape in SHAPES), *NUMBERS]
    words += ["yes", "no", "above", "below"]
    return list(dict.fromkeys(words))
