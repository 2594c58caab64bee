"""The pictures of a case with their heatmaps, above the controls.

A fragment: moving a slider draws the pictures again and asks the store nothing.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
import streamlit as st
from PIL import Image, ImageDraw

from fastrm_monitor.dashboard import views
from fastrm_monitor.dashboard.drawing import Drawing, chosen, controls
from fastrm_monitor.dashboard.queries import CaseView, PictureView
from fastrm_monitor.errors import DataError
from fastrm_monitor.overlay import RAMP, Scale, overlay
from fastrm_monitor.records.images import MOST_PIXELS, unpack_map
from fastrm_monitor.types import WHOLE, Region, RelevanceMap

_FORMATS = ("JPEG", "PNG", "WEBP")
_PLAIN = (112, 118, 130)  # in place of a picture that is not there
GAP = 16
"""Pixels between two pictures side by side."""
_MOST_CELLS = 4096  # patches that can be pointed at; more would make the page slow
_KEPT = 32  # drawn pictures, a third of a megabyte each


@st.fragment
def panel(view: CaseView, *, room: tuple[int, int], every: bool = False) -> None:
    """The picture with its heatmap, above the controls.

    Args:
        view: the case.
        room: (width, height) in pixels that a picture may take on the page.
        every: show all pictures of the case below each other, not one at a time.
    """
    if not view.pictures:
        views.empty("image_not_supported", "No picture", "The case was stored without pictures and maps.")
        return
    numbers = range(len(view.pictures))
    if len(view.pictures) > 1 and not every:
        numbers = range(_choose(len(view.pictures), view.case_id), len(view.pictures))[:1]
    drawing = chosen()
    with st.container(key="frm-pictures", gap="small"):
        for number in numbers:
            _one(view.pictures[number], number, len(view.pictures), room, drawing)
    controls(drawing)


def _choose(count: int, case_id: str) -> int:
    options = list(range(count))
    picked = st.segmented_control(
        "Picture",
        options,
        default=0,
        required=True,
        format_func=lambda number: f"Picture {number + 1} of {count}",
        key=f"picture-{case_id}",
        label_visibility="collapsed",
    )
    return picked or 0


def _one(picture: PictureView, number: int, count: int, room: tuple[int, int], drawing: Drawing) -> None:
    try:
        grid = map_of(picture)
        if drawing.heatmap and drawing.beside:
            half = ((room[0] - GAP) // 2, room[1])
            with st.container(horizontal=True, gap="small"):
                show(picture, grid, number, count, half, Drawing(heatmap=False), f"bare-{number}")
                missing = show(picture, grid, number, count, half, drawing, f"heat-{number}")
        else:
            missing = show(picture, grid, number, count, room, drawing, f"heat-{number}")
    except DataError as error:
        views.notice("error", str(error))
        return
    if missing:
        st.html(f'<p class="frm-quiet">{missing}</p>')
    if drawing.heatmap:
        _legend(grid.values, drawing.scale)


def map_of(picture: PictureView) -> RelevanceMap:
    """The stored map of a picture.

    Raises:
        DataError: it does not fit its grid.
    """
    return RelevanceMap(unpack_map(picture.relevance, picture.rows, picture.columns), picture.region)


def show(
    picture: PictureView,
    grid: RelevanceMap,
    number: int,
    count: int,
    room: tuple[int, int],
    drawing: Drawing,
    key: str,
    whose: str = "its",
) -> str:
    """Show a picture, with a map over it whose patches say their values when they are pointed at or gone to.

    Args:
        picture: to be shown.
        grid: the map; the picture's own, or another one.
        number: of the picture in its case, from 0.
        count: of the case's pictures.
        room: (width, height) in pixels that it may take.
        drawing: how the map is drawn.
        key: of the element, unlike any other on the page.
        whose: heatmap it is, for the description.

    Returns:
        Why there is a grey field in place of the picture; "" when there is none.

    Raises:
        DataError: the map cannot be drawn.
    """
    found = _drawn(picture, grid.values.tobytes(), grid.values.shape, grid.region, room, drawing)
    alt = describe(grid, number, count, drawing.heatmap, whose)
    with st.container(key=f"frm-hover-{key}", width=found.size[0]):
        st.image(found.content, width=found.size[0], output_format="PNG", alt=alt)
        if drawing.heatmap and grid.values.size <= _MOST_CELLS:
            st.html(values(grid, found.size))
    return found.missing


def ahead(view: CaseView | None, *, room: tuple[int, int]) -> None:
    """Draw the picture of the case that comes next, out of sight, so that it is in the browser when it is asked for.

    Args:
        view: the case; None, or one without pictures, makes nothing ready.
        room: (width, height) in pixels, as for `panel`.
    """
    drawing = chosen()
    with st.container(key="frm-ahead"):
        if view is not None and view.pictures and not (drawing.heatmap and drawing.beside):
            with suppress(DataError):  # it is said when the case is looked at
                grid = map_of(view.pictures[0])
                packed = grid.values.tobytes()
                found = _drawn(view.pictures[0], packed, grid.values.shape, grid.region, room, drawing)
                st.image(found.content, width=found.size[0], output_format="PNG", alt="")


@dataclass(frozen=True)
class Drawn:
    """A picture as the page shows it.

    Attributes:
        content: PNG; JPEG would blur the patches' edges.
        size: (width, height) in pixels.
        missing: why there is a grey field in its place; "" when there is none.
    """

    content: bytes
    size: tuple[int, int]
    missing: str


@lru_cache(maxsize=_KEPT)
def _drawn(
    picture: PictureView,
    relevance: bytes,
    shape: tuple[int, ...],
    region: Region,
    room: tuple[int, int],
    drawing: Drawing,
) -> Drawn:
    """A picture with a map, of float32 as bytes. Kept, so that the next case's is there before it is asked for."""
    drawn, missing = canvas(picture, room)
    if drawing.heatmap:
        drawn = overlay(
            drawn,
            np.frombuffer(relevance, np.float32).reshape(shape),
            region,
            opacity=drawing.opacity,
            patches=drawing.patches,
            scale=drawing.scale,
            outline=drawing.outline,
        )
        drawn = _framed(drawn, region)
    buffer = BytesIO()
    drawn.save(buffer, "PNG", compress_level=1)  # a third of the time that the usual 6 takes, an eighth more bytes
    return Drawn(buffer.getvalue(), drawn.size, missing)


