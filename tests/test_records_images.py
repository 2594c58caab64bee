"""Pictures and maps as bytes: the size, hash and geometry are the original's, and no metadata is stored."""

import hashlib
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fastrm_monitor.errors import DataError
from fastrm_monitor.records.images import MOST_PIXELS, load_picture, pack_map, prepare, unpack_map

ORIENTATION, GPS, MAKER = 0x0112, 0x8825, 0x010F


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def opened(stored):
    return Image.open(BytesIO(stored.content))


@pytest.mark.parametrize(
    ("size", "mode", "media_type", "shown"),
    [
        ((128, 128), "thumbnail", "image/png", (128, 128)),
        ((129, 10), "thumbnail", "image/jpeg", (129, 10)),
        ((512, 300), "thumbnail", "image/jpeg", (512, 300)),
        ((1024, 600), "thumbnail", "image/jpeg", (512, 300)),
        ((300, 1200), "thumbnail", "image/jpeg", (128, 512)),
        ((3000, 1), "thumbnail", "image/jpeg", (512, 1)),
        ((1024, 600), "full", "image/png", (1024, 600)),
    ],
)
def test_what_is_stored(size, mode, media_type, shown):
    """The stored picture has the promised kind and size; width and height are the original's."""
    stored = prepare(noise(*size), mode)
    assert (stored.width, stored.height, stored.media_type) == (*size, media_type)
    assert opened(stored).size == shown
    assert opened(stored).format == media_type.removeprefix("image/").upper()


@pytest.mark.parametrize(("size", "mode"), [((40, 30), "thumbnail"), ((700, 30), "full")])
def test_small_and_full_pictures_are_exact(size, mode):
    """Where no size is saved, no pixel changes."""
    picture = noise(*size)
    assert np.array_equal(np.asarray(opened(prepare(picture, mode))), np.asarray(picture))


def test_large_thumbnail_looks_like_the_picture():
    """A thumbnail of a smooth picture is that picture, within what JPEG changes."""
    ramp = np.linspace(0, 255, 1024).astype(np.uint8)
    picture = Image.fromarray(np.broadcast_to(ramp[None, :, None], (512, 1024, 3)).copy())
    small = np.asarray(opened(prepare(picture, "thumbnail"))).astype(int)
    assert np.abs(small[:, :, 0] - np.linspace(0, 255, 512)).max() < 4


def test_hash_and_nothing():
    """Of a picture "hash" keeps no pixels, "none" not even the hash; both keep the size."""
    hashed, nothing = prepare(noise(20, 10), "hash"), prepare(noise(20, 10), "none")
    assert (hashed.content, hashed.media_type, len(hashed.sha256)) == (None, None, 64)
    assert (nothing.width, nothing.height) == (20, 10)
    assert (nothing.sha256, nothing.content, nothing.media_type) == (None, None, None)


def test_hash_is_of_size_and_pixels():
    """The hash is the documented one, the same in every mode and file format, and another for another shape."""
    picture = noise(20, 10)
    expected = hashlib.sha256(b"RGB 20x10 " + picture.tobytes()).hexdigest()
    again = BytesIO()
    picture.convert("RGBA").save(again, "PNG")
    assert {prepare(picture, mode).sha256 for mode in ("thumbnail", "full", "hash")} == {expected}
    assert prepare(Image.open(again), "hash").sha256 == expected
    turned = Image.frombytes("RGB", (10, 20), picture.tobytes())
    assert prepare(turned, "hash").sha256 != expected


def test_unknown_mode():
    """Another mode is one sentence with the choices."""
    with pytest.raises(DataError, match="'tiny': choose thumbnail, full, hash or none"):
        prepare(noise(2, 2), "tiny")


@pytest.mark.parametrize("size", [(100, 80), (600, 400)])
@pytest.mark.parametrize("mode", ["thumbnail", "full"])
def test_no_metadata_is_stored(size, mode):
    """Maker, place, comment, colour profile and text of the original are in no stored byte."""
    buffer = BytesIO()
    exif = Image.Exif()
    exif[MAKER] = "SECRETMAKER"
    exif[GPS] = {1: "N", 2: (52.0, 31.0, 12.0)}
    noise(*size).save(buffer, "JPEG", exif=exif, comment=b"SECRETCOMMENT", icc_profile=b"SECRETPROFILE")
    from_jpeg = Image.open(buffer)
    assert from_jpeg.getexif()[MAKER] == "SECRETMAKER"
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "SECRETAUTHOR")
    buffer = BytesIO()
    noise(*size).save(buffer, "PNG", pnginfo=text, exif=exif)
    for picture in (from_jpeg, Image.open(buffer)):
        stored = prepare(picture, mode)
        assert b"SECRET" not in stored.content
        assert dict(opened(stored).getexif()) == {}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16"])
