"""A relevance map laid over its picture: the one drawing that API, command line and dashboard share.

The patch grid is placed by its region, so cropping and padding are undone here and nowhere else: every pixel of the
picture asks the grid for its own value, and pixels that the model never saw stay as they are. Knows numpy and Pillow,
not models or stores.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

from fastrm_monitor.errors import DataError
from fastrm_monitor.types import WHOLE, Region

Scale = Literal["fixed", "picture"]

# From dark violet over magenta and orange to pale yellow, evenly spaced. Lightness rises all the way, so the order can
# be read without colour vision and in print.
RAMP = ("#1b0c41", "#4a0c6b", "#781c6d", "#a52c60", "#cf4446", "#ed6925", "#fb9b06", "#f7d13d", "#fcffa4")
"""Colours of relevance 0 to 1, evenly spaced."""

_EDGE = (20.0, 255.0)  # grey of the outline's two lines, from outside to inside

_POINTS = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in RAMP], dtype=np.float32)


def overlay(
    picture: Image.Image,
    values: np.ndarray,
    region: Region = WHOLE,
    *,
    opacity: float = 0.6,
    patches: bool = False,
    scale: Scale = "fixed",
    outline: float | None = None,
) -> Image.Image:
    """Draw a relevance map over its picture.

    A pixel's cover is `opacity` times its relevance: where the answer rests on nothing, the picture shows.

    Args:
        picture: of any size and mode.
        values: float (gh, gw) in 0..1, row 0 on top; values that are not finite count as 0.
        region: the part of the picture that the grid covers, as fractions of its width and height; may be smaller
            than the picture (centre crop) or reach beyond it (padding).
        opacity: cover of a patch of relevance 1, in 0..1.
        patches: True draws the patches as the model has them, False a smooth surface through their centres.
        scale: "fixed" draws 0..1 as it is, so that pictures can be compared; "picture" stretches this map's own
            smallest and largest value to 0..1, which shows the shape of a weak map and hides that it is weak.
        outline: a line around the patches of at least this relevance, just inside of their edges, whatever the scale
            and the opacity; None draws none.

    Returns:
        An RGB picture of the size of `picture`.

    Raises:
        DataError: the map is not a grid, the region is empty, or `opacity` or `outline` is not in 0..1.
    """
    grid = np.asarray(values, dtype=np.float32)
    if grid.ndim != 2 or grid.size == 0:
        raise DataError(f"A relevance map is a grid of rows and columns, not an array of shape {grid.shape}.")
    left, top, right, bottom = region
    if not (left < right and top < bottom):
        raise DataError(
            f"The region {region} is empty: give (left, top, right, bottom) with left < right, top < bottom."
        )
    if not 0 <= opacity <= 1:
        raise DataError(f"The opacity must lie in 0..1, not {opacity}.")
    if outline is not None and not 0 <= outline <= 1:
        raise DataError(f"The outline's relevance must lie in 0..1, not {outline}.")

    base = np.asarray(picture.convert("RGB"), dtype=np.float32)  # (h, w, 3)
    height, width = base.shape[:2]
    down, seen_y = _weights(height, top, bottom, grid.shape[0], patches)  # (h, gh), (h,)
    across, seen_x = _weights(width, left, right, grid.shape[1], patches)  # (w, gw), (w,)
    # The smooth surface may swing a little beyond its patches; clipping keeps it from showing what no patch has.
    relevance = np.clip(down @ _scaled(grid, scale) @ across.T, 0.0, 1.0)  # (h, w)
    cover = (opacity * relevance * (seen_y[:, None] & seen_x[None, :]))[..., None]  # (h, w, 1)
    drawn = base + cover * (colors(relevance) - base)
    if outline is not None:
        rows, seen_y = _cells(height, top, bottom, grid.shape[0])
        columns, seen_x = _cells(width, left, right, grid.shape[1])
        above = (_scaled(grid, "fixed") >= outline)[rows][:, columns] & seen_y[:, None] & seen_x[None, :]  # (h, w)
        _draw_edge(drawn, above)
    return Image.fromarray(np.rint(drawn).astype(np.uint8))


def legend(width: int = 256, height: int = 12) -> Image.Image:
    """The colours of relevance 0 (left) to 1 (right) as an RGB picture of the given size in pixels."""
    row = colors(np.linspace(0, 1, width, dtype=np.float32))
    return Image.fromarray(np.rint(np.broadcast_to(row, (height, width, 3))).astype(np.uint8))


def colors(relevance: np.ndarray) -> np.ndarray:
    """The colours of relevances in 0..1: float32 (..., 3) in 0..255 for values (...)."""
    place = relevance * (len(_POINTS) - 1)
    lower = np.clip(place.astype(np.intp), 0, len(_POINTS) - 2)
    share = (place - lower)[..., None]
    mixed: np.ndarray = _POINTS[lower] * (1 - share) + _POINTS[lower + 1] * share
    return mixed


def _scaled(grid: np.ndarray, scale: Scale) -> np.ndarray:
    grid = np.clip(np.nan_to_num(grid, nan=0.0, posinf=0.0, neginf=0.0), 0.0, 1.0)
    if scale == "fixed":
        return grid
    low, high = float(grid.min()), float(grid.max())
    return (grid - low) / (high - low) if high > low else np.zeros_like(grid)


def _draw_edge(drawn: np.ndarray, inside: np.ndarray) -> None:
    """Draw a dark line and within it a light one along the edge of an area, so that it shows on any picture.

    Args:
        drawn: float (h, w, 3), changed in place.
        inside: bool (h, w), the area.
    """
    width = max(round(max(inside.shape) / 400), 1)
    for color in _EDGE:
        for _ in range(width):
            shrunk = inside.copy()
            padded = np.pad(inside, 1)  # beyond the picture nothing is inside
            for shifted in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
                shrunk &= shifted
            drawn[inside & ~shrunk] = color
            inside = shrunk


def _place(pixels: int, start: float, end: float, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel along one side lies, in cells: 0 is the grid's edge, 0.5 the first cell's centre; if seen."""
    centers = (np.arange(pixels) + 0.5) / pixels
    place = (centers - start) / (end - start) * cells
    return place, (place >= 0) & (place < cells)


def _cells(pixels: int, start: float, end: float, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """The cell of each pixel along one side, int (pixels,), the nearest one beyond the grid; whether it is seen."""
    place, seen = _place(pixels, start, end, cells)
    return np.clip(np.floor(place).astype(np.intp), 0, cells - 1), seen


def _weights(pixels: int, start: float, end: float, cells: int, patches: bool) -> tuple[np.ndarray, np.ndarray]:
    """How much each cell counts for each pixel along one side, float32 (pixels, cells); whether it is seen."""
    weights = np.zeros((pixels, cells), dtype=np.float32)
    rows = np.arange(pixels)
    if patches:
        nearest, seen = _cells(pixels, start, end, cells)
        weights[rows, nearest] = 1.0
        return weights, seen
    place, seen = _place(pixels, start, end, cells)
    # Catmull-Rom: bicubic, and exact at the centres. Beyond the outermost centres the edge cells go on.
    place = np.clip(place - 0.5, 0, cells - 1)
    cell = np.floor(place).astype(np.intp)
    t = place - cell
    shares = (
        (-(t**3) + 2 * t**2 - t) / 2,
        (3 * t**3 - 5 * t**2 + 2) / 2,
        (-3 * t**3 + 4 * t**2 + t) / 2,
        (t**3 - t**2) / 2,
    )
    for offset, share in enumerate(shares, start=-1):
        np.add.at(weights, (rows, np.clip(cell + offset, 0, cells - 1)), share)
    return weights, seen