def values(grid: RelevanceMap, size: tuple[int, int]) -> str:
    """HTML to lie exactly over a picture: says the value of the patch that is pointed at, or gone to by arrow keys.

    One element, whose script (`scripts.POINTING`) knows the patches' edges in percent and their values in hundredths.

    Args:
        grid: the map.
        size: (width, height) of the picture in pixels; narrower where the page has less room.

    Returns:
        "" when no patch lies on the picture.
    """
    rows, columns = grid.values.shape
    left, top, right, bottom = grid.region
    x, y = np.linspace(left, right, columns + 1).clip(0, 1), np.linspace(top, bottom, rows + 1).clip(0, 1)
    across, down = np.flatnonzero(np.diff(x) > 0), np.flatnonzero(np.diff(y) > 0)
    if not (len(across) and len(down)):
        return ""
    x, y = x[[*across, across[-1] + 1]], y[[*down, down[-1] + 1]]
    hundredths = np.rint(100 * grid.values[np.ix_(down, across)]).astype(int)
    place = f"inset:{100 * y[0]:.4f}% {100 * (1 - x[-1]):.4f}% {100 * (1 - y[-1]):.4f}% {100 * x[0]:.4f}%"
    inside = " ".join(
        f'data-{name}="{" ".join(f"{100 * share:.5g}" for share in (edges - edges[0]) / (edges[-1] - edges[0]))}"'
        for name, edges in (("x", x), ("y", y))
    )
    shape = f"width:min(100%,{size[0]}px);aspect-ratio:{size[0]}/{size[1]}"
    return (
        f'<div class="frm-over" style="{shape}"><div class="frm-grid" tabindex="0" role="application" '
        f'aria-label="Relevance of each patch; the arrow keys go from patch to patch" style="{place}" {inside} '
        f'data-values="{" ".join(map(str, hundredths.ravel()))}"><i hidden></i><output></output></div></div>'
    )


