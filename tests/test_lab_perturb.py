"""The perturbation test: planted truths come out, and masks lie where the patches are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.ask import Asker, Said
from fastrm_monitor.lab.datasets.base import Sample
from fastrm_monitor.lab.datasets.scene_set import SceneSet
from fastrm_monitor.lab.failures import failures
from fastrm_monitor.lab.fidelity import inside
from fastrm_monitor.lab.labels import LabelFacts, Labels
from fastrm_monitor.lab.perturb import LEVELS, masking_orders, patch_boxes, perturbation
from fastrm_monitor.scoring.patches import PictureInput, layout_for
from fastrm_monitor.types import RelevanceMap

SIDE = 8
PIXELS = 32


class Spots:
    """Pictures with one bright patch each, three questions to two pictures, and the question where it is."""

    name = "spots"

    def __init__(self, count: int = 90) -> None:
        rng = np.random.default_rng(3)
        self.places = rng.integers(SIDE * SIDE, size=count)
        self.samples = [
            Sample(str(n), f"picture-{n // 3 * 2 + n % 3 % 2}", lambda n=n: self._draw(n), "where?", ("seen",), "spot")
            for n in range(count)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def right(self, sample: Sample, answer: str) -> bool:
        return answer == sample.answers[0]

    def _draw(self, number: int) -> Image.Image:
        pixels = np.full((PIXELS, PIXELS, 3), 20, np.uint8)
        row, column = divmod(int(self.places[number]), SIDE)
        step = PIXELS // SIDE
        pixels[row * step : (row + 1) * step, column * step : (column + 1) * step] = 250
        return Image.fromarray(pixels)

    def maps(self) -> list[RelevanceMap]:
        """The true ones."""
        return [RelevanceMap((np.arange(SIDE * SIDE) == place).reshape(SIDE, SIDE) * 0.9) for place in self.places]

    def labels(self) -> Any:
        """What the test needs of labels, answers right throughout."""
        facts = [
            LabelFacts(one.id, one.picture_id, one.group, "seen", True, {}, (), (PIXELS, PIXELS))
            for one in self.samples
        ]
        return _Facts(facts)


class _Facts(Labels):
    def __init__(self, facts: list[LabelFacts]) -> None:
        self.facts = facts


class SeesBright:
    """A model that answers rightly as long as it sees the bright patch; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[np.ndarray] = []

    def inputs(self, pictures: Sequence[Image.Image], questions: Sequence[str]) -> Any:
        assert len(pictures) == len(questions)
        return [np.asarray(one) for one in pictures]

    def answer(self, inputs: Any) -> list[Said]:
        self.asked += inputs
        return [Said("seen" if (one == 250).any() else "not seen", {}) for one in inputs]


def shuffled(maps: Sequence[RelevanceMap]) -> list[RelevanceMap]:
    rng = np.random.default_rng(0)
    return [RelevanceMap(rng.permuted(one.values.ravel()).reshape(one.values.shape), one.region) for one in maps]


def test_a_true_map_beats_random_and_a_shuffled_one_does_not() -> None:
    """The order of the truth loses the answer at once, that of a map with shuffled patches when chance does."""
    data = Spots()
    maps = {"proxy": data.maps(), "teacher": shuffled(data.maps())}
    found = perturbation(SeesBright(), data, data.labels(), maps, limit=90)  # type: ignore[arg-type]
    assert [one["rate"] for one in found["accuracy"]["proxy"]] == [1.0] + [0.0] * 8
    assert [one["rate"] for one in found["accuracy"]["inverse"]] == [1.0] * 8 + [0.0]
    for level, one in zip(LEVELS, found["accuracy"]["random"], strict=True):
        assert one["rate"] == pytest.approx(1 - level, abs=0.12)
    assert found["area"]["proxy"]["mean"] == pytest.approx(0.125)
    assert found["area"]["random"]["mean"] == pytest.approx(0.5, abs=0.08)
    truth, noise = found["difference"]["proxy - random"], found["difference"]["teacher - random"]
    assert truth["ci95"][1] < -0.2
    assert truth["p"] < 0.01
    assert noise["ci95"][0] < 0 < noise["ci95"][1]
    assert found["difference"]["proxy - inverse"]["difference"] == pytest.approx(0.125 - 0.975)
    assert (found["questions"], found["pictures"]) == (90, 60)