def test_pictures_of_every_mode(mode, tmp_path):
    """Whatever Pillow mode a picture has, it is stored and loaded as RGB."""
    picture = noise(30, 20).convert("L" if mode == "I;16" else "RGB").convert(mode)
    assert opened(prepare(picture, "thumbnail")).mode == "RGB"
    path = tmp_path / ("p.tiff" if mode == "CMYK" else "p.png")
    picture.save(path)
    assert (load_picture(path).mode, load_picture(path).size) == ("RGB", (30, 20))


def test_given_picture_is_not_changed():
    """The caller's picture keeps its size and pixels."""
    picture = noise(600, 400)
    before = picture.tobytes()
    prepare(picture, "thumbnail")
    assert (picture.size, picture.tobytes()) == ((600, 400), before)


# --- files -----------------------------------------------------------------------------------------------------------


def test_loaded_picture_is_upright(tmp_path):
    """A camera's orientation tag is applied, once."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # turn by 90 degrees, clockwise
    picture = noise(30, 20)
    picture.save(tmp_path / "p.png", exif=exif)
    upright = load_picture(tmp_path / "p.png")
    assert np.array_equal(np.asarray(upright), np.rot90(np.asarray(picture), -1))
    assert upright.getexif().get(ORIENTATION) is None


def test_path_may_be_text(tmp_path):
    """A path is a `Path` or a string."""
    noise(3, 2).save(tmp_path / "p.png")
    assert load_picture(str(tmp_path / "p.png")).size == (3, 2)


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    )


def whole(kind):
    buffer = BytesIO()
    noise(64, 64).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is not a picture; known are BMP, GIF"),
        (b"hello", "is not a picture; known are BMP, GIF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture; known are BMP, GIF"),
        (whole("PNG")[:200], "is truncated or damaged; fetch it again"),
        (whole("JPEG")[:600], "is truncated or damaged; fetch it again"),
        (whole("WEBP")[:300], "is truncated or damaged; fetch it again"),
        (png_header(8000, 6251), f"8000 x 6251 pixels, and {MOST_PIXELS} is the limit"),
        (png_header(12000, 9000), f"and {MOST_PIXELS} is the limit"),
        (png_header(65000, 65000), f"and {MOST_PIXELS} is the limit"),
    ],
)
def test_file_that_is_no_picture(tmp_path, content, expected):
    """Each is one sentence that names the file and says what is wrong, without a chain of causes."""
    path = tmp_path / "p.png"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_picture(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_path_without_a_picture(tmp_path):
    """A missing file, a folder and an impossible name are told apart from damage."""
    with pytest.raises(DataError, match="does not exist; check the folder"):
        load_picture(tmp_path / "nothing.png")
    with pytest.raises(DataError, match="is a folder, not a picture"):
        load_picture(tmp_path)
    with pytest.raises(DataError):
        load_picture("a\0b.png")


# --- maps ------------------------------------------------------------------------------------------------------------


def test_map_round_trip():
    """A map comes back with its shape, row by row, as float32, within float16's precision."""
    values = np.random.default_rng(0).random((24, 17))
    packed = pack_map(values.T[::-1].T)  # not contiguous
    assert len(packed) == 2 * 24 * 17
    read = unpack_map(packed, 24, 17)
    assert (read.dtype, read.shape) == (np.float32, (24, 17))
    assert np.abs(read - values.T[::-1].T).max() < 5e-4


def test_map_is_little_endian():
    """The bytes are the documented ones on every machine."""
    assert pack_map(np.array([[1.0, 0.5]], dtype=np.float32)) == b"\x00\x3c\x00\x38"


def test_map_of_another_length():
    """Bytes that do not fit the shape are one sentence."""
    with pytest.raises(DataError, match="6 bytes does not fit 2 x 2 patches"):
        unpack_map(b"\0" * 6, 2, 2)