def canvas(picture: PictureView, room: tuple[int, int]) -> tuple[Image.Image, str]:
    """The picture fitted into `room` pixels, and why there is a grey field in its place ("" when there is none)."""
    missing = ""
    if picture.content is None:
        missing = "The picture was not stored (FASTRM_PICTURES), only its map."
        found = None
    else:
        found = decode(picture.content)
        missing = "" if found else "The stored picture cannot be read; only its map is shown."
    if found is None:
        aspect = (picture.width or picture.columns, picture.height or picture.rows)
        found = Image.new("RGB", aspect if max(aspect) <= max(room) else _fit(aspect, room), _PLAIN)
    size = _fit(found.size, room)
    # Pixels of a small picture stay pixels when it is made much larger; a blurred one would look like a bad photograph.
    small = max(size) >= 4 * max(found.size)
    return found.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS), missing


def decode(content: bytes) -> Image.Image | None:
    """A stored picture; None when it cannot be read."""
    try:
        with Image.open(BytesIO(content), formats=_FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                return None
            return opened.convert("RGB")
    except Exception:  # decoders meet damage with errors of every kind
        return None


def _fit(size: tuple[int, int], room: tuple[int, int]) -> tuple[int, int]:
    share = min(room[0] / size[0], room[1] / size[1])
    return max(round(size[0] * share), 1), max(round(size[1] * share), 1)


def _framed(picture: Image.Image, region: tuple[float, float, float, float]) -> Image.Image:
    """With a thin frame around what the model saw, where it did not see all."""
    left, top = max(region[0], 0.0) * picture.width, max(region[1], 0.0) * picture.height
    right, bottom = min(region[2], 1.0) * picture.width - 1, min(region[3], 1.0) * picture.height - 1
    if region != WHOLE and (right - left < picture.width - 2 or bottom - top < picture.height - 2):
        draw = ImageDraw.Draw(picture)
        draw.rectangle((left, top, right, bottom), outline=(255, 255, 255))
        draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=(20, 20, 20))
    return picture


def describe(grid: RelevanceMap, number: int, count: int, heatmap: bool, whose: str = "its") -> str:
    """What a reader who does not see the picture should know of it."""
    name = "The picture" if count == 1 else f"Picture {number + 1} of {count}"
    if not heatmap:
        return f"{name} without its heatmap."
    values, (left, top, right, bottom) = grid.values, grid.region
    row, column = np.unravel_index(int(np.argmax(values)), values.shape)
    x = left + (right - left) * (int(column) + 0.5) / values.shape[1]
    y = top + (bottom - top) * (int(row) + 0.5) / values.shape[0]
    where = f"{_third(y, 'top', 'middle', 'bottom')} {_third(x, 'left', 'centre', 'right')}"
    return f"{name} with {whose} heatmap: relevance is highest, {float(values.max()):.2f}, at the {where}."


def _third(place: float, low: str, middle: str, high: str) -> str:
    return low if place < 1 / 3 else middle if place < 2 / 3 else high


def _legend(values: np.ndarray, scale: Scale) -> None:
    low, high = (0.0, 1.0) if scale == "fixed" else (float(values.min()), float(values.max()))
    st.html(
        f'<div class="frm-legend"><span>{low:.2f}</span>'
        f'<span class="frm-ramp" style="background:linear-gradient(90deg,{",".join(RAMP)})"></span>'
        f"<span>{high:.2f}</span><span>probability that the answer rests on the patch</span></div>"
    )