def test_changed_answers_by_group() -> None:
    """Masking the bright patch changes every answer; each kind of question has its own numbers."""
    data = Spots(60)
    for number in range(0, 60, 2):
        data.samples[number] = replace(data.samples[number], group="even")
    maps = {"proxy": data.maps(), "teacher": data.maps()}
    found = perturbation(SeesBright(), data, data.labels(), maps, limit=60)  # type: ignore[arg-type]
    assert {kind: own["n"] for kind, own in found["groups"].items()} == {"even": 30, "spot": 30}
    for own in (found, *found["groups"].values()):
        assert [one["rate"] for one in own["changed"]["proxy"]] == [0.0] + [1.0] * 8
        assert [one["rate"] for one in own["changed"]["inverse"]] == [0.0] * 8 + [1.0]


def test_each_question_is_asked_once_where_orders_agree() -> None:
    """The picture as it is and the one wholly masked are asked once, the seven levels between once an order."""
    data, model = Spots(10), SeesBright()
    maps = {"proxy": data.maps(), "teacher": data.maps()}
    perturbation(model, data, data.labels(), maps, limit=4, batch=7)  # type: ignore[arg-type]
    assert len(model.asked) == 4 * (2 + 7 * 4)
    mean = round(20 + 230 / 64)
    assert sum(int((one == mean).all()) for one in model.asked) == 4


def test_the_masks_are_seeded() -> None:
    """The same seed masks the same patches, another seed others; a smaller limit changes no picture's masks."""
    data = Spots(12)
    maps = {"proxy": data.maps(), "teacher": data.maps()}

    def pictures(**options: int) -> set[bytes]:
        model = SeesBright()
        perturbation(model, data, data.labels(), maps, **options)  # type: ignore[arg-type]
        return {one.tobytes() for one in model.asked}

    assert pictures(seed=0) == pictures(seed=0, batch=5)
    assert pictures(seed=0) != pictures(seed=1)
    assert pictures(seed=0, limit=3) < pictures(seed=0)


def test_too_few_pictures_conclude_nothing() -> None:
    """On three pictures there are numbers and no interval."""
    data = Spots(3)
    found = perturbation(
        SeesBright(),
        data,
        data.labels(),
        {"proxy": data.maps(), "teacher": data.maps()},  # type: ignore[arg-type]
    )
    for one in found["difference"].values():
        assert one["difference"] is not None
        assert (one["ci95"], one["p"]) == (None, None)
    assert found["area"]["proxy"]["ci95"] is None


class HalfKnown(Spots):
    """Of every third question only a wrong answer is known, and that is what the unmasked picture gets."""

    def right(self, sample: Sample, answer: str) -> bool | None:
        if int(sample.id) % 3:
            return super().right(sample, answer)
        return False if answer == "seen" else None


def test_answers_that_nobody_can_judge() -> None:
    """A question with an answer of unknown rightness is in no curve of the accuracy, and in all of what changed."""
    data = HalfKnown()
    maps = {"proxy": data.maps(), "teacher": shuffled(data.maps())}
    found = perturbation(SeesBright(), data, data.labels(), maps, limit=90)  # type: ignore[arg-type]
    assert [one["rate"] for one in found["accuracy"]["proxy"]] == [1.0] + [0.0] * 8
    assert [one["rate"] for one in found["accuracy"]["inverse"]] == [1.0] * 8 + [0.0]
    assert {one["n"] for own in found["accuracy"].values() for one in own} == {60}
    assert {one["n"] for own in found["changed"].values() for one in own} == {90}
    assert (found["questions"], found["pictures"], found["groups"]["spot"]["n"]) == (60, 60, 60)
    assert {one["n"] for one in found["area"].values()} == {60}
    assert found["area"]["inverse"]["mean"] == pytest.approx(0.975)
    assert found["difference"]["proxy - inverse"]["difference"] == pytest.approx(0.125 - 0.975)
    assert found["difference"]["proxy - random"]["ci95"][1] < -0.2


def test_an_answer_unknown_in_one_order_only() -> None:
    """A question is left out of every order where one order has an answer of unknown rightness: they stay paired."""

    class Rare(Spots):
        unknown = 0

        def right(self, sample: Sample, answer: str) -> bool | None:
            if answer != "lost":
                return super().right(sample, answer)
            self.unknown += 1
            return None

    class Loses(SeesBright):
        def answer(self, inputs: Any) -> list[Said]:
            start = len(self.asked)
            said = super().answer(inputs)
            # Of each question's 30 answers the 11th is one of the teacher's order.
            return [Said("lost", {}) if (start + n) % 300 == 10 else one for n, one in enumerate(said)]

    data = Rare()
    maps = {"proxy": data.maps(), "teacher": data.maps()}
    found = perturbation(Loses(), data, data.labels(), maps, limit=90)  # type: ignore[arg-type]
    assert data.unknown == 9
    assert {one["n"] for one in found["area"].values()} == {found["questions"]} == {81}
    assert {one["n"] for own in found["accuracy"].values() for one in own} == {81}


