"""The picture of a case with its heatmap, and the controls of the heatmap.

A fragment: moving the slider draws the picture again and asks the store nothing.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
import streamlit as st
from PIL import Image, ImageDraw

from fastrm_monitor.dashboard import views
from fastrm_monitor.dashboard.queries import CaseView, PictureView
from fastrm_monitor.errors import DataError
from fastrm_monitor.overlay import RAMP, Scale, overlay
from fastrm_monitor.records.images import MOST_PIXELS, unpack_map
from fastrm_monitor.types import WHOLE

_FORMATS = ("JPEG", "PNG", "WEBP")
_PLAIN = (112, 118, 130)  # in place of a picture that is not there


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
    chosen = range(len(view.pictures))
    if len(view.pictures) > 1 and not every:
        chosen = range(_choose(len(view.pictures), view.case_id), len(view.pictures))[:1]
    shown = st.session_state.get("show_heatmap", True)
    slot = st.container(key="frm-pictures", gap="small")
    opacity, patches, scale = _controls(shown, room[1])
    for number in chosen:
        with slot:
            _one(view.pictures[number], number, len(view.pictures), room, opacity if shown else None, patches, scale)


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


def _flip() -> None:
    st.session_state["show_heatmap"] = not st.session_state.get("show_heatmap", True)


def _controls(shown: bool, width: int) -> tuple[float, bool, Scale]:
    with st.container(horizontal=True, vertical_alignment="center", gap="medium", key="frm-controls"):
        st.button(
            "Hide heatmap" if shown else "Show heatmap",
            icon=":material/visibility_off:" if shown else ":material/visibility:",
            key="toggle-heatmap",
            shortcut="H",
            on_click=_flip,
            width=170,
        )
        patches = st.toggle(
            "Patches",
            key="patches",
            disabled=not shown,
            persist_state="session",
            help="The patches as the model has them.",
        )
        stretched = st.toggle(
            "Stretch",
            key="stretch",
            disabled=not shown,
            persist_state="session",
            help="Colours from this picture's lowest to its highest relevance. It shows the shape of a weak map and "
            "hides that it is weak.",
        )
    opacity = st.slider(
        "Opacity", 0.0, 1.0, 0.6, 0.05, key="opacity", disabled=not shown, persist_state="session", width=width
    )
    return float(opacity), bool(patches), "picture" if stretched else "fixed"


def _one(
    picture: PictureView,
    number: int,
    count: int,
    room: tuple[int, int],
    opacity: float | None,
    patches: bool,
    scale: Scale,
) -> None:
    try:
        values = unpack_map(picture.relevance, picture.rows, picture.columns)
        drawn, missing = canvas(picture, room)
        if opacity is not None:
            drawn = overlay(drawn, values, picture.region, opacity=opacity, patches=patches, scale=scale)
            drawn = _framed(drawn, picture.region)
    except DataError as error:
        views.notice("error", str(error))
        return
    alt = describe(values, picture, number, count, opacity is not None)
    st.image(drawn, width=drawn.width, output_format="PNG", alt=alt)  # JPEG would blur the patches' edges
    if missing:
        st.html(f'<p class="frm-quiet">{missing}</p>')
    if opacity is not None:
        _legend(values, scale)


def canvas(picture: PictureView, room: tuple[int, int]) -> tuple[Image.Image, str]:
    """The picture fitted into `room` pixels, and why there is a grey field in its place ("" when there is none)."""
    missing = ""
    if picture.content is None:
        missing = "The picture was not stored (FASTRM_PICTURES), only its map."
        found = None
    else:
        found = _decode(picture.content)
        missing = "" if found else "The stored picture cannot be read; only its map is shown."
    if found is None:
        aspect = (picture.width or picture.columns, picture.height or picture.rows)
        found = Image.new("RGB", aspect if max(aspect) <= max(room) else _fit(aspect, room), _PLAIN)
    size = _fit(found.size, room)
    # Pixels of a small picture stay pixels when it is made much larger; a blurred one would look like a bad photograph.
    small = max(size) >= 4 * max(found.size)
    return found.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS), missing


def _decode(content: bytes) -> Image.Image | None:
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


def describe(values: np.ndarray, picture: PictureView, number: int, count: int, heatmap: bool) -> str:
    """What a reader who does not see the picture should know of it."""
    name = "The picture" if count == 1 else f"Picture {number + 1} of {count}"
    if not heatmap:
        return f"{name} without its heatmap."
    left, top, right, bottom = picture.region
    row, column = np.unravel_index(int(np.argmax(values)), values.shape)
    x = left + (right - left) * (int(column) + 0.5) / values.shape[1]
    y = top + (bottom - top) * (int(row) + 0.5) / values.shape[0]
    where = f"{_third(y, 'top', 'middle', 'bottom')} {_third(x, 'left', 'centre', 'right')}"
    return f"{name} with its heatmap: relevance is highest, {float(values.max()):.2f}, at the {where}."


def _third(place: float, low: str, middle: str, high: str) -> str:
    return low if place < 1 / 3 else middle if place < 2 / 3 else high


def _legend(values: np.ndarray, scale: Scale) -> None:
    low, high = (0.0, 1.0) if scale == "fixed" else (float(values.min()), float(values.max()))
    st.html(
        f'<div class="frm-legend"><span>{low:.2f}</span>'
        f'<span class="frm-ramp" style="background:linear-gradient(90deg,{",".join(RAMP)})"></span>'
        f"<span>{high:.2f}</span><span>probability that the answer rests on the patch</span></div>"
    )
