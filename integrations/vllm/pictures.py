"""The pictures of the requests in flight, as they came, until their answers are complete.

vLLM drops a picture once it is processed, and a flagged case should show it. Kept is what costs least: the encoded
bytes of an upload, else the decoded picture. Bounded in bytes, the longest unused go first; a picture whose request
never comes (refused, or only counted) goes after a minute.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image, ImageOps

from fastrm_monitor.records.images import bounded

_WHITE = (255, 255, 255)
_UNCLAIMED_SECONDS = 60.0
"""A request is added within moments of its pictures' processing, or never."""


@dataclass(eq=False)
class Picture:
    """A picture as it came.

    Attributes:
        size: (width, height) in pixels, upright.
        source: its encoded bytes, or the decoded picture.
        background: what the engine puts behind transparent pixels.
        expected: times that it was processed for a request that is not added yet.
        claims: requests in flight that have it.
        since: monotonic time of its last processing.
    """

    size: tuple[int, int]
    source: bytes | Image.Image
    background: tuple[int, ...] = _WHITE
    expected: int = 1
    claims: int = 0
    since: float = 0.0

    @property
    def bytes(self) -> int:
        """Memory that keeping it costs."""
        if isinstance(self.source, bytes):
            return len(self.source)
        return self.source.width * self.source.height * len(self.source.getbands())

    def load(self) -> Image.Image:
        """The picture as the model saw it: upright, in RGB."""
        if isinstance(self.source, bytes):
            with Image.open(BytesIO(self.source)) as encoded:
                return self._flat(ImageOps.exif_transpose(bounded(encoded)))
        return self._flat(bounded(self.source))

    def _flat(self, picture: Image.Image) -> Image.Image:
        if not picture.has_transparency_data:
            return picture.convert("RGB")
        behind = Image.new("RGBA", picture.size, (*self.background, 255))
        return Image.alpha_composite(behind, picture.convert("RGBA")).convert("RGB")


class PictureShelf:
    """Pictures by the engine's hash of their content; safe to use from several threads.

    A picture is put here when the engine processes it, claimed when its request is added, and let go when that ends.

    Args:
        room: bytes that may be kept.
        entries: pictures that may be kept.
    """

    def __init__(self, room: int, entries: int = 4096) -> None:
        self._room, self._entries = room, entries
        self._kept: OrderedDict[str, Picture] = OrderedDict()
        self._bytes = 0
        self._swept = 0.0
        self._lock = threading.Lock()

    def put(self, identity: str, item: Any) -> None:
        """Keep a picture as the engine gets it: a PIL picture, or one beside its encoded bytes."""
        media = getattr(item, "media", item)
        if not isinstance(media, Image.Image):
            return
        encoded = getattr(item, "original_bytes", None)
        options = getattr(item, "io_config", None) or {}
        picture = Picture(
            media.size,
            encoded if isinstance(encoded, bytes) else media,
            tuple(options.get("rgba_background_color") or _WHITE),
            since=time.monotonic(),
        )
        with self._lock:
            before = self._drop(identity)
            if before is not None:
                picture.claims, picture.expected = before.claims, before.expected + 1
            if picture.bytes > self._room:
                return
            self._kept[identity] = picture
            self._bytes += picture.bytes
            self._sweep(picture.since)
            while self._bytes > self._room or len(self._kept) > self._entries:
                self._drop(next(iter(self._kept)))

    def claim(self, identities: Iterable[str]) -> None:
        """A request with these pictures is in flight."""
        with self._lock:
            for identity in identities:
                picture = self._kept.get(identity)
                if picture is not None:
                    picture.claims += 1
                    picture.expected = max(picture.expected - 1, 0)
                    self._kept.move_to_end(identity)

    def release(self, identities: Iterable[str]) -> None:
        """It is not any more; a picture that no other request has, or is about to have, goes."""
        with self._lock:
            for identity in identities:
                picture = self._kept.get(identity)
                if picture is not None:
                    picture.claims = max(picture.claims - 1, 0)
                    if not picture.claims and not picture.expected:
                        self._drop(identity)

    def get(self, identity: str) -> Picture | None:
        """The picture, if it is still kept."""
        with self._lock:
            if identity in self._kept:
                self._kept.move_to_end(identity)
            return self._kept.get(identity)

    def maker(self, identity: str) -> Callable[[], Image.Image]:
        """A function that loads the picture. Decided now whether it is still there, loaded when called."""
        picture = self.get(identity)
        return _gone if picture is None else picture.load

    def _sweep(self, now: float) -> None:
        """Forget, about once a second, the pictures whose requests did not come."""
        if now - self._swept < 1:
            return
        self._swept = now
        for identity, picture in list(self._kept.items()):
            if not picture.claims and now - picture.since > _UNCLAIMED_SECONDS:
                self._drop(identity)

    def _drop(self, identity: str) -> Picture | None:
        picture = self._kept.pop(identity, None)
        if picture is not None:
            self._bytes -= picture.bytes
        return picture


def _gone() -> Image.Image:
    raise LookupError("the picture is no longer kept: too many bytes of pictures were in flight")
