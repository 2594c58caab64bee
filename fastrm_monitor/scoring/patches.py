"""Where the image tokens of a request lie on its pictures.

A layout knows one model family: how many image tokens a picture takes, in which order its patches come, and which part
of the picture they cover once resizing, cropping and padding are undone. The core asks for nothing else, so a family
with a dynamic grid is a new layout and no change here (`register_layout`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fastrm_monitor.errors import ModelError
from fastrm_monitor.types import WHOLE, Region, RelevanceMap


@dataclass(frozen=True)
class PictureInput:
    """What is known of one picture of a request.

    Attributes:
        size: (width, height) of the original in pixels; None when the engine saw only the processed tensor.
        inputs: this picture's row of each of the processor's outputs, e.g. `image_grid_thw`.
    """

    size: tuple[int, int] | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """The patches of one picture.

    Attributes:
        tokens: int (gh, gw): which of the picture's image tokens shows the patch. Tokens that show none (a class token,
            line separators) are simply not named.
        length: number of image tokens that the picture takes.
        region: the part of the picture that the grid covers.
    """

    tokens: np.ndarray
    length: int
    region: Region = WHOLE

    def arrange(self, values: np.ndarray) -> RelevanceMap:
        """The map of per-token values, float (length,)."""
        return RelevanceMap(np.ascontiguousarray(values[self.tokens], dtype=np.float32), self.region)


class PatchLayout(Protocol):
    """The patch geometry of one model family."""

    @property
    def image_token_id(self) -> int:
        """The token that stands for a patch in the prompt."""

    def grids(self, tokens: int, pictures: Sequence[PictureInput]) -> list[PatchGrid]:
        """The grids of one request.

        Args:
            tokens: image tokens in the request's prompt.
            pictures: what is known of the pictures not yet assigned to a request, this request's first; may be empty
                when the engine knows nothing of them.

        Returns:
            One grid for each picture of the request, in prompt order; their lengths add up to `tokens`.

        Raises:
            ModelError: `tokens` cannot be whole pictures.
        """


@dataclass(frozen=True)
class FixedGridLayout:
    """A fixed square grid for every picture, as in LLaVA-1.5.

    Attributes:
        image_token_id: the token that stands for a patch.
        rows: gh.
        columns: gw.
        leading: tokens before the first patch (1 when the class token is kept).
        fit: how the processor makes the picture square: "crop" (short side resized, centre cropped), "pad" (padded
            to a square), "squash" (resized without keeping its shape).
        crop_scale: the side that is kept in the end over the resized side (with "crop" the short one); 1 for LLaVA-1.5.
    """

    image_token_id: int
    rows: int
    columns: int
    leading: int = 0
    fit: str = "crop"
    crop_scale: float = 1.0

    def grids(self, tokens: int, pictures: Sequence[PictureInput]) -> list[PatchGrid]:
        """See `PatchLayout.grids`."""
        length = self.rows * self.columns + self.leading
        count, rest = divmod(tokens, length)
        if rest:
            raise ModelError(
                f"The prompt has {tokens} image tokens, which is not a multiple of {length} "
                f"({self.rows} x {self.columns} patches a picture): check the processor's patch_size and strategy."
            )
        order = np.arange(self.rows * self.columns).reshape(self.rows, self.columns) + self.leading
        sizes = [picture.size for picture in pictures[:count]] + [None] * max(count - len(pictures), 0)
        return [PatchGrid(order, length, self._region(size)) for size in sizes]

    def _region(self, size: tuple[int, int] | None) -> Region:
        """The square that the model sees of a (width, height) picture; all of it when the size is unknown."""
        if size is None:
            return WHOLE
        width, height = size if self.fit != "squash" else (1, 1)
        side = (min(width, height) if self.fit == "crop" else max(width, height)) * self.crop_scale
        across, down = side / width, side / height
        return ((1 - across) / 2, (1 - down) / 2, (1 + across) / 2, (1 + down) / 2)


_DYNAMIC_TOWERS = {"pixtral"}
"""Towers that come under model type "llava" and whose grid follows the picture."""


def llava_layout(config: Any, processor: Any) -> FixedGridLayout:
    """The layout of LLaVA-1.5 and its like, from the model's config and the processor.

    Without a processor a centre crop is assumed.

    Raises:
        ModelError: the vision tower has no fixed grid.
    """
    vision = config.vision_config
    if getattr(vision, "model_type", "") in _DYNAMIC_TOWERS:
        raise ModelError(
            f"The vision tower '{vision.model_type}' has no fixed grid: "
            "give it its own layout with fastrm_monitor.scoring.patches.register_layout."
        )
    side = vision.image_size // vision.patch_size
    # A tower without a class token (SigLIP) has none to keep, and its processor says so.
    extra = getattr(processor, "num_additional_image_tokens", None)
    leading = (1 if extra is None else extra) if config.vision_feature_select_strategy == "full" else 0
    pictures = getattr(processor, "image_processor", None)
    size = dict(getattr(pictures, "size", None) or {})
    if getattr(pictures, "do_pad", False):
        fit = "pad"
    elif getattr(pictures, "do_center_crop", True) and not size.get("height"):
        fit = "crop"
    else:
        fit = "squash"
    resized = size.get("shortest_edge") or size.get("height") or vision.image_size
    return FixedGridLayout(config.image_token_id, side, side, leading, fit, vision.image_size / resized)


LayoutFactory = Callable[[Any, Any], PatchLayout]
_FACTORIES: dict[str, LayoutFactory] = {"llava": llava_layout}


def register_layout(model_type: str, factory: LayoutFactory) -> None:
    """Teach the monitor a model family.

    Args:
        model_type: `config.model_type` of the family in transformers.
        factory: makes a `PatchLayout` from (model config, processor).
    """
    _FACTORIES[model_type] = factory


def layout_for(config: Any, processor: Any) -> PatchLayout:
    """The layout of a model.

    Raises:
        ModelError: no layout is known for the model's family.
    """
    factory = _FACTORIES.get(getattr(config, "model_type", ""))
    if factory is None:
        raise ModelError(
            f"No patch layout is known for model type '{getattr(config, 'model_type', '?')}' (known: "
            f"{', '.join(sorted(_FACTORIES))}): add one with fastrm_monitor.scoring.patches.register_layout."
        )
    return factory(config, processor)
