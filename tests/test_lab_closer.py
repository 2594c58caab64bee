"""A closer look masks what it says it masks, and shows the teacher's own map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastrm_monitor.errors import DataError
from fastrm_monitor.lab.ask import Asker
from fastrm_monitor.lab.closer import MASKED, STEPS, Look, look_closer
from fastrm_monitor.lab.teacher import Teacher
from fastrm_monitor.scoring.patches import FixedGridLayout, PatchLayout, layout_for
from tests.tiny import tiny_model, tiny_processor

GRID = 8


class Listening(Asker):
    """Keeps the pictures that it is asked about, and answers how many of their patches are masked."""

    def __init__(self) -> None:
        super().__init__(tiny_model(), tiny_processor())
        self.asked: list[list[np.ndarray]] = []

    def ask(self, pictures: Sequence[Image.Image], question: str) -> str:
        self.asked.append([np.asarray(picture) for picture in pictures])
        return "none" if len(self.asked) == 1 else str(len(self.asked))


def done(asker: Asker, layout: PatchLayout | None = None, **changes: Any) -> tuple[Look, list[str]]:
    """What was found, and what was said on the way."""
    given: dict[str, Any] = {
        "question": "what colour is the ring?",
        "pictures": [picture()],
        "sizes": [(64, 64)],
        "maps": [rising()],
        **changes,
    }
    steps = look_closer(asker, layout or layout_for(asker.model.config, asker.processor), **given)
    said: list[str] = []
    while True:
        try:
            said.append(next(steps))
        except StopIteration as end:
            return end.value, said


def picture(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Noise, so that no patch has the mean colour by itself."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def rising() -> np.ndarray:
    """Relevance that rises row by row: the last patch is the most relevant one."""
    return np.linspace(0, 0.9, GRID * GRID, dtype=np.float32).reshape(GRID, GRID)


def masked_patches(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Which patches of 8 x 8 pixels were replaced by the mean colour, bool (GRID, GRID); others must be untouched."""
    mean = before.mean((0, 1)).round()
    found = np.zeros((GRID, GRID), bool)
    for row in range(GRID):
        for column in range(GRID):
            own = np.s_[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            found[row, column] = (after[own] == mean).all()
            assert found[row, column] or (after[own] == before[own]).all()
    return found


def test_most_relevant_and_least_relevant_patches_are_masked() -> None:
    """The unmasked picture is asked first, then 25, 50 and 75 % of the patches by the proxy's map, both ways round."""
    asker = Listening()
    look, said = done(asker)
    assert len(said) == STEPS
    before = np.asarray(picture())
    assert (asker.asked[0][0] == before).all()
    place = np.arange(GRID * GRID).reshape(GRID, GRID)
    expected = [place >= 48, place >= 32, place >= 16, place < 16, place < 32, place < 48]
    for (after,), wanted in zip(asker.asked[1:], expected, strict=True):
        assert (masked_patches(before, after) == wanted).all()
    assert [(one.order, one.share) for one in look.masked] == [(o, s) for o in ("most", "least") for s in MASKED]
    assert look.answer == "none"
    assert [one.answer for one in look.masked] == ["2", "3", "4", "5", "6", "7"]


def test_changed_is_another_answer_and_not_another_case() -> None:
    """An answer that differs in case and blanks alone is the same."""

    class Shouting(Listening):
        def ask(self, pictures: Sequence[Image.Image], question: str) -> str:
            super().ask(pictures, question)
            return ["a  ring", "A ring", "a ring ", "ring", "a ring", "a ring", "no"][len(self.asked) - 1]

    look, _ = done(Shouting())
    assert [one.changed for one in look.masked] == [False, False, True, False, False, True]


def test_map_is_the_teachers(embedded: tuple[Any, Any]) -> None:
    """The map is what the teacher says of this picture and question, row by row, and agreement is measured on it."""
    asker = Asker(*embedded)
    layout = layout_for(asker.model.config, asker.processor)
    explained = Teacher(asker.model).explain(asker.inputs([picture()], ["is there a red ring?"]))
    own = explained.relevance[0][explained.image[0]].numpy()
    look, _ = done(asker, layout, question="is there a red ring?", maps=[own.reshape(GRID, GRID)])
    (found,) = look.maps
    assert found.values.ravel() == pytest.approx(own)
    assert look.correlation == pytest.approx(1.0)
    assert look.overlap == pytest.approx((own >= 0.5).sum() / (own >= 0.3).sum())
    assert look.answer == asker.ask([picture()], "is there a red ring?")


def test_even_map_has_no_order() -> None:
    """A map that is the same everywhere cannot be compared by rank, and masks in random order."""
    asker = Listening()
    look, _ = done(asker, maps=[np.full((GRID, GRID), 0.5, np.float32)])
    assert look.correlation is None
    assert masked_patches(np.asarray(picture()), asker.asked[1][0]).sum() == 16


def test_patches_on_padding_do_not_count() -> None:
    """Of a wide picture that was padded to a square, half of what is to be seen is masked and not half of the grid."""
    asker = Listening()
    layout = FixedGridLayout(asker.model.config.image_token_id, GRID, GRID, fit="pad")
    done(asker, layout, pictures=[picture((64, 32))], sizes=[(640, 320)])  # a small copy of a large picture
    before, (after,) = np.asarray(picture((64, 32))), asker.asked[2]
    assert (after[:16] == before[:16]).all()
    assert (after[16:] == before.mean((0, 1)).round()).all()


def test_several_pictures_are_masked_together() -> None:
    """Patches of all pictures of a request are ranked together; a picture of no relevance is left whole at first."""
    asker = Listening()
    look, _ = done(
        asker,
        pictures=[picture(), picture()],
        sizes=[(64, 64), (64, 64)],
        maps=[np.zeros((GRID, GRID), np.float32), rising() + 0.01],
    )
    assert len(look.maps) == 2
    first, second = asker.asked[2]  # half of 128 patches
    assert (first == np.asarray(picture())).all()
    assert masked_patches(np.asarray(picture()), second).all()


def test_maps_of_another_model_are_refused() -> None:
    """A stored map of another grid is another model's, and the sentence says so before anything is masked."""
    asker = Listening()
    with pytest.raises(DataError, match=r"24 x 24 patches and this model makes 8 x 8.*another model's"):
        done(asker, maps=[np.zeros((24, 24), np.float32)])
    assert len(asker.asked) == 1
