"""Does the heatmap land on the right pixels? A wrong place would be believed."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fastrm_monitor.errors import DataError
from fastrm_monitor.overlay import colors, legend, overlay
from fastrm_monitor.types import WHOLE, Region

GREY = 128


def grey(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (GREY, GREY, GREY))


def one_hot(rows: int, columns: int, row: int, column: int) -> np.ndarray:
    values = np.zeros((rows, columns), dtype=np.float32)
    values[row, column] = 1.0
    return values


def changed(picture: Image.Image, drawn: Image.Image) -> np.ndarray:
    """How far each pixel moved, float (h, w)."""
    return np.abs(np.asarray(drawn, dtype=float) - np.asarray(picture.convert("RGB"), dtype=float)).sum(axis=2)


def touched_box(picture: Image.Image, drawn: Image.Image) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the changed pixels; fails when they do not fill it."""
    mask = changed(picture, drawn) > 0
    ys, xs = np.nonzero(mask)
    box = (int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1)
    assert mask[box[1] : box[3], box[0] : box[2]].all()
    return box


# (picture's size, region of a 4 x 4 grid, hot (row, column), the pixels it must cover)
PLACES = {
    "square, whole": ((80, 80), WHOLE, (1, 2), (40, 20, 60, 40)),
    "wide, whole": ((200, 100), WHOLE, (1, 2), (100, 25, 150, 50)),
    "tall, whole": ((100, 200), WHOLE, (1, 2), (50, 50, 75, 100)),
    "wide, centre crop": ((200, 100), (0.25, 0.0, 0.75, 1.0), (0, 3), (125, 0, 150, 25)),
    "tall, centre crop": ((100, 200), (0.0, 0.25, 1.0, 0.75), (3, 0), (0, 125, 25, 150)),
    "wide, padded": ((200, 100), (0.0, -0.5, 1.0, 1.5), (1, 0), (0, 0, 50, 50)),
    "tall, padded": ((100, 200), (-0.5, 0.0, 1.5, 1.0), (2, 2), (50, 100, 100, 150)),
    "a tile": ((80, 80), (0.5, 0.5, 1.0, 1.0), (0, 0), (40, 40, 50, 50)),
}


