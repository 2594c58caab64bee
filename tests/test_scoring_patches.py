"""Where image tokens lie on pictures: in the right order, on the right part, for any family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from fastrm_monitor.errors import ModelError
from fastrm_monitor.scoring import patches
from fastrm_monitor.scoring.patches import (
    FixedGridLayout,
    PatchGrid,
    PictureInput,
    layout_for,
    llava_layout,
    register_layout,
)
from fastrm_monitor.types import WHOLE, Region
from tests.tiny import tiny_model, tiny_processor, tiny_scorer

REGIONS: list[tuple[str, float, tuple[int, int], Region]] = [
    ("crop", 1.0, (100, 100), WHOLE),
    ("crop", 1.0, (200, 100), (0.25, 0.0, 0.75, 1.0)),
    ("crop", 1.0, (100, 400), (0.0, 0.375, 1.0, 0.625)),
    ("crop", 0.5, (100, 100), (0.25, 0.25, 0.75, 0.75)),
    ("crop", 0.5, (200, 100), (0.375, 0.25, 0.625, 0.75)),
    ("pad", 1.0, (100, 100), WHOLE),
    ("pad", 1.0, (200, 100), (0.0, -0.5, 1.0, 1.5)),
    ("pad", 1.0, (100, 400), (-1.5, 0.0, 2.5, 1.0)),
    ("squash", 1.0, (200, 100), WHOLE),
    ("squash", 1.0, (100, 400), WHOLE),
    ("squash", 0.5, (200, 100), (0.25, 0.25, 0.75, 0.75)),
]


@pytest.mark.parametrize(("fit", "scale", "size", "expected"), REGIONS)
def test_region(fit: str, scale: float, size: tuple[int, int], expected: Region) -> None:
    """What resizing, cropping and padding did is undone, for square, wide and tall pictures."""
    layout = FixedGridLayout(4, 2, 3, fit=fit, crop_scale=scale)
    (grid,) = layout.grids(6, [PictureInput(size)])
    assert grid.region == pytest.approx(expected)
    assert grid.tokens.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_class_token() -> None:
    """Where the class token is kept it takes a place among the tokens and none on the map."""
    layout = FixedGridLayout(4, 2, 2, leading=1)
    one, other = layout.grids(10, [])
    assert (one.length, one.region, other.region) == (5, WHOLE, WHOLE)
    assert one.arrange(np.array([9.0, 0.1, 0.2, 0.3, 0.4])).values.tolist() == [
        [pytest.approx(0.1), pytest.approx(0.2)],
        [pytest.approx(0.3), pytest.approx(0.4)],
    ]


@pytest.mark.parametrize("tokens", [3, 5, 63])
def test_not_whole_pictures(tokens: int) -> None:
    """A number of tokens that is no number of pictures is an error, never a map of part of one."""
    with pytest.raises(ModelError, match=rf"{tokens} image tokens, which is not a multiple of 4 \(2 x 2 patches"):
        FixedGridLayout(4, 2, 2).grids(tokens, [PictureInput((10, 10))])


def test_pictures_of_the_next_request() -> None:
    """Only the request's own pictures get grids, in order; a picture without a known size is taken whole."""
    known = [PictureInput((200, 100)), PictureInput(None), PictureInput((100, 200))]
    grids = FixedGridLayout(4, 2, 2).grids(8, known)
    assert [grid.region for grid in grids] == [(0.25, 0.0, 0.75, 1.0), WHOLE]
    assert FixedGridLayout(4, 2, 2).grids(0, known) == []


def processors() -> dict[str, Any]:
    side = {"height": 64, "width": 64}
    return {
        "crop": CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=side),
        "crop of a larger picture": CLIPImageProcessorPil(size={"shortest_edge": 96}, crop_size=side),
        "pad": LlavaImageProcessorPil(size={"shortest_edge": 64}, crop_size=side, do_pad=True),
        "squash": CLIPImageProcessorPil(size=side, do_center_crop=False),
        "squash and crop": CLIPImageProcessorPil(size={"height": 96, "width": 96}, crop_size=side),
    }