def test_nothing_to_judge() -> None:
    """Where every question has an answer of unknown rightness the section says so in one sentence."""
    data = HalfKnown()
    data.samples = data.samples[::3]
    labels = _Facts(data.labels().facts)
    maps = {"proxy": data.maps()[::3], "teacher": data.maps()[::3]}
    with pytest.raises(DataError, match="Of no masked question of spots it is known whether all its answers are right"):
        perturbation(SeesBright(), data, labels, maps)  # type: ignore[arg-type]


def test_other_data_than_the_labels() -> None:
    """Questions that the data set does not have are one sentence, and so are no questions at all."""
    data = Spots(6)
    maps = {"proxy": data.maps(), "teacher": data.maps()}
    labels = data.labels()
    labels.facts[2] = replace(labels.facts[2], id="elsewhere")
    with pytest.raises(DataError, match="spots has no question 'elsewhere' that the labels have"):
        perturbation(SeesBright(), data, labels, maps)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no question of spots"):
        perturbation(SeesBright(), data, _Facts([]), maps)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(64, 64), (90, 60), (60, 90)])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_masks_lie_where_the_processor_puts_the_patch(size: tuple[int, int], fit: str) -> None:
    """Masking a patch's box changes this patch of the model's input most, whatever the picture's shape."""
    config = SimpleNamespace(
        model_type="llava",
        image_token_id=4,
        vision_config=SimpleNamespace(model_type="clip", image_size=24, patch_size=8),
        vision_feature_select_strategy="default",
    )
    processor = SimpleNamespace(
        num_additional_image_tokens=1,
        image_processor=SimpleNamespace(
            size={"height": 24, "width": 24} if fit == "squash" else {"shortest_edge": 24},
            do_pad=fit == "pad",
            do_center_crop=fit != "squash",
        ),
    )
    (grid,) = layout_for(config, processor).grids(9, [PictureInput(size)])
    boxes = patch_boxes(grid.arrange(np.zeros(9, np.float32)), size)
    assert boxes.shape == (9, 4)
    before = _processed(Image.new("L", size, 100), fit)
    seen = 0
    for patch, (left, top, right, bottom) in enumerate(boxes):
        picture = Image.new("L", size, 100)
        if left == right or top == bottom:
            continue  # on the padding
        seen += 1
        picture.paste(200, (left, top, right, bottom))
        change = np.abs(_processed(picture, fit) - before).reshape(3, 8, 3, 8).mean((1, 3)).ravel()
        assert int(change.argmax()) == patch
        assert change[patch] > 4 * np.delete(change, patch).max()
    assert seen == 9


def _processed(picture: Image.Image, fit: str) -> np.ndarray:
    """What the model sees of a picture, written down independently of the package."""
    width, height = picture.size
    if fit == "squash":
        return np.asarray(picture.resize((24, 24), Image.Resampling.BICUBIC), float)
    if fit == "pad":
        side = max(width, height)
        square = Image.new("L", (side, side), 100)
        square.paste(picture, ((side - width) // 2, (side - height) // 2))
        return np.asarray(square.resize((24, 24), Image.Resampling.BICUBIC), float)
    short = min(width, height)
    resized = picture.resize((round(24 * width / short), round(24 * height / short)), Image.Resampling.BICUBIC)
    left, top = (resized.width - 24) // 2, (resized.height - 24) // 2
    return np.asarray(resized.crop((left, top, left + 24, top + 24)), float)


def test_padding_is_not_masked() -> None:
    """Of a wide picture padded to a square only patches that show some of it count: at half masked, half of these."""
    data, model = Spots(1), SeesBright()
    half = np.zeros((16, 64, 3), np.uint8)
    half[:, 32:] = 200
    data.samples[0] = replace(data.samples[0], picture=lambda: Image.fromarray(half))
    grid = RelevanceMap(np.arange(64.0).reshape(8, 8) / 64, (0.0, -1.5, 1.0, 2.5))
    perturbation(model, data, data.labels(), {"proxy": [grid], "teacher": [grid]})  # type: ignore[arg-type]
    shares = [float((one == 100).all(-1).mean()) for one in model.asked[1:8]]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 0.8, 0.85, 0.9, 0.95], abs=0.05)


