"""The picture of a case: fitted without distortion, honest about what is missing, with the heatmap where it belongs."""

from __future__ import annotations

import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fastrm_monitor.dashboard import pictures
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

# (region of the 4 x 4 grid, inset from top, right, bottom, left in percent, rows and columns that show something)
OVER = {
    "whole": (WHOLE, (0, 0, 0, 0), (4, 4)),
    "centre crop": ((0.25, 0.0, 0.75, 1.0), (0, 25, 0, 25), (4, 4)),
    "padded above and below": ((0.0, -0.5, 1.0, 1.5), (0, 0, 0, 0), (2, 4)),
    "cut in the middle of patches": ((0.0, -0.125, 1.0, 0.875), (0, 0, 12.5, 0), (4, 4)),
    "beside the picture": ((1.5, 0.0, 2.5, 1.0), (0, 0, 0, 100), (4, 0)),
}


@pytest.mark.parametrize(("region", "inset", "count"), OVER.values(), ids=OVER)
def test_cells_lie_over_what_they_show(
    region: Region, inset: tuple[float, float, float, float], count: tuple[int, int]
) -> None:
    """The cells cover the part of the grid that lies on the picture; patches on padding have none."""
    html = pictures.cells(RelevanceMap(np.zeros((4, 4), np.float32), region), (440, 220))
    assert "width:min(100%,440px);aspect-ratio:440/220" in html
    found = re.search(r"inset:([\d.]+)% ([\d.]+)% ([\d.]+)% ([\d.]+)%;grid-template:([^\"]*)/([^\"]*)\"", html)
    assert found is not None
    assert [float(edge) for edge in found.groups()[:4]] == pytest.approx(inset) or count[1] == 0
    assert tuple(len(tracks.split()) for tracks in found.groups()[4:]) == count
    assert html.count("<i ") == count[0] * count[1]


def test_cells_of_cut_patches_are_smaller() -> None:
    """A patch that the picture's edge cuts through takes what is left of it."""
    html = pictures.cells(RelevanceMap(np.zeros((4, 4), np.float32), (0.0, -0.125, 1.0, 0.875)), (80, 80))
    rows, columns = re.search(r"grid-template:([^\"]*)/([^\"]*)\"", html).groups()  # type: ignore[union-attr]
    assert rows == "12.5000fr 25.0000fr 25.0000fr 25.0000fr"
    assert columns == " ".join(["25.0000fr"] * 4)


def test_cells_say_their_values_row_by_row() -> None:
    """Values are those of the map, rounded, in reading order."""
    html = pictures.cells(RelevanceMap(np.array([[0.0, 0.25], [0.999, 0.5]], np.float32)), (8, 8))
    assert re.findall(r'data-value="([^"]*)"', html) == ["0.00", "0.25", "1.00", "0.50"]