@pytest.mark.parametrize(("size", "region", "hot", "expected"), PLACES.values(), ids=PLACES)
def test_hot_patch_covers_its_pixels(
    size: tuple[int, int], region: Region, hot: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    """In patch mode one hot patch changes exactly its own pixels, whatever the processor cropped or padded."""
    picture = grey(*size)
    drawn = overlay(picture, one_hot(4, 4, *hot), region, patches=True)
    assert expected == touched_box(picture, drawn)
    assert picture.size == drawn.size


@pytest.mark.parametrize(("size", "region", "hot", "expected"), PLACES.values(), ids=PLACES)
def test_smooth_surface_keeps_the_place(
    size: tuple[int, int], region: Region, hot: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    """The smooth surface is strongest on the hot patch and does not wander to its neighbours."""
    picture = grey(*size)
    moved = changed(picture, overlay(picture, one_hot(4, 4, *hot), region))
    left, top, right, bottom = expected
    assert moved[top:bottom, left:right].sum() > 0.6 * moved.sum()
    y, x = np.unravel_index(np.argmax(moved), moved.shape)
    assert left <= x < right
    assert top <= y < bottom


@pytest.mark.parametrize(
    ("size", "region", "expected"),
    [
        ((120, 120), WHOLE, (54.0, 42.0)),
        ((200, 100), (0.25, 0.0, 0.75, 1.0), (95.0, 35.0)),
        ((200, 100), (0.0, -0.5, 1.0, 1.5), (90.0, 20.0)),
    ],
)
def test_smooth_centre_of_mass(size: tuple[int, int], region: Region, expected: tuple[float, float]) -> None:
    """An inner hot patch is drawn smoothly around its own centre, to within a pixel."""
    picture = grey(*size)
    moved = changed(picture, overlay(picture, one_hot(10, 10, 3, 4), region))
    ys, xs = np.mgrid[: size[1], : size[0]] + 0.5
    assert expected == pytest.approx(((moved * xs).sum() / moved.sum(), (moved * ys).sum() / moved.sum()), abs=1.0)


def test_outside_of_the_region_is_untouched() -> None:
    """What a centre crop cut away is shown as it is, even under a map that is hot everywhere."""
    picture = grey(200, 100)
    for patches in (True, False):
        drawn = overlay(picture, np.ones((3, 3)), (0.25, 0.0, 0.75, 1.0), patches=patches)
        assert touched_box(picture, drawn) == (50, 0, 150, 100)


def test_cover_is_opacity_times_relevance() -> None:
    """A patch of relevance r covers the picture by opacity x r with the colour of r."""
    drawn = overlay(grey(20, 10), np.array([[0.5, 1.0]]), opacity=0.8, patches=True)
    for x, relevance in ((4, 0.5), (14, 1.0)):
        color = colors(np.array([relevance], dtype=np.float32))[0]
        expected = GREY + 0.8 * relevance * (color - GREY)
        assert np.rint(expected).astype(int).tolist() == list(drawn.getpixel((x, 5)))


def test_no_relevance_or_no_opacity_leaves_the_picture() -> None:
    """A map of zeros, and any map at opacity 0, give the picture back."""
    picture = Image.effect_noise((30, 20), 60).convert("RGB")
    for values, opacity in ((np.zeros((2, 2)), 1.0), (np.ones((2, 2)), 0.0)):
        assert picture.tobytes() == overlay(picture, values, opacity=opacity).tobytes()


def test_scale_of_the_picture_stretches_a_weak_map() -> None:
    """Scale "picture" draws a weak map like its stretched form; "fixed" keeps it weak; a flat map shows nothing."""
    picture = grey(40, 40)
    weak = one_hot(4, 4, 1, 1) * 0.1 + 0.05
    stretched = overlay(picture, weak, scale="picture", patches=True)
    assert overlay(picture, one_hot(4, 4, 1, 1), patches=True).tobytes() == stretched.tobytes()
    assert changed(picture, overlay(picture, weak, patches=True)).max() < changed(picture, stretched).max()
    assert picture.tobytes() == overlay(picture, np.full((4, 4), 0.4), scale="picture").tobytes()


def test_any_mode_and_broken_values() -> None:
    """Grey, palette and transparent pictures work, and values that are no numbers count as 0."""
    for mode in ("L", "P", "RGBA", "1"):
        drawn = overlay(Image.new(mode, (8, 8)), np.array([[np.nan, np.inf], [-1.0, 2.0]]), patches=True, opacity=1.0)
        assert (drawn.mode, drawn.size) == ("RGB", (8, 8))
        assert [drawn.getpixel(at) for at in ((1, 1), (5, 1), (1, 5))] == [(0, 0, 0), (0, 0, 0), (0, 0, 0)]
        assert drawn.getpixel((5, 5)) == (252, 255, 164)


# --- outline -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "region", "hot", "expected"), PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("patches", [True, False])
def test_outline_lies_just_inside_of_its_patches(
    size: tuple[int, int], region: Region, hot: tuple[int, int], expected: tuple[int, int, int, int], patches: bool
) -> None:
    """The line around a patch is a dark pixel and within it a light one, on the patch's own edge and nowhere else."""
    picture = grey(*size)
    drawn = overlay(picture, one_hot(4, 4, *hot), region, opacity=0.0, patches=patches, outline=0.5)
    left, top, right, bottom = expected
    line = np.full((bottom - top, right - left), GREY)
    line[:], line[1:-1, 1:-1], line[2:-2, 2:-2] = 20, 255, GREY
    wanted = np.full((size[1], size[0]), GREY)
    wanted[top:bottom, left:right] = line
    assert (np.asarray(drawn) == wanted[..., None]).all()


def test_outline_goes_around_all_patches_together() -> None:
    """Patches that touch have one line around them all, and none between them."""
    values = one_hot(4, 4, 1, 1) + one_hot(4, 4, 1, 2)
    drawn = np.asarray(overlay(grey(80, 80), values, opacity=0.0, outline=1.0))[..., 0]
    assert (drawn[20:40, 20:60] != GREY).sum() == 20 * 40 - 16 * 36
    assert (drawn[22:38, 22:58] == GREY).all()


def test_outline_is_of_the_relevance_itself() -> None:
    """A patch of exactly the threshold is inside; opacity and stretched colours move no line; none above draws none."""
    picture, values = grey(80, 80), one_hot(4, 4, 2, 2) * 0.25
    for scale in ("fixed", "picture"):
        drawn = overlay(picture, values, opacity=0.0, scale=scale, outline=0.25)  # type: ignore[arg-type]
        assert touched(picture, drawn) == (40, 40, 60, 60)
    assert picture.tobytes() == overlay(picture, values, opacity=0.0, outline=0.26).tobytes()


def test_outline_is_wider_on_a_larger_picture() -> None:
    """On a picture of many pixels the line is as easy to see."""
    drawn = np.asarray(overlay(grey(900, 900), np.ones((1, 1)), opacity=0.0, outline=0.5))[450, :, 0]
    assert drawn[:6].tolist() == [20, 20, 255, 255, GREY, GREY]


def touched(picture: Image.Image, drawn: Image.Image) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero(changed(picture, drawn))
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


@pytest.mark.parametrize("outline", [-0.1, 1.1, float("nan")])
def test_impossible_outline_is_named(outline: float) -> None:
    """A relevance that no patch can have is refused with a sentence."""
    with pytest.raises(DataError, match=r"outline's relevance must lie in 0\.\.1"):
        overlay(grey(8, 8), np.ones((2, 2)), outline=outline)


@pytest.mark.parametrize(
    ("values", "region", "opacity", "said"),
    [
        (np.ones(4), WHOLE, 0.5, "rows and columns"),
        (np.ones((0, 4)), WHOLE, 0.5, "rows and columns"),
        (np.ones((2, 2)), (0.5, 0.0, 0.5, 1.0), 0.5, "empty"),
        (np.ones((2, 2)), (0.0, 0.0, float("nan"), 1.0), 0.5, "empty"),
        (np.ones((2, 2)), WHOLE, 1.5, "0..1"),
    ],
)
def test_bad_input_is_named(values: np.ndarray, region: Region, opacity: float, said: str) -> None:
    """What cannot be drawn is refused with a sentence."""
    with pytest.raises(DataError, match=said):
        overlay(grey(8, 8), values, region, opacity=opacity)


def test_ramp_is_ordered_by_lightness() -> None:
    """More relevance is lighter, step by step, so that the order does not depend on seeing colours."""
    light = colors(np.linspace(0, 1, 101, dtype=np.float32)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > 0).all()
    assert legend(64, 5).size == (64, 5)