def test_orders() -> None:
    """Every order names each patch once; inverse is the other way round, ties are broken at random."""
    values = np.array([[0.1, 0.9], [0.5, 0.3]])
    proxy, teacher, chance, inverse = masking_orders(values, 1 - values, np.random.default_rng(0))
    assert proxy.tolist() == [1, 2, 3, 0]
    assert teacher.tolist() == inverse.tolist() == [0, 3, 2, 1]
    assert sorted(chance.tolist()) == [0, 1, 2, 3]
    even = np.zeros((4, 4))
    firsts = {int(masking_orders(even, even, np.random.default_rng(n))[0][0]) for n in range(40)}
    assert len(firsts) > 8


def test_the_embedded_model_rests_on_what_is_asked(embedded: tuple[Any, Any]) -> None:
    """For a real LLaVA the true boxes are a better order than a random one; masking them last keeps answers longer."""
    model, processor = embedded
    data = SceneSet(["easy"], 40, seed=7, questions=2)
    samples = [one for one in data if one.boxes]
    facts = [LabelFacts(one.id, one.picture_id, one.group, "", True, {}, one.boxes, (64, 64)) for one in samples]
    layout = layout_for(model.config, processor)
    (grid,) = layout.grids(64, [PictureInput((64, 64))])
    blank = grid.arrange(np.zeros(64, np.float32))
    truth = [RelevanceMap(inside(blank, one.boxes).astype(float), blank.region) for one in samples]
    found = perturbation(
        Asker(model, processor, max_new_tokens=2),
        data,
        _Facts(facts),
        {"proxy": truth, "teacher": truth},
        limit=30,
        batch=100,
    )
    assert found["accuracy"]["proxy"][0]["rate"] > 0.8
    assert found["difference"]["proxy - random"]["ci95"][1] < 0
    assert found["difference"]["proxy - inverse"]["ci95"][1] < -0.1


def _fact(picture: int, answer: str, right: bool, boxed: bool) -> LabelFacts:
    boxes = ((0.0, 0.0, 0.5, 0.5),) if boxed else ()
    return LabelFacts("0", f"picture-{picture}", "any", answer, right, {}, boxes, (64, 64))


def test_failure_modes() -> None:
    """Wrong answers stand in their mode beside the right ones of their kind, with their relevance on the boxes."""
    on, off = np.zeros((4, 4)), np.zeros((4, 4))
    on[:2, :2], off[2:, 2:] = 0.6, 0.2
    facts, maps, changed = [], [], {}
    for number in range(30):  # wrong answers look elsewhere
        for answer, right, boxed in (
            ("yes", False, False),
            ("yes", True, True),
            ("No", False, True),
            ("no", True, False),
            ("two", False, True),
            ("3", True, True),
            ("red", False, True),
            ("blue", True, True),
        ):
            changed[len(facts)] = right
            facts.append(_fact(number, answer, right, boxed))
            maps.append(RelevanceMap(on if right else off))
    found = failures(_Facts(facts), {"proxy": maps, "teacher": list(reversed(maps))}, changed)
    for mode in ("missed", "count", "object"):
        own = found[mode]
        assert own["wrong"]["answers"] == own["right"]["answers"] == 30
        assert own["wrong"]["on_boxes"]["proxy"] == {"n": 30, "mean": 0.0, "ci95": [0.0, 0.0]}
        assert own["right"]["on_boxes"]["proxy"] == {"n": 30, "mean": 1.0, "ci95": [1.0, 1.0]}
        assert own["right"]["boxes"]["mean"] == pytest.approx(0.25)
        assert own["difference"]["on_boxes"]["proxy"] == {"difference": -1.0, "ci95": [-1.0, -1.0]}
        assert own["difference"]["mass"]["proxy"]["difference"] == pytest.approx(-0.1)
        assert (own["wrong"]["changed"]["rate"], own["right"]["changed"]["rate"]) == (0.0, 1.0)
    assert found["object"]["difference"]["on_boxes"]["teacher"]["difference"] != -1.0
    hallucinated = found["hallucinated"]
    assert hallucinated["wrong"]["answers"] == 30
    assert hallucinated["wrong"]["on_boxes"]["proxy"] == {"n": 0, "mean": None, "ci95": None}
    assert hallucinated["difference"]["on_boxes"]["proxy"] == {"difference": None, "ci95": None}
    assert hallucinated["wrong"]["mass"]["proxy"]["mean"] == pytest.approx(0.05)
