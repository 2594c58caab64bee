"""The picture of a case: fitted without distortion, honest about what is missing, with the heatmap where it belongs."""

from __future__ import annotations

import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fastrm_monitor.dashboard import pictures
from fastrm_monitor.dashboard.drawing import Drawing
from fastrm_monitor.dashboard.queries import PictureView
from fastrm_monitor.types import WHOLE, Region, RelevanceMap

ROOM = (480, 440)
GREY = (112, 118, 130)


def encoded(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def stored(
    content: bytes | None, size: tuple[int | None, int | None] = (64, 64), region: Region = WHOLE
) -> PictureView:
    return PictureView(*size, content=content, rows=4, columns=4, relevance=b"\0" * 32, region=region)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), (440, 440)),
        ((512, 512), (440, 440)),
        ((512, 256), (480, 240)),
        ((100, 400), (110, 440)),
        ((3000, 1), (480, 1)),
        ((1, 3000), (1, 440)),
    ],
)
def test_picture_fits_its_room(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """A picture is as large as the room allows and keeps its shape, however small or narrow it is."""
    drawn, missing = pictures.canvas(stored(encoded(Image.new("RGB", size, (200, 10, 10)))), ROOM)
    assert (drawn.size, missing) == (expected, "")
    assert drawn.getpixel((0, 0)) == (200, 10, 10)


def test_small_picture_keeps_its_pixels() -> None:
    """A picture of a few pixels is shown as such, in its own colours and without a blur."""
    small = Image.new("RGB", (2, 1))
    small.putpixel((0, 0), (255, 0, 0))
    small.putpixel((1, 0), (0, 0, 255))
    drawn, _ = pictures.canvas(stored(encoded(small)), ROOM)
    assert drawn.size == (480, 240)
    assert drawn.getcolors() == [(240 * 240, (255, 0, 0)), (240 * 240, (0, 0, 255))]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_stored_kinds_are_shown(kind: str) -> None:
    """Whatever the store keeps pictures as can be shown."""
    drawn, missing = pictures.canvas(stored(encoded(Image.new("RGB", (64, 64), (200, 10, 10)), kind)), ROOM)
    assert missing == ""
    assert np.abs(np.asarray(drawn, int) - (200, 10, 10)).max() < 5


@pytest.mark.parametrize(
    ("size", "expected"), [((64, 64), (440, 440)), ((1000, 500), (480, 240)), ((None, None), (440, 440))]
)
def test_map_without_picture_keeps_the_shape(size: tuple[int | None, int | None], expected: tuple[int, int]) -> None:
    """Where no picture was stored a grey field of its shape takes the heatmap, and the page says why."""
    drawn, missing = pictures.canvas(stored(None, size), ROOM)
    assert drawn.size == expected
    assert drawn.getcolors() == [(expected[0] * expected[1], GREY)]
    assert missing == "The picture was not stored (FASTRM_PICTURES), only its map."


BROKEN = {
    "nothing": b"",
    "no picture": b"<script>alert(1)</script>",
    "truncated": encoded(Image.effect_noise((64, 64), 60))[:900],
    "a kind that is never stored": encoded(Image.new("RGB", (8, 8)), "GIF"),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_unreadable_picture_is_said(content: bytes) -> None:
    """A damaged picture, or one of a kind that is never stored, leaves the map and a sentence."""
    drawn, missing = pictures.canvas(stored(content), ROOM)
    assert drawn.getcolors() == [(440 * 440, GREY)]
    assert missing == "The stored picture cannot be read; only its map is shown."


def test_picture_too_large_to_decode_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture with more pixels than the store takes is not decoded."""
    monkeypatch.setattr(pictures, "MOST_PIXELS", 99)
    content = encoded(Image.new("RGB", (10, 10)))
    assert pictures.canvas(stored(content), ROOM)[1] != ""
    monkeypatch.setattr(pictures, "MOST_PIXELS", 100)
    assert pictures.canvas(stored(content), ROOM)[1] == ""


@pytest.mark.parametrize(
    ("hot", "region", "place"),
    [
        ((0, 0), WHOLE, "top left"),
        ((3, 3), WHOLE, "bottom right"),
        ((1, 2), WHOLE, "middle centre"),
        # The left edge of a centre crop is not the left edge of the picture.
        ((0, 0), (0.4, 0.0, 0.6, 1.0), "top centre"),
        ((3, 0), (0.0, 0.4, 1.0, 0.6), "middle left"),
    ],
)
def test_description_says_where_the_heat_is(hot: tuple[int, int], region: Region, place: str) -> None:
    """Who does not see the picture is told how strong and where in it the relevance is highest, crop undone."""
    values = np.full((4, 4), 0.1, np.float32)
    values[hot] = 0.75
    said = pictures.describe(RelevanceMap(values, region), 0, 1, heatmap=True)
    assert said == f"The picture with its heatmap: relevance is highest, 0.75, at the {place}."


def test_description_of_several_pictures() -> None:
    """Each of several pictures is named by its number, and a hidden heatmap is not described."""
    grid = RelevanceMap(np.zeros((4, 4), np.float32))
    assert pictures.describe(grid, 1, 3, heatmap=False) == "Picture 2 of 3 without its heatmap."


# --- values to be pointed at ---------------------------------------------------------------------------------------

# (region of the 4 x 4 grid, inset from top, right, bottom, left in percent, edges of rows and of columns in percent)
QUARTERS = [0, 25, 50, 75, 100]
OVER = {
    "whole": (WHOLE, (0, 0, 0, 0), QUARTERS, QUARTERS),
    "centre crop": ((0.25, 0.0, 0.75, 1.0), (0, 25, 0, 25), QUARTERS, QUARTERS),
    "padded above and below": ((0.0, -0.5, 1.0, 1.5), (0, 0, 0, 0), [0, 50, 100], QUARTERS),
    "cut in the middle of patches": (
        (0.0, -0.125, 1.0, 0.875),
        (0, 0, 12.5, 0),
        [0, 14.286, 42.857, 71.429, 100],
        QUARTERS,
    ),
}


def numbers(html: str, name: str) -> list[float]:
    (found,) = re.findall(rf'data-{name}="([^"]*)"', html)
    return [float(number) for number in found.split()]


@pytest.mark.parametrize(("region", "inset", "rows", "columns"), OVER.values(), ids=OVER)
def test_values_lie_over_what_they_are_of(
    region: Region, inset: tuple[float, ...], rows: list[float], columns: list[float]
) -> None:
    """They cover the part of the grid that lies on the picture; a patch cut by the picture's edge is smaller."""
    html = pictures.values(RelevanceMap(np.zeros((4, 4), np.float32), region), (440, 220))
    assert "width:min(100%,440px);aspect-ratio:440/220" in html
    found = re.search(r"inset:([\d.]+)% ([\d.]+)% ([\d.]+)% ([\d.]+)%", html)
    assert found is not None
    assert [float(edge) for edge in found.groups()] == pytest.approx(inset)
    assert numbers(html, "y") == rows
    assert numbers(html, "x") == columns
    assert len(numbers(html, "values")) == (len(rows) - 1) * (len(columns) - 1)


def test_values_beside_the_picture() -> None:
    """A grid that lies beside the picture says nothing on it."""
    assert pictures.values(RelevanceMap(np.zeros((4, 4), np.float32), (1.5, 0.0, 2.5, 1.0)), (440, 220)) == ""


def test_values_are_said_row_by_row() -> None:
    """Values are those of the map in hundredths, in reading order; patches on padding are left out."""
    html = pictures.values(RelevanceMap(np.array([[0.0, 0.25], [0.999, 0.5]], np.float32)), (8, 8))
    assert numbers(html, "values") == [0, 25, 100, 50]
    html = pictures.values(RelevanceMap(np.array([[0.1, 0.2], [0.3, 0.4]], np.float32), (0.0, -1.0, 1.0, 1.0)), (8, 8))
    assert numbers(html, "values") == [30, 40]


# --- the next case's picture ---------------------------------------------------------------------------------------


def test_picture_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was drawn ahead is not drawn again when its case is asked for; another drawing of it is."""
    drawn = []
    monkeypatch.setattr(pictures, "overlay", lambda picture, *_, **__: drawn.append(picture) or picture)
    pictures._drawn.cache_clear()
    content = encoded(Image.new("RGB", (8, 8), (200, 10, 10)))

    def draw(drawing: Drawing) -> pictures.Drawn:  # each time read from the store anew
        one = stored(bytes(bytearray(content)), (8, 8))
        return pictures._drawn(one, b"\0" * 64, (4, 4), WHOLE, ROOM, drawing)

    assert draw(Drawing()) == draw(Drawing())
    assert len(drawn) == 1
    draw(Drawing(patches=True))
    assert len(drawn) == 2
