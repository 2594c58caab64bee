"""Pictures and relevance maps as bytes: what is stored of them, and how picture files are read.

Called on the background thread and by the lab; knows neither tables nor models.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fastrm_monitor.errors import DataError

MOST_PIXELS = 50_000_000
"""Larger pictures are refused before they are decoded."""

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # none that starts another program, as EPS does
_THUMBNAIL_SIDE = 512
_SMALL_SIDE = 128  # JPEG blurs what is small, and saves nothing
_STRIP = 1 << 20  # pixels that are hashed at once


@dataclass(frozen=True)
class StoredPicture:
    """What is kept of a picture.

    Attributes:
        width: of the original, in pixels.
        height: of the original, in pixels.
        sha256: of "RGB", the size and the original's pixels; None when nothing is to be kept.
        media_type: of `content`, None without it.
        content: an encoded picture without EXIF and other metadata; None when it is not to be kept.
    """

    width: int
    height: int
    sha256: str | None
    media_type: str | None
    content: bytes | None


def prepare(picture: Image.Image, mode: str) -> StoredPicture:
    """What is stored of a picture.

    Args:
        picture: as the model saw it; its orientation tag is not applied.
        mode: "thumbnail" (at most 512 pixels a side), "full" (PNG, without loss), "hash" or "none".

    Raises:
        DataError: another mode, or more than `MOST_PIXELS` pixels.
    """
    if mode not in ("thumbnail", "full", "hash", "none"):
        raise DataError(f"Pictures cannot be stored as {mode!r}: choose thumbnail, full, hash or none.")
    if mode == "none":
        return StoredPicture(*picture.size, sha256=None, media_type=None, content=None)
    width, height = bounded(picture).size
    rgb = picture.convert("RGB")
    sha256 = _hash(rgb)
    if mode == "hash":
        return StoredPicture(width, height, sha256, None, None)
    if mode == "thumbnail":
        rgb = rgb.copy() if rgb is picture else rgb
        rgb.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    bare = Image.frombytes("RGB", rgb.size, rgb.tobytes())  # nothing but pixels, so no metadata can be written
    buffer = BytesIO()
    if mode == "full" or max(width, height) <= _SMALL_SIDE:
        bare.save(buffer, "PNG")
        return StoredPicture(width, height, sha256, "image/png", buffer.getvalue())
    bare.save(buffer, "JPEG", quality=85)
    return StoredPicture(width, height, sha256, "image/jpeg", buffer.getvalue())


def bounded(picture: Image.Image) -> Image.Image:
    """The picture, if it is not too large to be decoded and kept.

    Raises:
        DataError: it has more than `MOST_PIXELS` pixels.
    """
    width, height = picture.size
    if width * height > MOST_PIXELS:
        raise DataError(f"The picture has {width} x {height} pixels, and {MOST_PIXELS} is the limit; make it smaller.")
    return picture


def _hash(rgb: Image.Image) -> str:
    """SHA-256 of size and pixels, strip by strip, so that a large picture is not copied as a whole."""
    width, height = rgb.size
    found = hashlib.sha256(f"RGB {width}x{height} ".encode())
    rows = max(_STRIP // max(width, 1), 1)
    for top in range(0, height, rows):
        found.update(rgb.crop((0, top, width, min(top + rows, height))).tobytes())
    return found.hexdigest()


def load_picture(path: str | Path) -> Image.Image:
    """A picture file as an upright RGB image.

    Raises:
        DataError: the file is missing, no picture, damaged, or has more than `MOST_PIXELS` pixels.
    """
    try:
        with Image.open(path, formats=_FORMATS) as opened:
            width, height = opened.size
            if width * height > MOST_PIXELS:
                raise _too_large(path, f"{width} x {height} pixels")
            opened.load()
            return ImageOps.exif_transpose(opened).convert("RGB")
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"The picture {str(path)!r} does not exist; check the folder of the pictures.") from None
    except IsADirectoryError:
        raise DataError(f"{str(path)!r} is a folder, not a picture; name a file in it.") from None
    except PermissionError:
        raise DataError(f"The picture {str(path)!r} may not be read; check its permissions.") from None
    except UnidentifiedImageError:
        raise DataError(f"{str(path)!r} is not a picture; known are {', '.join(_FORMATS)}.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # Pillow's own limit, also before decoding
        raise _too_large(path, "too many pixels") from None
    except Exception:  # decoders meet damage with errors of every kind
        raise DataError(f"The picture {str(path)!r} is truncated or damaged; fetch it again.") from None


def _too_large(path: str | Path, what: str) -> DataError:
    return DataError(f"The picture {str(path)!r} has {what}, and {MOST_PIXELS} is the limit; make it smaller.")


def pack_map(values: np.ndarray) -> bytes:
    """A map (rows, columns), values in 0..1, as float16, little endian, row by row."""
    return np.ascontiguousarray(values).astype("<f2").tobytes()


def unpack_map(data: bytes, rows: int, columns: int) -> np.ndarray:
    """The map (rows, columns) as float32.

    Raises:
        DataError: `data` has another length.
    """
    if len(data) != 2 * rows * columns:
        raise DataError(
            f"A stored map of {len(data)} bytes does not fit {rows} x {columns} patches; the store is damaged."
        )
    return np.frombuffer(data, "<f2").reshape(rows, columns).astype(np.float32)  # (rows, columns)