@pytest.mark.parametrize("name", processors())
@pytest.mark.parametrize("size", [(150, 150), (300, 150), (150, 300)])
def test_a_spot_is_found_where_it_is(name: str, size: tuple[int, int]) -> None:
    """Through the real processor and the real vision tower: the token that a bright spot changes lies on the spot.

    Order of the tokens and geometry of the processor in one: neither is worked out here.
    """
    model = tiny_model()
    processor = SimpleNamespace(image_processor=processors()[name], num_additional_image_tokens=1)
    layout = layout_for(model.config, processor)
    rng = np.random.default_rng(0)
    for _ in range(3):
        x, y = (int(edge * 0.5 + rng.integers(-40, 40)) for edge in size)
        spot = Image.new("RGB", size, (90, 90, 90))
        ImageDraw.Draw(spot).rectangle((x - 10, y - 10, x + 10, y + 10), fill=(255, 255, 255))
        both = [Image.new("RGB", size, (90, 90, 90)), spot]
        pixels = torch.stack([torch.as_tensor(one) for one in processor.image_processor(both).pixel_values])
        with torch.no_grad():
            embedded = model.model.vision_tower.embeddings(pixels)[:, 1:]  # without the class token
        change = (embedded[1] - embedded[0]).norm(dim=-1).numpy()
        (grid,) = layout.grids(len(change), [PictureInput(size)])
        shown = grid.arrange(change)
        row, column = np.unravel_index(int(shown.values.argmax()), shown.values.shape)
        left, top, right, bottom = shown.region
        across, down = (right - left) / 8, (bottom - top) / 8
        assert abs((left + (column + 0.5) * across) * size[0] - x) <= 10 + across * size[0] / 2
        assert abs((top + (row + 0.5) * down) * size[1] - y) <= 10 + down * size[1] / 2
        assert change.max() > 5 * np.median(change)


def test_layout_of_the_tiny_model() -> None:
    """A LLaVA's own config and processor give its grid, image token and no class token."""
    layout = layout_for(tiny_model().config, tiny_processor())
    assert layout == FixedGridLayout(4, 8, 8, leading=0, fit="crop", crop_scale=1.0)
    assert llava_layout(tiny_model().config, None) == layout


@pytest.mark.parametrize(("extra", "leading"), [(1, 1), (0, 0), (None, 1)])
def test_full_strategy(extra: int | None, leading: int) -> None:
    """With strategy "full" as many tokens lead as the tower has besides patches: one of CLIP's, none of SigLIP's."""
    config = tiny_model().config
    config.vision_feature_select_strategy = "full"
    layout = layout_for(config, SimpleNamespace(image_processor=None, num_additional_image_tokens=extra))
    assert isinstance(layout, FixedGridLayout)
    assert layout.leading == leading


def test_tower_without_a_fixed_grid() -> None:
    """Pixtral comes as a "llava" too, but its grid follows the picture: refused, not drawn wrongly."""
    config = SimpleNamespace(model_type="llava", vision_config=SimpleNamespace(model_type="pixtral"))
    with pytest.raises(ModelError, match="'pixtral' has no fixed grid"):
        layout_for(config, None)


def test_unknown_family() -> None:
    """A family without a layout is refused with the known ones and the way to add it."""
    with pytest.raises(ModelError, match=r"model type 'tower_of_babel' \(known: llava.*register_layout"):
        layout_for(SimpleNamespace(model_type="tower_of_babel"), None)


class DynamicLayout:
    """A second family, as an extension would write it: any grid, a separator after each row, wide pictures squashed."""

    image_token_id = 77

    def grids(self, tokens: int, pictures: Sequence[PictureInput]) -> list[PatchGrid]:
        made: list[PatchGrid] = []
        for picture in pictures:
            if sum(grid.length for grid in made) == tokens:
                break
            rows, columns = picture.inputs["grid"]
            order = np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)
            made.append(PatchGrid(order, rows * (columns + 1)))
        if sum(grid.length for grid in made) != tokens:
            raise ModelError("not whole pictures")
        return made


@pytest.fixture
def second_family(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(patches, "_FACTORIES", dict(patches._FACTORIES))
    register_layout("second", lambda _config, _processor: DynamicLayout())
    yield "second"
    monkeypatch.undo()
    with pytest.raises(ModelError):
        layout_for(SimpleNamespace(model_type="second"), None)


def test_second_family(second_family: str) -> None:
    """A family with a dynamic grid and line separators is added from outside, and the scorer never notices."""
    layout = layout_for(SimpleNamespace(model_type=second_family), None)
    assert layout.image_token_id == 77
    known = [PictureInput(inputs={"grid": (2, 3)}), PictureInput(inputs={"grid": (1, 2)}), PictureInput()]
    separator = 0.99
    relevance = np.array([0.1, 0.2, 0.3, separator, 0.4, 0.5, 0.6, separator, 0.7, 0.8, separator])
    score = tiny_scorer().conclude(relevance, layout.grids(11, known), answer={"token_probability": 0.9})
    wide, narrow = (one.values for one in score.maps)
    assert wide == pytest.approx(np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]))
    assert narrow == pytest.approx(np.array([[0.7, 0.8]]))
    assert score.features["map_max"] == pytest.approx(0.8)
    assert score.features["map_mass"] == pytest.approx(3.6 / 8)
    assert score.confidence == 0.9
